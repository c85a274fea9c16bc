"""Detects prompts whose static part changes from request to request, and what changes in it."""

import re
from dataclasses import dataclass, field
from typing import Literal

from cachetools import LRUCache

Kind = Literal["timestamp", "date", "uuid", "id", "number", "name", "text"]

_CONSECUTIVE = 3
_LEAST_SHARED = 0.8
_REMEMBERED_PATTERNS = 64
_LONGEST_SPAN = 200
_WORD = r"[\w.:/+@-]"
_KINDS: tuple[tuple[Kind, re.Pattern[str]], ...] = (
    ("uuid", re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)),
    (
        "timestamp",
        re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d|\b\d{1,2}:\d\d(?::\d\d)?\b|\b1\d{9,12}\b"),
    ),
    ("date", re.compile(r"\b\d{4}[-/.]\d\d?[-/.]\d\d?\b|\b\d\d?[-/.]\d\d?[-/.]\d{2,4}\b")),
    ("number", re.compile(r"[-+]?\d+(?:[.,]\d+)*")),
    ("id", re.compile(r"(?=\S*\d)(?=\S*[A-Za-z])[\w-]{6,}")),
    ("name", re.compile(r"[A-Z][a-z]+(?: [A-Z][a-z]+)*")),
)


@dataclass(frozen=True, slots=True)
class Span:
    """Where two texts differ.

    start: number of characters shared before it. shared: shared fraction of the longer text.
    before, after: the differing words of each.
    """

    start: int
    shared: float
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class PrefixWarning:
    """A prefix that keeps changing. before and after are prompt text: never logged."""

    purpose: str
    position: int
    prefix_id: str
    kind: Kind
    start: int
    before: str
    after: str


@dataclass(slots=True)
class _Last:
    text: str
    changes: int = 0
    kinds: set[Kind] = field(default_factory=set)


def differing_span(before: str, after: str) -> Span:
    """Return the span in which two texts differ, widened to whole words."""
    shortest = min(len(before), len(after))
    head = _common(before, after, shortest)
    tail = _common(before[head:][::-1], after[head:][::-1], shortest - head)
    shared = (head + tail) / max(len(before), len(after), 1)
    return Span(head, shared, _widened(before, head, tail), _widened(after, head, tail))


def looks_like(text: str) -> Kind:
    """Return the kind of a differing span."""
    for kind, pattern in _KINDS:
        if pattern.fullmatch(text.strip(" ,;.:!?")) or (
            kind in ("uuid", "timestamp", "date") and pattern.search(text)
        ):
            return kind
    return "text"


class PrefixLinter:
    """Stores the last prefix of each place and warns once for each kind of change.

    tracked: places remembered; the least recently used are forgotten first. Memory: their texts.
    """

    def __init__(self, tracked: int) -> None:
        self._last: LRUCache[tuple[str, int], _Last] = LRUCache(tracked)
        self.warnings: list[PrefixWarning] = []

    def observe(
        self, purpose: str, position: int, prefix_id: str, text: str
    ) -> tuple[PrefixWarning | None, bool]:
        """Record a request's prefix; return a new warning, if any, and whether it is unstable.

        Unstable: at least the third request in a row whose prefix differs from the one before and
        shares at least 80 % of its text with it.
        """
        key = (purpose, position)
        last: _Last = self._last.setdefault(key, _Last(text))
        if last.text == text:
            last.changes = 0
            return None, False
        span = differing_span(last.text, text)
        last.text = text
        last.changes = last.changes + 1 if span.shared >= _LEAST_SHARED else 0
        if last.changes < _CONSECUTIVE - 1:
            return None, False
        kind = looks_like(span.after)
        if kind in last.kinds:
            return None, True
        last.kinds.add(kind)
        warning = PrefixWarning(
            purpose, position, prefix_id, kind, span.start, span.before, span.after
        )
        if len(self.warnings) < _REMEMBERED_PATTERNS:
            self.warnings.append(warning)
        return warning, True


def _common(left: str, right: str, longest: int) -> int:
    """Return how many characters two texts share at their start, by bisection."""
    low, high = 0, longest
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _widened(text: str, head: int, tail: int) -> str:
    start, end = head, len(text) - tail
    first, last = max(0, start - _LONGEST_SPAN), min(len(text), start + _LONGEST_SPAN)
    while start > first and re.match(_WORD, text[start - 1]):
        start -= 1
    while end < last and re.match(_WORD, text[end]):
        end += 1
    return text[start:end][:_LONGEST_SPAN]
