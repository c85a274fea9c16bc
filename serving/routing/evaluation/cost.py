"""The value of complexity scores: accuracy against the share of expensive calls.

A router must be better than sending the same share at random.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.contracts.routing import TIERS, Tier
from serving.routing.evaluation.intervals import bootstrap

RATES = (0.1, 0.25, 0.5, 0.75, 0.9)
SEED = 7


@dataclass(frozen=True, slots=True)
class AtRate:
    """Accuracies where this share of the prompts goes to the expensive model, and intervals.

    random: expected. oracle: the best that any choice of the share can do. gain: router less
    random, with its 95 % interval.
    """

    rate: float
    router: float
    router_interval: tuple[float, float]
    random: float
    oracle: float
    gain: float
    gain_interval: tuple[float, float]

    @property
    def beats_random(self) -> bool:
        """Return whether the whole interval of the gain lies above 0."""
        return self.gain_interval[0] > 0.0


@dataclass(frozen=True, slots=True)
class CostReport:
    """One data set. average_gain: router less random over all rates."""

    prompts: int
    always_cheap: float
    always_expensive: float
    rates: tuple[AtRate, ...]
    average_gain: float
    average_interval: tuple[float, float]

    @property
    def beats_random(self) -> bool:
        """Return whether the router is better than chance over all rates taken together."""
        return self.average_interval[0] > 0.0


def cost_report(
    scores: NDArray[np.float64], cheap: NDArray[np.bool_], expensive: NDArray[np.bool_]
) -> CostReport:
    """Return accuracy against cost.

    All (n,); cheap, expensive: whether the cheap or expensive model was right.
    """
    n = len(scores)
    average = _average_gain(scores, cheap, expensive, np.arange(n))
    interval = bootstrap(lambda drawn: _average_gain(scores, cheap, expensive, drawn), n, SEED)
    return CostReport(
        n,
        float(cheap.mean()),
        float(expensive.mean()),
        tuple(_at_rate(rate, scores, cheap, expensive) for rate in RATES),
        average,
        interval,
    )


def _at_rate(
    rate: float, scores: NDArray[np.float64], cheap: NDArray[np.bool_], expensive: NDArray[np.bool_]
) -> AtRate:
    n = len(scores)

    def routed(drawn: NDArray[np.intp]) -> float:
        return _accuracy(rate, scores[drawn], cheap[drawn], expensive[drawn])

    def gain(drawn: NDArray[np.intp]) -> float:
        return routed(drawn) - _random(rate, cheap[drawn], expensive[drawn])

    everything = np.arange(n)
    benefit = expensive.astype(np.float64) - cheap.astype(np.float64)
    return AtRate(
        rate,
        routed(everything),
        bootstrap(routed, n, SEED),
        _random(rate, cheap, expensive),
        _accuracy(rate, benefit, cheap, expensive),
        gain(everything),
        bootstrap(gain, n, SEED),
    )


def _accuracy(
    rate: float, scores: NDArray[np.float64], cheap: NDArray[np.bool_], expensive: NDArray[np.bool_]
) -> float:
    """Return the accuracy where the share with the highest scores goes to the expensive model."""
    sent = np.argsort(-scores, kind="stable")[: round(rate * len(scores))]
    right = cheap.copy()
    right[sent] = expensive[sent]
    return float(right.mean())


def _random(rate: float, cheap: NDArray[np.bool_], expensive: NDArray[np.bool_]) -> float:
    return float((1 - rate) * cheap.mean() + rate * expensive.mean())


def _average_gain(
    scores: NDArray[np.float64],
    cheap: NDArray[np.bool_],
    expensive: NDArray[np.bool_],
    drawn: NDArray[np.intp],
) -> float:
    """Return the gain over random, averaged over every rate from 0 to 1."""
    order = drawn[np.argsort(-scores[drawn], kind="stable")]
    benefit = expensive[order].astype(np.float64) - cheap[order].astype(np.float64)
    n = len(order)
    routed = np.cumsum(benefit) / n
    return float((routed - benefit.mean() * np.arange(1, n + 1) / n).mean())


def tiers_by_category(
    tiers: Sequence[Tier], categories: Sequence[str]
) -> Mapping[str, Mapping[Tier, int]]:
    """Count tiers in each category."""
    counts = Counter(zip(categories, tiers, strict=True))
    return {
        category: {tier: counts[category, tier] for tier in TIERS}
        for category in sorted(set(categories))
    }
