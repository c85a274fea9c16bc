"""Earns a claim: folds audited inputs, in order, into e-processes of candidates and thresholds."""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from serving.evidence.statistics.betting import Capital
from serving.evidence.statistics.placement import Opening, bar

_MAX_OPEN_GROUPS = 10_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a candidate made of one input. loss: in [0, 1], against the reference."""

    confidence: float
    loss: float


@dataclass(frozen=True, slots=True)
class Example:
    """One audited input, as far as earning needs it.

    input: a name drawn at random at acceptance; it decides which input of a group counts. group:
    inputs that are not independent share it. text: digest of the normalised text. at_s: seconds,
    any epoch. coin: probability of the fair coin that chose the input, the same for accepted and
    escalated ones, 1 in shadow; None where the input was labelled for another reason, and then it
    only trains. outcomes: of each candidate that existed, by name. missing: the reference gave no
    verdict for reasons of the input, which is a loss of 1 of every candidate.
    """

    input: str
    group: str
    text: str
    at_s: float
    coin: float | None
    outcomes: Mapping[str, Outcome]
    missing: bool = False


@dataclass(frozen=True, slots=True)
class Reopened:
    """The claim was suspended: only later evidence counts, over a span that doubles."""

    reason: str = ""


Row = Example | Opening | Reopened


@dataclass(frozen=True, slots=True)
class EarningRules:
    """What a claim needs besides its e-value.

    group_window_s: silence after which a group is complete. min_groups: that the hypothesis
    accepted. min_span_h: hours between the first and the last of these; it doubles with each
    suspension, up to max_span_h. max_missing: share of missing verdicts up to which claims are
    earned. stop_after: counted examples of an episode after which nothing on course means that the
    claim is not earnable; also the number of further ones within which "on course" expects it.
    """

    target: float
    group_window_s: float = 10.0
    min_groups: int = 50
    min_span_h: float = 1.0
    max_span_h: float = 168.0
    max_missing: float = 0.05
    stop_after: int = 5_000


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A candidate and threshold under test. number: j, from 1, over all episodes of the scope.

    seen: counted examples since it was opened. accepted: those at or above its threshold, on which
    it bets. first_s, last_s: times of the first and last of these. opened: the row's position.
    """

    number: int
    opening: Opening
    opened: int
    capital: Capital
    seen: int = 0
    accepted: int = 0
    first_s: float = math.inf
    last_s: float = -math.inf

    @property
    def coverage(self) -> float:
        """Return the share of inputs that it accepts; 0 before any was seen."""
        return self.accepted / self.seen if self.seen else 0.0

    @property
    def span_h(self) -> float:
        """Return the hours that its evidence spans."""
        return max(0.0, self.last_s - self.first_s) / 3600.0

    @property
    def has_enough_evidence(self) -> bool:
        """Return whether its e-value reaches the bar of its number."""
        return self.capital.log_e >= math.log(bar(self.number))

    def after(self, outcome: Outcome, at_s: float) -> "Hypothesis":
        """Return the hypothesis with one more counted example."""
        if outcome.confidence < self.opening.threshold:
            return Hypothesis(
                self.number, self.opening, self.opened, self.capital, self.seen + 1,
                self.accepted, self.first_s, self.last_s,
            )  # fmt: skip
        return Hypothesis(
            self.number, self.opening, self.opened, self.capital.after(outcome.loss),
            self.seen + 1, self.accepted + 1, min(self.first_s, at_s), max(self.last_s, at_s),
        )  # fmt: skip

    def is_on_course(self, within: int) -> bool:
        """Return whether it would be earned within so many more examples at its present pace."""
        missing = math.log(bar(self.number)) - self.capital.log_e
        return self.capital.log_e > 0.0 and missing * self.seen <= within * self.capital.log_e


@dataclass(slots=True)
class _Group:
    """A group that may still grow. members: (position of the row, example)."""

    last_s: float
    members: list[tuple[int, Example]]


