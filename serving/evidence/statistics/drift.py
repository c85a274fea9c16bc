"""Signs that traffic has changed. They only raise the audit rate: the watch alone suspends.

Each compares recent inputs with those of the time when the claim was earned.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from serving.evidence.statistics.betting import Floats

SIGNIFICANCE = 1e-4
"""False signals per look; a signal costs some hundred audits."""

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Embedding:
    """The distribution of text vectors while a claim was earned. count: of texts.

    mean: (d,). spread: trace of the covariance. spread_of_squares: trace of its square.
    """

    mean: Floats
    spread: float
    spread_of_squares: float
    count: int


def embedding_of(vectors: Floats) -> Embedding:
    """Return the distribution of vectors, (n, d). Raises ValueError below two."""
    if len(vectors) < 2:
        raise ValueError(f"{len(vectors)} vectors are too few")
    mean = vectors.mean(axis=0)
    centred = vectors - mean
    # The smaller of the two products has the same non-zero eigenvalues.
    wide = len(vectors) < vectors.shape[1]
    product = (centred @ centred.T if wide else centred.T @ centred) / (len(vectors) - 1)
    return Embedding(mean, float(np.trace(product)), float((product**2).sum()), len(vectors))


def embeddings_moved(
    baseline: Embedding, recent: Floats, significance: float = SIGNIFICANCE
) -> bool:
    """Return whether the mean vector moved further than chance moves it. recent: (m, d).

    The squared distance of two means of one distribution is a mixture of chi-squares; it is
    compared with the scaled chi-square of the same mean and variance (Satterthwaite).
    """
    scale = 1.0 / baseline.count + 1.0 / len(recent)
    distance = float(((recent.mean(axis=0) - baseline.mean) ** 2).sum())
    if baseline.spread == 0.0:
        return distance > 0.0
    unit = baseline.spread_of_squares / baseline.spread * scale
    freedom = baseline.spread**2 / baseline.spread_of_squares
    return bool(special.chdtrc(freedom, distance / unit) < significance)


def label_shares_moved(
    baseline: Counts, recent: Counts, significance: float = SIGNIFICANCE
) -> bool:
    """Return whether the shares of local labels differ: a chi-square test of two rows of counts.

    baseline, recent: (k,). Labels expected less than five times in either row are counted as one.
    """
    table = np.stack([baseline, recent]).astype(np.float64)
    if (table.sum(axis=1) == 0.0).any():
        return False
    expected = table.sum(axis=0) * (table.sum(axis=1) / table.sum()).min()
    rare = expected < 5.0
    pooled = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)])
    pooled = pooled[:, pooled.sum(axis=0) > 0.0]
    if pooled.shape[1] < 2:
        return False
    expected = np.outer(pooled.sum(axis=1), pooled.sum(axis=0)) / pooled.sum()
    distance = ((pooled - expected) ** 2 / expected).sum()
    return bool(special.chdtrc(pooled.shape[1] - 1, distance) < significance)


def escalations_surged(
    baseline: tuple[int, int], recent: tuple[int, int], significance: float = SIGNIFICANCE
) -> bool:
    """Return whether the share of escalated inputs rose: a one-sided test of two shares.

    baseline, recent: (escalated, inputs). Escalations for overload, deadline, route or unsupported
    input are not counted.
    """
    (before, of_before), (now, of_now) = baseline, recent
    if of_before == 0 or of_now == 0:
        return False
    pooled = (before + now) / (of_before + of_now)
    deviation = math.sqrt(pooled * (1.0 - pooled) * (1.0 / of_before + 1.0 / of_now))
    rise = now / of_now - before / of_before
    return deviation > 0.0 and bool(special.ndtr(-rise / deviation) < significance)
