"""Losses that a judge decides: a shortcut's answer against the reference's, in both orders.

A judge prefers an order and a style, so that equal answers do not always tie. The loss of the
reference against itself, on the same prompts, says what a judged loss is worth in a scope.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from serving.evidence.statistics.intervals import Interval, mean_sequence

Preference = Literal["better", "same", "worse", "badly_worse"]
"""What a judge finds of the shortcut's answer, whichever place it had."""

_WORTH = {"better": 0.0, "same": 0.5, "worse": 1.0, "badly_worse": 1.0}


@dataclass(frozen=True, slots=True)
class JudgedLimits:
    """What a judged claim must keep, both at once.

    margin: above 0.5, the loss of an answer that is as good as the reference's. badly_worse: share
    of answers that may be badly worse.
    """

    margin: float = 0.05
    badly_worse: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 < self.margin < 0.5:
            raise ValueError(f"margin must be in (0, 0.5), not {self.margin!r}")
        if not 0.0 < self.badly_worse < 1.0:
            raise ValueError(f"badly_worse must be in (0, 1), not {self.badly_worse!r}")

    @property
    def target(self) -> float:
        """Return the largest mean of judged losses."""
        return 0.5 + self.margin


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """One judged example. loss: (1 + worse - better) / 2. badly_worse: 1.0 or 0.0."""

    loss: float
    badly_worse: float


def judged_pair(first: Preference, second: Preference) -> JudgedPair:
    """Return the losses of one pair of answers from the verdicts in both orders.

    Each is the mean over the orders: a judge that follows the place alone finds a tie, and what is
    badly worse in one order alone counts half.
    """
    orders = (first, second)
    return JudgedPair(
        sum(_WORTH[one] for one in orders) / 2.0,
        sum(one == "badly_worse" for one in orders) / 2.0,
    )


def judged_log_e(mean: float, badly_worse: float) -> float:
    """Return the log e-value of "one of both limits is broken", from one of each.

    The smaller of the two: it is an e-process whichever limit is broken (union of hypotheses).
    """
    return min(mean, badly_worse)


@dataclass(frozen=True, slots=True)
class JudgedBaseline:
    """The reference against itself. loss, badly_worse: intervals that are valid at every time."""

    loss: Interval
    badly_worse: Interval

    def is_unjudgeable(self, limits: JudgedLimits) -> bool:
        """Return whether the reference itself breaks a limit, so that no shortcut can keep it.

        The scope then stays at the reference.
        """
        return self.loss.low > limits.target or self.badly_worse.low > limits.badly_worse


def judged_baseline(pairs: Sequence[JudgedPair], confidence: float = 0.95) -> JudgedBaseline:
    """Return the baseline from pairs of the reference's own answers, the later one as a shortcut's.

    Each interval is at half of the allowed error, so that both hold together.
    """
    each = (1.0 + confidence) / 2.0
    return JudgedBaseline(
        mean_sequence(sum(pair.loss for pair in pairs), len(pairs), each),
        mean_sequence(sum(pair.badly_worse for pair in pairs), len(pairs), each),
    )
