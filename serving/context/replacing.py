"""Reads the context texts of a chat at their places, and puts shorter ones there. Pure."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from serving.context.detection import Place, texts_of
from serving.contracts.requests import Message
from serving.contracts.text_length import quarter_tokens


def texts_at(messages: Sequence[Message], places: Sequence[Place]) -> list[str]:
    """Return the texts at some places."""
    texts = {index: dict(texts_of(messages[index])) for index in {p.message for p in places}}
    return [texts[place.message][place.part][place.start : place.end] for place in places]


def replaced(
    messages: Sequence[Message], places: Sequence[Place], texts: Sequence[str]
) -> tuple[Message, ...]:
    """Return the messages with other texts at the places, which are in order."""
    changes: defaultdict[int, defaultdict[int | None, list[tuple[Place, str]]]]
    changes = defaultdict(lambda: defaultdict(list))
    for place, text in zip(places, texts, strict=True):
        changes[place.message][place.part].append((place, text))
    changed = list(messages)
    for index, of_parts in changes.items():
        content: Any = messages[index].content
        if isinstance(content, str):
            content = _spliced(content, of_parts[None])
        else:
            content = tuple(
                {**part, "text": _spliced(part["text"], of_parts[number])}
                if number in of_parts
                else part
                for number, part in enumerate(content)
            )
        changed[index] = replace(messages[index], content=content)
    return tuple(changed)


def _spliced(whole: str, changes: Sequence[tuple[Place, str]]) -> str:
    pieces: list[str] = []
    start = 0
    for place, text in changes:
        pieces += [whole[start : place.start], text]
        start = place.end
    return "".join([*pieces, whole[start:]])


def cached_tokens(messages: Sequence[Message], marker: str) -> int:
    """Return the tokens up to the last mark that ends a prefix to cache; 0 without a mark."""
    total = cached = 0
    for message in messages:
        for part, text in texts_of(message):
            position = text.rfind(marker)
            if position >= 0:
                cached = total + quarter_tokens(text[:position])
            total += quarter_tokens(text)
            content = message.content
            if part is not None and isinstance(content, tuple) and "cache_control" in content[part]:
                cached = total
    return cached // 4


def tokens_before(messages: Sequence[Message], places: Sequence[Place]) -> list[int]:
    """Return the tokens of the messages before each place. places: in order."""
    found: list[int] = []
    inside: defaultdict[tuple[int, int | None], list[Place]] = defaultdict(list)
    for place in places:
        inside[place.message, place.part].append(place)
    total = 0
    for index, message in enumerate(messages):
        for part, text in texts_of(message):
            start = 0
            for place in inside[index, part]:
                total += quarter_tokens(text[start : place.start])
                start = place.start
                found.append(total // 4)
            total += quarter_tokens(text[start:])
    return found
