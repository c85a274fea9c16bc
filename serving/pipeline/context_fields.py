"""Reads what a chat asks of context pruning, and removes it from what models get."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from serving.context.detection import may_be_marked
from serving.contracts.errors import InvalidRequest
from serving.contracts.invalid_values import invalid
from serving.contracts.requests import Message, PruningMode, PruningOptions
from serving.pipeline.fields import boolean, integer, number, object_

FIELD = "narrowgate"
PART_FIELD = "narrowgate_context"
_MODES: Mapping[str, PruningMode] = {
    "off": "off", "ratio": "ratio", "threshold": "threshold", "auto": "auto",
}  # fmt: skip
_KNOWN = ("context", "context_mode", "context_ratio")


def read_pruning(
    value: Any, messages: tuple[Message, ...]
) -> tuple[tuple[Message, ...], PruningOptions]:
    """Return the messages without marks, and the options. value: of the field `narrowgate`.

    Raises InvalidRequest, which names the field.
    """
    fields = {} if value is None else dict(object_(value, FIELD))
    for name in fields:
        if name not in _KNOWN:
            raise invalid(f"{FIELD}.{name[:60]}", fields[name], "one of " + ", ".join(_KNOWN))
    mode, ratio = fields.get("context_mode"), fields.get("context_ratio")
    if mode is not None and (not isinstance(mode, str) or mode not in _MODES):
        raise invalid(f"{FIELD}.context_mode", mode, "one of off, ratio, threshold, auto")
    if ratio is not None:
        ratio = float(number(0.01, 1)(ratio, f"{FIELD}.context_ratio"))
    marked = set(_references(fields.get("context"), messages))
    cleaned: list[Message] = []
    for index, message in enumerate(messages):
        cleaned.append(_without_marks(index, message, marked))
    for index, part in marked:
        if not may_be_marked(messages, index, part):
            where = f"messages.{index}" + ("" if part is None else f".content.{part}")
            raise InvalidRequest(
                f"{where} is marked as context, and it is not a text of a user or tool",
                field=where,
                fix="mark texts that hold context only; never instructions or answers",
            )
    chosen = None if mode is None else _MODES[mode]
    return tuple(cleaned), PruningOptions(chosen, ratio, frozenset(marked))


def _references(value: Any, messages: Sequence[Message]) -> list[tuple[int, int | None]]:
    path = f"{FIELD}.context"
    if value is None:
        return []
    if not isinstance(value, list):
        raise invalid(path, value, "a list of objects with message and part")
    found: list[tuple[int, int | None]] = []
    for position, item in enumerate(value):
        where = f"{path}.{position}"
        reference = object_(item, where)
        if set(reference) - {"message", "part"}:
            raise invalid(where, item, "an object with message and part, counted from 0")
        index = integer(0, len(messages) - 1)(reference.get("message"), f"{where}.message")
        part = reference.get("part")
        if part is not None:
            part = integer(0, 100_000)(part, f"{where}.part")
        found.append((index, part))
    return found


def _without_marks(index: int, message: Message, marked: set[tuple[int, int | None]]) -> Message:
    """Return a message whose parts have no mark; marked: gets the marked parts."""
    if not isinstance(message.content, tuple):
        return message
    if not any(PART_FIELD in part for part in message.content):
        return message
    parts: list[Mapping[str, Any]] = []
    for position, part in enumerate(message.content):
        kept = {name: value for name, value in part.items() if name != PART_FIELD}
        if part.get(PART_FIELD) is not None:
            path = f"messages.{index}.content.{position}.{PART_FIELD}"
            if boolean(part[PART_FIELD], path):
                marked.add((index, position))
        parts.append(kept)
    return replace(message, content=tuple(parts))
