"""Earns a claim: folds audited inputs, in order, into e-processes of candidates and thresholds.

The claim is false with a probability of at most 0.05 for the scope, whatever is tested when: given
all that was known when the j-th hypothesis was opened, it reaches its bar by chance with a
probability of at most 0.05 / (j (j + 1)), and these sum to 0.05. Closed testing would lower the
bar, and would not keep this promise: which later hypotheses are true depends on the evidence.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from serving.evidence.statistics.betting import Capital
from serving.evidence.statistics.dependence import LabelRuns
from serving.evidence.statistics.examples import (
    Counted,
    CountedExamples,
    Example,
    Outcome,
    is_kept,
)
from serving.evidence.statistics.net import NetCapital
from serving.evidence.statistics.placement import Opening, bar

_ONE_LABEL_FACTOR = 20
"""Labels, as a multiple of min_groups, before traffic of almost one label alone earns a claim."""


@dataclass(frozen=True, slots=True)
class Reopened:
    """The claim was suspended: only later evidence counts, over a span that doubles."""

    reason: str = ""


Row = Example | Opening | Reopened

_CLEARLY_MORE = 0.05
"""Coverage by which another hypothesis must exceed the claimed one to replace it.

A new claim is watched from its first audit on. Two hypotheses of about equal coverage replaced each
other 13 times within a minute of traffic, and what the watch had seen was lost each time.
"""


@dataclass(frozen=True, slots=True)
class EarningRules:
    """What a claim needs besides its e-value.

    target: largest mean loss, in (0, 1). group_window_s: silence after which a group is complete.
    min_groups: that the hypothesis accepted. min_span_h: hours between the first and the last of
    these; it doubles with each suspension, up to max_span_h. max_missing: share of missing verdicts
    up to which claims are earned. stop_after: counted examples of an episode after which nothing on
    course means that the claim is not earnable; also the number of further ones within which "on
    course" expects it. badly_worse: largest share of badly worse answers, for the loss `net_worse`,
    whose target is then (1 + net share) / 2; None for other losses.
    """

    target: float
    group_window_s: float = 10.0
    min_groups: int = 50
    min_span_h: float = 1.0
    max_span_h: float = 168.0
    max_missing: float = 0.05
    stop_after: int = 5_000
    badly_worse: float | None = None

    def capital(self, expected: float) -> Capital | NetCapital:
        """Return the test of a hypothesis before any example. expected: its mean loss."""
        if self.badly_worse is None:
            return Capital(self.target, expected)
        return NetCapital.of(self.target, self.badly_worse, expected)


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A candidate and threshold under test. number: j, from 1, over all episodes of the scope.

    seen: counted examples since it was opened. accepted: those at or above its threshold, on which
    it bets. first_s, last_s: times of the first and last of these. opened: the row's position.
    """

    number: int
    opening: Opening
    opened: int
    capital: Capital | NetCapital
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
            return replace(self, seen=self.seen + 1)
        capital = self.capital
        return replace(
            self,
            capital=capital.after(outcome.loss, outcome.badly_worse)
            if isinstance(capital, NetCapital)
            else capital.after(outcome.loss),
            seen=self.seen + 1,
            accepted=self.accepted + 1,
            first_s=min(self.first_s, at_s),
            last_s=max(self.last_s, at_s),
        )

    @property
    def is_hopeless(self) -> bool:
        """Return whether a judge has shown that it breaks a limit."""
        return isinstance(self.capital, NetCapital) and self.capital.is_hopeless

    @property
    def progress(self) -> float:
        """Return the share of the evidence that it needs, in [0, 1]."""
        return min(1.0, max(0.0, self.capital.log_e / math.log(bar(self.number))))

    def is_on_course(self, within: int) -> bool:
        """Return whether it would be earned within so many more examples at its present pace."""
        missing = math.log(bar(self.number)) - self.capital.log_e
        return self.capital.log_e > 0.0 and missing * self.seen <= within * self.capital.log_e


