"""Intervals of a mean loss: of a fixed sample, and valid at every time.

An interval of a fixed sample is wrong too often when one looks after every example; a confidence
sequence covers the mean at all times together, with the stated probability.
"""

import math

import numpy as np
from scipy import special

from serving.reporting.intervals import CONFIDENCE as CONFIDENCE
from serving.reporting.intervals import Interval as Interval
from serving.reporting.intervals import clopper_pearson as clopper_pearson

_GRID = 1001
_LARGEST_BET = 0.5


def log_mixture(losses: float, count: int, mean: float) -> float:
    """Return the log of an e-process against "the mean is `mean`": a uniform mixture of bets.

    The mixture of Bernoulli likelihood ratios over all alternatives is a ratio of Beta functions
    (Robbins, 1970). Each ratio is convex in the loss, so it is at most 1 on average for any loss in
    [0, 1] of that mean. losses: their sum. mean: in (0, 1).
    """
    mixed = float(special.betaln(1.0 + losses, 1.0 + count - losses))
    return mixed - losses * math.log(mean) - (count - losses) * math.log1p(-mean)


def mean_sequence(losses: float, count: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the bounds of a mean loss, valid at every time. losses: sum of `count` in [0, 1].

    Raises ValueError. Without examples the interval is [0, 1] about one half.
    """
    if not 0.0 <= losses <= count:
        raise ValueError(f"a sum of {losses!r} of {count!r} losses in [0, 1]")
    if count == 0:
        return Interval(0.5, 0.0, 1.0)
    # Takes 23 MB, which a gateway without audits saves.
    from scipy import optimize

    mean = losses / count
    bar = -math.log(1.0 - confidence)

    def excess(candidate: float) -> float:
        return log_mixture(losses, count, candidate) - bar

    least, most = 1e-12, 1.0 - 1e-12
    inside = min(max(mean, least), most)
    low = 0.0 if excess(least) <= 0.0 else optimize.brentq(excess, least, inside)
    high = 1.0 if excess(most) <= 0.0 else optimize.brentq(excess, inside, most)
    return Interval(mean, float(low), float(high))


class BoundedSequence:
    """Bounds of the mean of values in [0, 1], valid at every time, by hedged betting.

    Narrow where the values vary little, which `mean_sequence` is not. Waudby-Smith and Ramdas
    (2024), section 4.4: two capitals against each of 1,001 possible means, with predictable bets
    sized by the variance seen so far (an empirical-Bernstein plug-in).
    """

    def __init__(self, confidence: float = CONFIDENCE) -> None:
        self._bar = math.log(2.0 / (1.0 - confidence))
        self._grid = np.linspace(0.0, 1.0, _GRID)
        self._rises, self._falls = np.zeros(_GRID), np.zeros(_GRID)
        self._refuted = np.zeros(_GRID, dtype=bool)
        self._sum = 0.0
        self._squares = 0.25
        self.count = 0

    def add(self, value: float) -> None:
        """Count one more value."""
        time = self.count + 1
        variance = self._squares / time
        bet = math.sqrt(2.0 * self._bar / (variance * time * math.log(time + 1.0)))
        up = np.minimum(bet, _LARGEST_BET / np.maximum(self._grid, 1e-12))
        down = np.minimum(bet, _LARGEST_BET / np.maximum(1.0 - self._grid, 1e-12))
        self._rises += np.log1p(up * (value - self._grid))
        self._falls += np.log1p(down * (self._grid - value))
        # The running intersection of a confidence sequence is one, too.
        self._refuted |= np.maximum(self._rises, self._falls) >= self._bar
        self.count = time
        self._sum += value
        self._squares += (value - (0.5 + self._sum) / (time + 1)) ** 2

    @property
    def interval(self) -> Interval:
        """Return the bounds now; [0, 1] about one half before any value."""
        if not self.count:
            return Interval(0.5, 0.0, 1.0)
        mean = self._sum / self.count
        kept = np.flatnonzero(~self._refuted)
        if len(kept) == 0:
            # The mean itself was refuted early: it has moved. Nothing narrower can be said.
            return Interval(mean, 0.0, 1.0)
        step = 1.0 / (_GRID - 1)
        low, high = float(self._grid[kept[0]]) - step, float(self._grid[kept[-1]]) + step
        return Interval(mean, max(0.0, low), min(1.0, high))
