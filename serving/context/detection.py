"""Finds which texts of a chat are context and which ask. Pure."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from serving.contracts.requests import INSTRUCTING_ROLES, Message

_TAG = re.compile(r"<(/?)(context|documents|document)(?:\s[^<>]{0,400})?>", re.IGNORECASE)
_MOST_CHARS = 2000
"""Of the question; of a longer one its end counts."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a context text stands. part: None where the message's content is a string."""

    message: int
    part: int | None
    start: int
    end: int


def context_places(
    messages: Sequence[Message],
    marked: Collection[tuple[int, int | None]],
    tools: Collection[str],
) -> tuple[Place, ...]:
    """Return the context texts in their order.

    These are the texts that the client marked, the inside of context, document and documents
    elements, and the results of the named tools. Assistants' messages hold none.
    """
    found: list[Place] = []
    for index, message in enumerate(messages):
        if message.role == "assistant":
            continue
        is_tool = _is_result(message, messages[:index], tools) if tools else False
        for part, text in texts_of(message):
            if is_tool or (index, part) in marked:
                found.append(Place(index, part, 0, len(text)))
            else:
                found += [Place(index, part, a, b) for a, b in _elements(text)]
    return tuple(place for place in found if place.end > place.start)


def question_of(messages: Sequence[Message], places: Sequence[Place]) -> str:
    """Return the last user message's text outside of context; empty where no message asks."""
    inside: defaultdict[tuple[int, int | None], list[Place]] = defaultdict(list)
    for place in places:
        inside[place.message, place.part].append(place)
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role != "user":
            continue
        pieces: list[str] = []
        for part, text in texts_of(messages[index]):
            start = 0
            for place in inside[index, part]:
                pieces.append(text[start : place.start])
                start = place.end
            pieces.append(text[start:])
        question = _TAG.sub(" ", " ".join(pieces)).strip()
        if question:
            return question[-_MOST_CHARS:]
    return ""


def texts_of(message: Message) -> Iterator[tuple[int | None, str]]:
    """Yield a message's texts, each with its part's index."""
    content = message.content
    if isinstance(content, str):
        yield None, content
        return
    for number, part in enumerate(content or ()):
        if part["type"] == "text":
            yield number, part["text"]


def may_be_marked(messages: Sequence[Message], index: int, part: int | None) -> bool:
    """Return whether a client may mark a text as context: it exists and instructs nobody."""
    if index >= len(messages) or messages[index].role in {*INSTRUCTING_ROLES, "assistant"}:
        return False
    return any(number == part for number, _ in texts_of(messages[index]))


def _elements(text: str) -> Iterator[tuple[int, int]]:
    """Yield the insides of outermost elements. An element that is not closed is no context."""
    opened: re.Match[str] | None = None
    for tag in _TAG.finditer(text):
        if opened is None:
            opened = None if tag.group(1) else tag
        elif tag.group(1) and tag.group(2).lower() == opened.group(2).lower():
            yield opened.end(), tag.start()
            opened = None


def _is_result(message: Message, before: Sequence[Message], tools: Collection[str]) -> bool:
    """Return whether a message is the result of one of the named tools."""
    if message.role == "function" or (message.role == "tool" and message.extras.get("name")):
        return message.extras.get("name") in tools
    if message.role != "tool":
        return False
    wanted = message.extras.get("tool_call_id")
    for earlier in reversed(before):
        for call in earlier.extras.get("tool_calls") or ():
            if call.get("id") == wanted:
                return (call.get("function") or {}).get("name") in tools
    return False
