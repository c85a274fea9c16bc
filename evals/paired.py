"""Computes differences between candidate and baseline on the same examples, with bounds.

Pure: arrays in, numbers out. Every bound is one-sided at the given confidence, so that a lower and
an upper bound at 95 % together make an interval of 90 %.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import bootstrap, norm

from serving.contracts.attestation import Interval

Indices = NDArray[np.intp]
Values = NDArray[np.float64] | float
# Indices drawn in one batch; each has a row of counts in memory.
_BATCH_INDICES = 200_000


def accuracy_difference(
    baseline: NDArray[np.bool_], candidate: NDArray[np.bool_], confidence: float = 0.95
) -> Interval:
    """Return the difference of two accuracies with Tango's score bounds.

    baseline, candidate: (n,), whether each answer is right. Only discordant examples (exactly one
    answer is right) carry information. Source: T. Tango, "Equivalence test and confidence interval
    for the difference in proportions for the paired-sample design", Statistics in Medicine 17,
    1998, equation 5; it keeps its level for small samples and without discordant examples. Raises
    ValueError for no examples or unequal lengths.
    """
    if len(baseline) != len(candidate) or len(baseline) == 0:
        raise ValueError(f"{len(baseline)} and {len(candidate)} answers cannot be paired")
    n = len(baseline)
    gained = int(np.sum(candidate & ~baseline))
    lost = int(np.sum(baseline & ~candidate))
    estimate = (gained - lost) / n
    z = float(norm.ppf(confidence))
    lower = _score_bound(gained, lost, n, z)
    # By symmetry: the lower bound with the two models exchanged.
    upper = -_score_bound(lost, gained, n, z)
    return Interval(
        estimate=estimate,
        lower=min(lower, estimate),
        upper=max(upper, estimate),
        method="Tango score",
    )


@lru_cache(maxsize=16_384)
def _score_bound(gained: int, lost: int, n: int, z: float) -> float:
    """Return the smallest difference that a one-sided score test at z does not reject."""

    def excess(difference: float) -> float:
        return _score(gained, lost, n, difference) - z

    least, estimate = -1.0 + 1e-12, (gained - lost) / n
    if estimate <= least or excess(least) <= 0:
        return -1.0
    return float(brentq(excess, least, estimate, xtol=1e-10))


def _score(gained: int, lost: int, n: int, difference: float) -> float:
    # Maximum-likelihood estimate of the probability of a loss, given the difference.
    a = 2.0 * n
    b = -gained - lost + (2.0 * n - gained + lost) * difference
    c = -lost * difference * (1.0 - difference)
    loss = (math.sqrt(max(b * b - 4.0 * a * c, 0.0)) - b) / (2.0 * a)
    variance = n * (2.0 * loss + difference * (1.0 - difference))
    above = gained - lost - n * difference
    if variance <= 0.0:
        return 0.0 if above == 0 else math.copysign(math.inf, above)
    return above / math.sqrt(variance)


def bootstrap_interval(
    value: Callable[[Indices], Values],
    n: int,
    *,
    seed: int,
    resamples: int = 10_000,
    confidence: float = 0.95,
) -> Interval:
    """Return a statistic of n examples with one-sided percentile-bootstrap bounds.

    value: the statistic of the examples at the given indices, (..., n) in and (...) out, repeats
    allowed. For a difference it evaluates both models on the same resample. The bounds are at least
    as wide as Tango's bounds for n examples without a discordant one: resamples of examples that
    all agree would give an interval of width zero. Raises ValueError for no examples.
    """
    if n == 0:
        raise ValueError("no examples to resample")
    examples = np.arange(n)
    estimate = float(value(examples))
    lower = upper = estimate
    # One example has one resample.
    if n > 1:
        found = bootstrap(
            (examples,),
            lambda chosen, axis: value(chosen),
            n_resamples=resamples,
            batch=max(1, _BATCH_INDICES // n),
            vectorized=True,
            axis=-1,
            # Both one-sided bounds in one call.
            confidence_level=2.0 * confidence - 1.0,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
        lower, upper = float(found.low), float(found.high)
    z_squared = float(norm.ppf(confidence)) ** 2
    least = z_squared / (n + z_squared)
    return Interval(
        estimate=estimate,
        lower=min(lower, estimate - least),
        upper=max(upper, estimate + least),
        method=f"bootstrap, {resamples} resamples, seed {seed}",
    )
