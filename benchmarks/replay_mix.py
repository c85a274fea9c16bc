"""The requests of the cost replay: from shipped texts, with known right answers and times."""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any, Literal

from benchmarks.replay_assumptions import Values
from serving.context.pairs import Pair, shipped_pairs

Kind = Literal["narrow", "medium", "open", "rag", "turns"]
_REST: dict[Kind, float] = {"medium": 0.25, "open": 0.35, "rag": 0.15, "turns": 0.25}
"""Shares of what is not narrow."""

_TASKS = {
    "topic": (
        "Classify the topic of this news item as World, Sports, Business or Sci-Tech.\n\n{}",
        "Which topic does this news item belong to: World, Sports, Business or Sci-Tech?\n\n{}",
        "Assign one category to the article. Options: World, Sports, Business, Sci-Tech.\n\n"
        "Article: {}",
    ),
    "sentiment": (
        "What is the sentiment of this review: positive, negative or neutral?\n\nReview: {}",
        "Classify the sentiment of the text as positive, negative or neutral.\n\nText: {}",
    ),
}
_OTHER_WORDS = ("Please help: {}", "I would like to know this. {}", "{} Thank you.", "Hello! {}")
_ANGLES = (
    "{}", "{} Give an example.", "{} Explain it to a beginner.", "{} Explain it to an expert.",
    "{} What is often misunderstood?", "{} Give the history.", "{} Compare two views.",
)  # fmt: skip
_SYSTEM_WORDS = (
    "refund", "order", "customer", "policy", "shall", "be", "within", "days", "agent", "may",
    "escalate", "when", "the", "account", "is", "verified", "by", "a", "second", "channel",
)  # fmt: skip
_TURNS = 4
_PAUSES_S = ((20, 240), (20, 240), (20, 240), (600, 2400))


@dataclass(frozen=True, slots=True)
class Request:
    """One request. key: equal for equal questions; it seeds the answer's length and rightness.

    needs: a context must still hold them. label: of a narrow text. at_s: simulated time.
    """

    kind: Kind
    key: str
    conversation: str
    messages: tuple[dict[str, Any], ...]
    at_s: float = 0.0
    label: str | None = None
    needs: tuple[tuple[str, ...], ...] = ()
    is_repeat: bool = False


def build_mix(requests: int, values: Values, seed: int) -> list[Request]:
    """Return so many requests in the order of their times. Raises ValueError for too few texts."""
    draw = random.Random(seed)  # noqa: S311  # a replay
    narrow = round(requests * values["narrow"])
    counts: dict[Kind, int] = {kind: round((requests - narrow) * n) for kind, n in _REST.items()}
    counts["open"] += requests - narrow - sum(counts.values())
    counts["narrow"] = narrow
    sources: dict[Kind, Iterator[Request]] = {
        "narrow": _narrow(draw), "medium": _questions("medium", draw),
        "open": _questions("open", draw), "rag": _rag(draw),
    }  # fmt: skip
    span_s = requests * values["arrival_s"]
    found: list[Request] = []
    for kind, source in sources.items():
        repeats = round(counts[kind] * values["repeats"])
        fresh = [next(source) for _ in range(counts[kind] - repeats)]
        timed = [replace(one, at_s=draw.uniform(0, span_s)) for one in fresh]
        found += [*timed, *_repeats(timed, repeats, span_s, draw)]
    found += _conversations(counts["turns"], span_s, draw)
    return sorted(found, key=lambda one: one.at_s)


def _repeats(
    originals: Sequence[Request], count: int, span_s: float, draw: random.Random
) -> Iterator[Request]:
    for number in range(count):
        original = draw.choice(originals)
        later_s = original.at_s + draw.expovariate(1 / (span_s / 4))
        messages = original.messages
        if number % 3 == 0:
            last = messages[-1]
            words = draw.choice(_OTHER_WORDS).format(last["content"])
            messages = (*messages[:-1], {**last, "content": words})
        yield replace(original, at_s=later_s, messages=messages, is_repeat=True)


def _narrow(draw: random.Random) -> Iterator[Request]:
    rows = []
    for task in _TASKS:
        path = files("evals").joinpath("suites", task, "test.jsonl")
        rows += [(task, json.loads(line)) for line in path.read_text("utf-8").splitlines()]
    draw.shuffle(rows)
    for round_ in range(3):
        for task, row in rows:
            templates = _TASKS[task]
            start = templates[(round_ + len(row["text"])) % len(templates)]
            text = start.format(row["text"])
            yield _single("narrow", text, label=row["label"])
    raise ValueError("there are too few narrow texts")


def _questions(kind: Kind, draw: random.Random) -> Iterator[Request]:
    """Yield short questions, or open-ended ones of the router's texts, by stated complexity."""
    source = files("serving.routing").joinpath("texts", "prompts.jsonl").read_text("utf-8")
    rows = [json.loads(line) for line in source.splitlines()]
    rows = [row for row in rows if (row["complexity"] <= 0.3) == (kind == "medium")]
    draw.shuffle(rows)
    for angle in _ANGLES:
        for row in rows:
            yield _single(kind, angle.format(row["text"]))
    raise ValueError(f"there are too few {kind} texts")


def _rag(draw: random.Random) -> Iterator[Request]:
    pairs = [p for p in (*shipped_pairs("fit"), *shipped_pairs("held_out")) if p.is_reachable]
    draw.shuffle(pairs)
    for pair in pairs:
        needs = tuple(need.aliases for need in pair.needs)
        yield _single(
            "rag", f"<context>\n{_context(pair)}\n</context>\n{pair.question}", needs=needs
        )
    raise ValueError("there are too few contexts")


def _context(pair: Pair) -> str:
    return "\n\n".join(f"{title}\n{text}" for title, text in pair.documents)


def _single(kind: Kind, text: str, **more: Any) -> Request:
    return Request(kind, text, text, ({"role": "user", "content": text},), **more)


def _conversations(count: int, span_s: float, draw: random.Random) -> Iterator[Request]:
    """Yield turns of conversations behind one of three system prompts of 3,000 tokens."""
    systems = []
    for _ in range(3):
        text = ""
        while len(text) < 12_000:
            text += f"{draw.choice(_SYSTEM_WORDS)} "
        systems.append({"role": "system", "content": text.strip() + "."})
    made = 0
    number = 0
    while made < count:
        number += 1
        at_s = draw.uniform(0, span_s)
        messages: tuple[dict[str, Any], ...] = (draw.choice(systems),)
        for turn in range(min(_TURNS, count - made)):
            asked = f"Case {number}, step {turn}: what does the policy say of {draw.random():.6f}?"
            messages = (*messages, {"role": "user", "content": asked})
            yield Request("turns", asked, f"conversation {number}", messages, at_s)
            answer = f"The policy of step {turn} says {draw.random():.9f}. " * 12
            messages = (*messages, {"role": "assistant", "content": answer})
            at_s += draw.uniform(*draw.choice(_PAUSES_S))
            made += 1
