"""Labelled messages to the customer desk of a transit operator, made by a grammar.

Written for this benchmark. A message has a request, which is its label, and often a background that
belongs to another label, so that its topic alone does not give the label away.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_SLOTS: Mapping[str, Sequence[str]] = {
    "line": ("tram 4", "the night bus", "line 12", "the harbour ferry", "bus 7",
             "the airport train", "the hill funicular", "tram 9", "the ring bus", "line 31"),
    "stop": ("Mill Lane", "Castle Square", "the old station", "North Gate", "Harbour Street",
             "the university", "Linden Park", "the hospital", "Market Hall", "Bridge Road"),
    "when": ("this morning", "yesterday evening", "on Sunday", "last week", "around noon",
             "on the way to work", "at half past six", "on Friday night", "two days ago", "today"),
    "thing": ("grey backpack", "phone", "umbrella", "pair of glasses", "violin case", "blue scarf",
              "laptop bag", "child's jacket", "bunch of keys", "sketchbook"),
    "sum": ("3.20", "14.50", "49", "2.80", "7.60", "65", "110", "5.40"),
    "who": ("my son", "my mother", "a colleague", "our school class", "my neighbour", "my partner"),
    "opening": ("", "", "", "Hello.", "Good day.", "Hi there.", "To whom it may concern:",
                "Please note:"),
    "closing": ("", "", "", "", "Thanks.", "Please get back to me.",
                "It is the second time I write.",
                "I travel with you every day.", "Best wishes"),
}  # fmt: skip

_BACKGROUNDS: Mapping[str, Sequence[str]] = {
    "fare": ("I bought a ticket for {sum} {when}", "the machine at {stop} took {sum} from my card",
             "an inspector on {line} fined me {when}", "I hold a monthly pass for {line}"),
    "lost_item": ("I left my {thing} on {line} {when}", "{who} forgot a {thing} at {stop}",
                  "my {thing} must have slipped under a seat on {line}"),
    "delay": ("{line} came twenty minutes late {when}", "{line} did not come at all {when}",
              "we waited at {stop} for an hour {when}"),
    "damage": ("the shelter at {stop} has a broken pane", "a seat on {line} is torn",
               "the ticket machine at {stop} is out of order", "the doors of {line} jam"),
    "access": ("the lift at {stop} is not working", "{who} uses a wheelchair",
               "the ramp of {line} stayed in {when}",
               "the announcements on {line} cannot be heard"),
    "account": ("I have changed my phone number", "I moved and my card is in the old name",
                "I cannot sign in to the app since {when}", "the app lists {who} on my profile"),
    "praise": ("the driver of {line} waited for {who} {when}", "the new seats on {line} are a joy",
               "your staff at {stop} helped {who} {when}"),
    "route": ("I am going from {stop} to the coast {when}", "we plan a trip with {who}",
              "I am new in town and live near {stop}"),
}  # fmt: skip

_REQUESTS: Mapping[str, Sequence[str]] = {
    "fare": ("please refund the {sum}", "why was I charged {sum} twice?", "I want my money back",
             "what does a day ticket for {who} cost?", "kindly cancel the fine of {sum}"),
    "lost_item": ("has anybody handed in a {thing}?",
                  "could you check whether the {thing} was found?",
                  "where can I collect a {thing} that was left behind?"),
    "delay": ("why is {line} never on time?", "please tell the planners that {line} is always late",
              "I want to complain that {line} made {who} miss an appointment",
              "when will {line} keep to its timetable again?"),
    "damage": ("please have it repaired", "somebody should fix the machine at {stop}",
               "send a mechanic to {stop}", "I want to report the broken window on {line}"),
    "access": ("how can {who} get on without steps?", "is there a lift at {stop}?",
               "please make {stop} usable with a wheelchair", "can {who} book help for boarding?"),
    "account": ("please change the name on my card", "how do I reset my password?",
                "delete my profile, please", "how can I add {who} to my profile?"),
    "praise": ("please pass on my thanks", "I just wanted to say well done",
               "do give the driver my compliments", "keep it up"),
    "route": ("which line takes me to {stop}?", "how long is the ride to {stop}?",
              "where do I have to change for {line}?", "does {line} call at {stop}?"),
}  # fmt: skip

LABELS = tuple(_REQUESTS)
_OTHER_BACKGROUND = 0.45
_NO_BACKGROUND = 0.15


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One message and its right label."""

    text: str
    label: str


def grammar_texts(count: int, seed: int = 0) -> list[LabelledText]:
    """Return distinct messages, all labels about equally often. The same ones for a seed."""
    rng = random.Random(seed)  # noqa: S311  # texts, not secrets
    found: dict[str, str] = {}
    while len(found) < count:
        label = rng.choice(LABELS)
        found.setdefault(_message(rng, label), label)
    return [LabelledText(text, label) for text, label in found.items()]


def _message(rng: random.Random, label: str) -> str:
    request = rng.choice(_REQUESTS[label])
    draw = rng.random()
    topic = rng.choice(LABELS) if draw < _OTHER_BACKGROUND else label
    background = "" if draw > 1.0 - _NO_BACKGROUND else rng.choice(_BACKGROUNDS[topic])
    parts = [background, request]
    if background and rng.random() < 0.25:
        parts.reverse()
    sentences = [_sentence(_filled(rng, part)) for part in parts if part]
    opening, closing = rng.choice(_SLOTS["opening"]), rng.choice(_SLOTS["closing"])
    return " ".join(part for part in (opening, *sentences, closing) if part)


def _filled(rng: random.Random, template: str) -> str:
    return template.format_map({name: rng.choice(values) for name, values in _SLOTS.items()})


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text.endswith("?") else ".")
