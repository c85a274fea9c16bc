"""Confidence intervals of shares and averages. Pure."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Normal quantile of a two-sided 95 % interval.
_Z = 1.959964
RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Share:
    """A share with its two-sided 95 % interval. of: the number that it is a share of."""

    value: float
    low: float
    high: float
    of: int


def wilson(count: int, of: int) -> Share:
    """Return count / of with Wilson's score interval; all of [0, 1] where `of` is 0."""
    if of == 0:
        return Share(math.nan, 0.0, 1.0, 0)
    p, z2 = count / of, _Z * _Z
    middle = (p + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z * math.sqrt(p * (1 - p) / of + z2 / (4 * of * of)) / (1 + z2 / of)
    return Share(p, max(0.0, middle - half), min(1.0, middle + half), of)


def bootstrap(
    statistic: Callable[[NDArray[np.intp]], float], n: int, seed: int
) -> tuple[float, float]:
    """Return the two-sided 95 % percentile interval of a statistic of n prompts.

    statistic: of the indices that were drawn, (n,).
    """
    draw = np.random.default_rng(seed)
    values = [statistic(draw.integers(0, n, n)) for _ in range(RESAMPLES)]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
