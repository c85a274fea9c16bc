"""Computes the divergence of a candidate's next-token distributions from the baseline's. Pure.

A distribution is stored as its most probable tokens and the sum of all others. Lumping tokens can
only lower the Kullback-Leibler divergence (data processing inequality), so the figures are lower
bounds; with 2,048 tokens kept, the rest is seldom a percent of the probability.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_LEAST = 1e-12


@dataclass(frozen=True, slots=True)
class Divergence:
    """Figures over all positions. KL in nats; agreement: share of equal most probable tokens."""

    positions: int
    kl_mean: float
    kl_p99: float
    agreement: float
    perplexity: float


def kl_kept(baseline: Floats, candidate: Floats) -> Floats:
    """Return the KL divergence of each position, in nats.

    baseline, candidate: (positions, kept) log-probabilities of the same tokens, natural log.
    """
    p, q = np.exp(baseline), np.exp(candidate)
    kept = np.sum(p * (baseline - candidate), axis=1)
    # Rounding may push the rest of an almost certain distribution below zero.
    p_rest = np.clip(1.0 - p.sum(axis=1), 0.0, 1.0)
    q_rest = np.clip(1.0 - q.sum(axis=1), _LEAST, 1.0)
    rest = np.where(p_rest > _LEAST, p_rest * np.log(np.maximum(p_rest, _LEAST) / q_rest), 0.0)
    return np.asarray(np.maximum(kept + rest, 0.0), dtype=np.float64)


def summarize(kl: Floats, agrees: NDArray[np.bool_], nll: Floats) -> Divergence:
    """Return the figures. kl, nll: (positions,), in nats; agrees: (positions,)."""
    return Divergence(
        positions=len(kl),
        kl_mean=float(kl.mean()),
        kl_p99=float(np.quantile(kl, 0.99)),
        agreement=float(agrees.mean()),
        perplexity=float(np.exp(nll.mean())),
    )
