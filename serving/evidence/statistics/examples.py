"""Audited inputs, and which of them count for earning: one of a group, and a text once.

Inputs of one group are not independent, and neither are equal texts. Counted all, bursts of 50 with
a correlation of 0.17 earn a claim at an error equal to the target in more than half of the runs.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_MAX_OPEN_GROUPS = 10_000
_REMEMBERED = 20_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a candidate made of one input. loss: in [0, 1], against the reference.

    badly_worse: in [0, 1], of a judge; 0 for other losses.
    """

    confidence: float
    loss: float
    badly_worse: float = 0.0


@dataclass(frozen=True, slots=True)
class Example:
    """One audited input, as far as earning needs it.

    input: a name drawn at random at acceptance; it decides which input of a group counts. group:
    inputs that are not independent share it. text: digest of the normalised text. at_s: seconds,
    any epoch. coin: probability of the fair coin that chose the input, the same for accepted and
    escalated ones, 1 in shadow; None where the input was labelled for another reason, and then it
    only trains. outcomes: of each candidate that existed, by name. missing: the reference gave no
    verdict for reasons of the input, which is a loss of 1 of every candidate. label: the
    reference's; None where the task has no labels.
    """

    input: str
    group: str
    text: str
    at_s: float
    coin: float | None
    outcomes: Mapping[str, Outcome]
    missing: bool = False
    label: str | None = None


@dataclass(frozen=True, slots=True)
class Counted:
    """An example that counts. position: of its row in the scope, from 1. at_s: never falls."""

    position: int
    example: Example
    at_s: float


@dataclass
class RecentNames:
    """A bounded memory of names: at least the last `capacity` distinct ones, at most twice as many.

    A function of the names in their order alone. It keeps digests of 8 bytes.
    """

    capacity: int = _REMEMBERED
    _newer: set[int] = field(default_factory=set, repr=False)
    _older: set[int] = field(default_factory=set, repr=False)

    def __len__(self) -> int:
        """Return how many names are remembered."""
        return len(self._newer | self._older)

    def __contains__(self, name: str) -> bool:
        """Return whether a name is remembered."""
        digest = _digest(name)
        return digest in self._newer or digest in self._older

    def add(self, name: str) -> None:
        """Remember a name as the most recent one."""
        self._newer.add(_digest(name))
        if len(self._newer) >= self.capacity:
            self._older, self._newer = self._newer, set()


@dataclass(slots=True)
class _Group:
    """A group that may still grow. chosen: the input that counts unless another one comes first."""

    last_s: float
    chosen: Counted


@dataclass
class CountedExamples:
    """Chooses the examples that count, from all of a scope in the order of the database.

    A group is complete after window_s without another input; then one of its inputs counts, drawn
    by the names of the inputs, which are random. An input whose text has counted before does not
    take part. Memory is bounded: 10,000 open groups, and the last 20,000 groups and texts.

    repeated: examples whose text had counted before. grouped: examples beside another one of their
    group that was taken instead.
    """

    window_s: float
    repeated: int = 0
    grouped: int = 0
    _open: OrderedDict[str, _Group] = field(default_factory=OrderedDict, repr=False)
    _closed: RecentNames = field(default_factory=RecentNames, repr=False)
    _texts: RecentNames = field(default_factory=RecentNames, repr=False)
    _now_s: float = -math.inf

    def add(self, position: int, example: Example) -> list[Counted]:
        """Receive one example and return those that count now: of groups that became complete."""
        # A clock that goes back neither reopens a group nor shortens a span.
        self._now_s = max(self._now_s, example.at_s)
        counted = list(self._complete())
        if example.coin is not None:
            self._receive(Counted(position, example, self._now_s))
        return counted

    def clear(self) -> None:
        """Forget the open groups: what they hold came before a suspension."""
        for name in self._open:
            self._closed.add(name)
        self._open.clear()

    def _complete(self) -> Iterator[Counted]:
        while self._open:
            oldest = next(iter(self._open.values()))
            is_silent = self._now_s - oldest.last_s > self.window_s
            if not is_silent and len(self._open) < _MAX_OPEN_GROUPS:
                return
            counted = self._close_oldest()
            if counted is not None:
                yield counted

    def _receive(self, one: Counted) -> None:
        name, text = one.example.group, one.example.text
        if name in self._closed:
            self.grouped += 1
            return
        if text in self._texts:
            # A text that is sent again stays remembered.
            self._texts.add(text)
            self.repeated += 1
            return
        group = self._open.get(name)
        if group is None:
            self._open[name] = _Group(self._now_s, one)
            return
        self.grouped += 1
        group.last_s = self._now_s
        if _digest(one.example.input) < _digest(group.chosen.example.input):
            group.chosen = one
        self._open.move_to_end(name)

    def _close_oldest(self) -> Counted | None:
        name, group = self._open.popitem(last=False)
        self._closed.add(name)
        chosen = group.chosen
        if chosen.example.text in self._texts:
            self.repeated += 1
            return None
        self._texts.add(chosen.example.text)
        return Counted(chosen.position, chosen.example, group.last_s)


def is_kept(name: str, share: float) -> bool:
    """Return whether a random name is among the share that is kept. share: in [0, 1]."""
    return share >= 1.0 or _digest(name) < share * 2.0**64


def _digest(name: str) -> int:
    """Return 8 bytes whose order is random where names are, whatever they look like."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
