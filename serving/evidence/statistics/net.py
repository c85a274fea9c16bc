"""Tests of the net share of worse answers, for judged losses: earn, give up, and watch.

The loss is (1 + worse - better) / 2, mostly one half, so that bets are sized by its variance: those
of a Bernoulli loss would need four times as many pairs. Predictable bets keep every test valid at
every time (Waudby-Smith and Ramdas, 2024, approximate GRAPA).
"""

import math
from dataclasses import dataclass, field, replace

from serving.evidence.statistics.betting import Capital
from serving.evidence.statistics.intervals import BoundedSequence, Interval
from serving.evidence.statistics.judged import JudgedLimits, judged_log_e
from serving.evidence.statistics.watching import Watch

_PRIOR = 10.0
"""Pairs that the expected mean and variance are worth in the running estimates."""

_PRIOR_VARIANCE = 0.05
_LARGEST_SHARE = 0.8
"""Of the largest bet that cannot lose everything."""

_HOPELESS_LOG_E = math.log(40.0)
_WATCH_BETS = (0.2, 0.5, 1.0, 1.6)
"""Bets on a raised loss, below 1 / target for every target up to 0.6."""


def target_loss(target_error: float) -> float:
    """Return the mean loss that a net share of worse answers is. Raises ValueError."""
    return JudgedLimits(margin=target_error / 2.0).target


def net_share(loss: float) -> float:
    """Return the share judged worse less the share judged better, from a mean loss."""
    return 2.0 * loss - 1.0


@dataclass(frozen=True, slots=True)
class NetCapital:
    """The e-process of "the mean loss is at least `target`, or too much is badly worse".

    expected: mean loss that is hoped for. badly: the e-process of the second limit. log_e_mean,
    log_e_worse: of the first, and of its contrary, "the mean loss is at most the target".
    """

    target: float
    expected: float
    badly: Capital
    log_e_mean: float = 0.0
    log_e_worse: float = 0.0
    losses: float = 0.0
    squares: float = 0.0
    count: int = 0

    @classmethod
    def of(cls, target: float, badly_worse: float, expected: float) -> "NetCapital":
        """Return the process before any pair. target: of the loss. badly_worse: its limit."""
        return cls(target, expected, Capital(badly_worse, badly_worse / 10.0))

    @property
    def log_e(self) -> float:
        """Return the natural logarithm of the e-value that one of both limits is broken."""
        return judged_log_e(self.log_e_mean, self.badly.log_e)

    @property
    def is_hopeless(self) -> bool:
        """Return whether the loss is shown to be above the target, or too much is badly worse."""
        share = self.badly.losses / max(1, self.badly.count)
        # Three times the limit, in at least 30 pairs: a stop rule, which costs no validity.
        is_bad = self.badly.count >= 30 and share > 3.0 * self.badly.target
        return self.log_e_worse >= _HOPELESS_LOG_E or is_bad

    def after(self, loss: float, badly_worse: float) -> "NetCapital":
        """Return the process with one more pair. Raises ValueError outside [0, 1]."""
        if not 0.0 <= loss <= 1.0:
            raise ValueError(f"a loss must be in [0, 1], not {loss!r}")
        weight = _PRIOR + self.count
        mean = (_PRIOR * self.expected + self.losses) / weight
        seen = self.squares - 2.0 * self.expected * self.losses + self.count * self.expected**2
        variance = (_PRIOR * _PRIOR_VARIANCE + seen) / weight - (mean - self.expected) ** 2
        distance = self.target - mean
        size = abs(distance) / (max(variance, 1e-4) + distance**2)
        better = min(size, _LARGEST_SHARE / (1.0 - self.target)) if distance > 0.0 else 0.0
        worse = min(size, _LARGEST_SHARE / self.target) if distance < 0.0 else 0.0
        return replace(
            self,
            badly=self.badly.after(badly_worse),
            log_e_mean=self.log_e_mean + math.log1p(better * (self.target - loss)),
            log_e_worse=self.log_e_worse + math.log1p(worse * (loss - self.target)),
            losses=self.losses + loss,
            squares=self.squares + loss**2,
            count=self.count + 1,
        )


@dataclass
class NetWatch:
    """The watch of a held claim with a judged loss. Fields as those of Watch.

    target: of the loss. badly_worse: the limit of the second watch.
    """

    target: float
    badly_worse: float
    alarm: float
    max_missing: float
    observed: BoundedSequence = field(default_factory=BoundedSequence)
    _states: list[float] = field(default_factory=lambda: [-math.inf] * len(_WATCH_BETS))
    _badly: Watch = field(init=False)

    def __post_init__(self) -> None:
        self._badly = Watch(self.badly_worse, self.alarm, self.max_missing)

    @property
    def audits(self) -> int:
        """Return the number of audits."""
        return self._badly.audits

    @property
    def missing(self) -> int:
        """Return the number of missing verdicts, each a loss of 1."""
        return self._badly.missing

    def add(self, loss: float | None, badly_worse: float = 0.0) -> None:
        """Count one audit of an accepted input; None is a missing verdict."""
        counted = 1.0 if loss is None else loss
        self._badly.add(None if loss is None else badly_worse)
        for place, (state, bet) in enumerate(zip(self._states, _WATCH_BETS, strict=True)):
            started = state + math.log1p(math.exp(-state)) if state > 0.0 else math.log1p(
                math.exp(state)
            )  # fmt: skip
            self._states[place] = started + math.log1p(bet * (counted - self.target))
        self.observed.add(counted)

    @property
    def interval(self) -> Interval:
        """Return the net share of worse answers with its interval, valid at every time."""
        found = self.observed.interval
        return Interval(net_share(found.mean), net_share(found.low), net_share(found.high))

    @property
    def log_detector(self) -> float:
        """Return the natural logarithm of the detector of the mean loss."""
        most = max(self._states)
        if most == -math.inf:
            return most
        total = sum(math.exp(state - most) for state in self._states)
        return most + math.log(total / len(self._states))

    @property
    def alarm_progress(self) -> float:
        """Return how near the nearer of both alarms is, as a share of its logarithm, in [0, 1]."""
        own = min(1.0, max(0.0, self.log_detector / math.log(self.alarm)))
        return max(own, self._badly.alarm_progress)

    @property
    def reason(self) -> str | None:
        """Return why the claim must be suspended now; None where it may stay."""
        if self.log_detector >= math.log(self.alarm):
            return "the share of worse answers rose above the target"
        found = self._badly.reason
        if found is not None and "missing" not in found:
            return "the share of badly worse answers rose above evidence.badly_worse"
        return found
