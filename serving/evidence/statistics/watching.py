"""Watches a held claim: an e-detector of a mean loss above the target.

Shiryaev-Roberts over a mixture of bets (Shin, Ramdas and Rinaldo, "E-detectors", 2024): each bet's
detector is the sum, over all times at which the error may have risen, of the capital won since.
While the mean loss is at most the target, the expected time to the first alarm is at least `alarm`
audits.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from serving.evidence.statistics.betting import Floats, stake

ALARM = 10_000.0
"""Audits between two false alarms, at least, at an error equal to the target."""

_RATIOS = (1.2, 1.4, 1.7, 2.1, 2.7, 3.5, 5.0)
"""Errors, as multiples of the target, that the bets are placed on."""

_MISSING_WINDOW = 400
_MISSING_LEAST = 100


def alternatives(target: float) -> Floats:
    """Return the raised errors that the mixture bets on, ascending. Raises ValueError."""
    if not 0.0 < target < 1.0:
        raise ValueError(f"target must be in (0, 1), not {target!r}")
    raised = target * np.array(_RATIOS)
    # For a large target the multiples end at 1: odds are raised instead.
    return np.minimum(raised, 1.0 - (1.0 - target) / np.array(_RATIOS))


def first_state(target: float, streams: tuple[int, ...] = ()) -> Floats:
    """Return the detectors' state before any audit: (*streams, bets), log values."""
    return np.full((*streams, len(alternatives(target))), -np.inf)


def next_state(state: Floats, loss: Floats, target: float) -> Floats:
    """Return the detectors after one more audit of each stream.

    state: (..., bets), natural logarithms. loss: (...) in [0, 1].
    """
    growth = np.log1p(stake(alternatives(target), target) * (target - loss[..., None]))
    following: Floats = np.logaddexp(0.0, state) + growth
    return following


def detector(state: Floats) -> Floats:
    """Return the log of the mixture's detector, (...). An alarm when it reaches log(alarm)."""
    mixed: Floats = np.logaddexp.reduce(state, axis=-1) - np.log(state.shape[-1])
    return mixed


@dataclass
class Watch:
    """The watch of one held claim, folded from its audited accepted inputs in order.

    Duplicates count as drawn, and so does every input of a group. A missing verdict is a loss of 1.
    max_missing: share of the last 400 audits, at least of 100, that suspends.
    """

    target: float
    alarm: float = ALARM
    max_missing: float = 0.05
    audits: int = 0
    missing: int = 0
    _state: Floats = field(init=False, repr=False)
    _recent: deque[bool] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._state = first_state(self.target)
        self._recent = deque(maxlen=_MISSING_WINDOW)

    def add(self, loss: float | None) -> None:
        """Count one audit of an accepted input; None is a missing verdict.

        Raises ValueError for a loss outside [0, 1].
        """
        counted = 1.0 if loss is None else loss
        if not 0.0 <= counted <= 1.0:
            raise ValueError(f"a loss must be in [0, 1], not {loss!r}")
        self._state = next_state(self._state, np.asarray(counted), self.target)
        self._recent.append(loss is None)
        self.audits += 1
        self.missing += loss is None

    def suspect(self, loss: float) -> None:
        """Bet on an answer that no coin chose: it may raise the alarm, and is not an audit.

        Raises ValueError for a loss outside [0, 1].
        """
        if not 0.0 <= loss <= 1.0:
            raise ValueError(f"a loss must be in [0, 1], not {loss!r}")
        self._state = next_state(self._state, np.asarray(loss), self.target)

    def extend(self, losses: Iterable[float | None]) -> "Watch":
        """Count audits in order and return the watch."""
        for loss in losses:
            self.add(loss)
        return self

    @property
    def log_detector(self) -> float:
        """Return the natural logarithm of the detector, -inf before the first audit."""
        return float(detector(self._state))

    @property
    def alarm_progress(self) -> float:
        """Return the logarithm of the detector as a share of the alarm's, in [0, 1]."""
        return min(1.0, max(0.0, self.log_detector / float(np.log(self.alarm))))

    @property
    def reason(self) -> str | None:
        """Return why the claim must be suspended now; None where it may stay."""
        if self.log_detector >= np.log(self.alarm):
            return "the error rose above the target"
        allowed = self.max_missing * max(len(self._recent), _MISSING_LEAST)
        if sum(self._recent) > allowed:
            return f"more than {self.max_missing:.0%} of recent verdicts are missing"
        return None