@dataclass
class Earning:
    """The evidence of one scope, folded from its rows in the order of the database.

    Equal rows in equal order give an equal state, so a restart recomputes it. At most one input of
    a group counts, chosen by the names of its inputs when the group is complete, and at most one of
    a normalised text. A hypothesis counts only examples whose row came after its opening.

    hypotheses: under test in this episode. earned: the claimed one, which accepts most of those
    with enough evidence; None until then and after a suspension. tested: hypotheses of the scope so
    far. counted: examples that counted in this episode, of them `missing` without a verdict.
    """

    rules: EarningRules
    hypotheses: list[Hypothesis] = field(default_factory=list)
    earned: Hypothesis | None = None
    tested: int = 0
    suspensions: int = 0
    counted: int = 0
    missing: int = 0
    rows: int = 0
    _open: OrderedDict[str, _Group] = field(default_factory=OrderedDict, repr=False)
    _closed: set[str] = field(default_factory=set, repr=False)
    _texts: set[str] = field(default_factory=set, repr=False)
    _now_s: float = field(default=-math.inf, repr=False)

    def extend(self, rows: Iterable[Row]) -> "Earning":
        """Fold more rows and return the state."""
        for row in rows:
            self.add(row)
        return self

    def add(self, row: Row) -> Hypothesis | None:
        """Fold one row. Returns the hypothesis that is claimed by it, None if that is unchanged."""
        before = self.earned
        self.rows += 1
        if isinstance(row, Opening):
            self._test(row)
        elif isinstance(row, Reopened):
            self._reopen()
        else:
            self._receive(row)
        return None if self.earned is before else self.earned

    @property
    def min_span_h(self) -> float:
        """Return the hours of evidence that a claim of this episode needs."""
        return min(self.rules.min_span_h * 2.0**self.suspensions, self.rules.max_span_h)

    @property
    def is_not_earnable(self) -> bool:
        """Return whether the stop rule holds: many examples, none earned, none on course."""
        enough = self.counted >= self.rules.stop_after
        on_course = any(h.is_on_course(self.rules.stop_after) for h in self.hypotheses)
        return enough and self.earned is None and not on_course

    def close_groups(self) -> Hypothesis | None:
        """Count every group as if it were complete, as a replay does at the end of its file."""
        before = self.earned
        while self._open:
            self._count_oldest()
        return None if self.earned is before else self.earned

    def _test(self, opening: Opening) -> None:
        self.tested += 1
        capital = Capital(self.rules.target, opening.expected_error)
        self.hypotheses.append(Hypothesis(self.tested, opening, self.rows, capital))

    def _reopen(self) -> None:
        self.suspensions += 1
        self.hypotheses.clear()
        self._open.clear()
        self.earned, self.counted, self.missing = None, 0, 0

    def _receive(self, example: Example) -> None:
        # A clock that goes back neither reopens a group nor shortens a span.
        self._now_s = max(self._now_s, example.at_s)
        while self._open:
            oldest = next(iter(self._open.values()))
            quiet = self._now_s - oldest.last_s > self.rules.group_window_s
            if not quiet and len(self._open) < _MAX_OPEN_GROUPS:
                break
            self._count_oldest()
        if example.coin is None or example.group in self._closed:
            return
        group = self._open.setdefault(example.group, _Group(self._now_s, []))
        group.last_s = self._now_s
        group.members.append((self.rows, example))
        self._open.move_to_end(example.group)

    def _count_oldest(self) -> None:
        name, group = self._open.popitem(last=False)
        self._closed.add(name)
        new = [member for member in group.members if member[1].text not in self._texts]
        if new:
            self._count(*min(new, key=lambda member: _rank(member[1].input)), group.last_s)

    def _count(self, position: int, example: Example, at_s: float) -> None:
        self._texts.add(example.text)
        self.counted += 1
        self.missing += example.missing
        for place, hypothesis in enumerate(self.hypotheses):
            outcome = example.outcomes.get(hypothesis.opening.candidate)
            if outcome is not None and position > hypothesis.opened:
                loss = 1.0 if example.missing else outcome.loss
                after = hypothesis.after(Outcome(outcome.confidence, loss), at_s)
                self.hypotheses[place] = after
                self._claim(after)

    def _claim(self, hypothesis: Hypothesis) -> None:
        if self.earned is not None and self.earned.number == hypothesis.number:
            return
        more = self.earned is None or hypothesis.coverage > self._now(self.earned).coverage
        if more and self._is_earned(hypothesis):
            self.earned = hypothesis

    def _now(self, hypothesis: Hypothesis) -> Hypothesis:
        return next(h for h in self.hypotheses if h.number == hypothesis.number)

    def _is_earned(self, hypothesis: Hypothesis) -> bool:
        return (
            hypothesis.has_enough_evidence
            and hypothesis.accepted >= self.rules.min_groups
            and hypothesis.span_h >= self.min_span_h
            and self.missing <= self.rules.max_missing * self.counted
        )


def _rank(name: str) -> bytes:
    """Return a key whose order is random where names are, whatever they look like."""
    return hashlib.blake2b(name.encode(), digest_size=8).digest()