@dataclass
class Earning:
    """The evidence of one scope, folded from its rows in the order of the database.

    Equal rows in equal order give an equal state, so a restart recomputes it. A hypothesis counts
    only examples whose row came after its opening, and of these what `CountedExamples` lets count.

    hypotheses: under test in this episode. earned: the claimed one; another with enough evidence
    replaces it where it clearly accepts more. None until then and after a suspension. tested:
    hypotheses of the scope so far. counted: examples that counted in this episode, of them
    `missing` without a verdict. rows: folded so far. examples: which of them count. runs: how far
    consecutive labels are correlated; hypotheses bet on as many examples as there are independent
    ones.
    """

    rules: EarningRules
    hypotheses: list[Hypothesis] = field(default_factory=list)
    earned: Hypothesis | None = None
    tested: int = 0
    suspensions: int = 0
    counted: int = 0
    missing: int = 0
    rows: int = 0
    examples: CountedExamples = field(init=False)
    runs: LabelRuns = field(default_factory=LabelRuns)

    def __post_init__(self) -> None:
        self.examples = CountedExamples(self.rules.group_window_s)

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
            for one in self.examples.add(self.rows, row):
                self._count(one)
        return None if self.earned is before else self.earned

    @property
    def min_span_h(self) -> float:
        """Return the hours of evidence that a claim of this episode needs."""
        return min(self.rules.min_span_h * 2.0**self.suspensions, self.rules.max_span_h)

    @property
    def is_not_earnable(self) -> bool:
        """Return whether the stop rule holds: many examples, none earned, none on course.

        Of judged losses also where each hypothesis is shown to break a limit.
        """
        if self.earned is None and self.hypotheses and all(h.is_hopeless for h in self.hypotheses):
            return True
        enough = self.counted >= self.rules.stop_after
        on_course = any(h.is_on_course(self.rules.stop_after) for h in self.hypotheses)
        return enough and self.earned is None and not on_course

    def _test(self, opening: Opening) -> None:
        self.tested += 1
        capital = self.rules.capital(opening.expected_error)
        self.hypotheses.append(Hypothesis(self.tested, opening, self.rows, capital))

    def _reopen(self) -> None:
        self.suspensions += 1
        self.hypotheses.clear()
        self.examples.clear()
        self.earned, self.counted, self.missing = None, 0, 0

    def _count(self, one: Counted) -> None:
        example = one.example
        self.counted += 1
        self.missing += example.missing
        # The share depends on earlier examples alone, and the names are random: bets stay fair.
        share = self.runs.independent_share
        if example.label is not None:
            self.runs.add(example.label)
        if not is_kept(f"dependence:{example.input}", share):
            return
        for place, hypothesis in enumerate(self.hypotheses):
            outcome = example.outcomes.get(hypothesis.opening.candidate)
            if outcome is not None and one.position > hypothesis.opened:
                if example.missing:
                    outcome = Outcome(outcome.confidence, 1.0)
                after = hypothesis.after(outcome, one.at_s)
                self.hypotheses[place] = after
                self._claim(after)

    def _claim(self, hypothesis: Hypothesis) -> None:
        if self.earned is not None and self.earned.number == hypothesis.number:
            return
        needed = 0.0 if self.earned is None else self._now(self.earned).coverage + _CLEARLY_MORE
        if hypothesis.coverage >= needed and self._is_earned(hypothesis):
            self.earned = hypothesis

    def _now(self, hypothesis: Hypothesis) -> Hypothesis:
        return next(h for h in self.hypotheses if h.number == hypothesis.number)

    def _is_earned(self, hypothesis: Hypothesis) -> bool:
        return (
            hypothesis.has_enough_evidence
            and hypothesis.accepted >= self.rules.min_groups
            and hypothesis.span_h >= self.min_span_h
            and self.missing <= self.rules.max_missing * self.counted
            # Early inputs counted in full where one label alone had been seen.
            and self.counted * self.runs.independent_share >= self.rules.min_groups
            and self.runs.is_varied(self.rules.target, _ONE_LABEL_FACTOR * self.rules.min_groups)
        )
