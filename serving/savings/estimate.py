"""Sums of costs after each lever, with a bootstrap over conversations in one pass. Pure.

Every conversation gets Poisson(1) weights from a digest of its name, one for each resample, so
that the sums need no memory of the conversations (Chamandy et al., 2012, Estimating uncertainty
for massive data streams).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Lever = Literal[
    "exact_cache", "local_tasks", "context_pruning", "prompt_caching", "output_bounds", "tiers"
]
LEVERS: tuple[Lever, ...] = get_args(Lever)
"""The order of removal: what a request's removal saves first, assumed tiers last."""

SCENARIOS = 3
CENTRAL = 1
RESAMPLES = 500
_FEWEST_CONVERSATIONS = 10
_REMEMBERED = 1_000_000


@dataclass(frozen=True, slots=True)
class Saving:
    """What a lever saves, US dollars. share: of the bill.

    interval: 95 %, bootstrap over conversations, at the central assumptions; None for fewer than
    10 conversations. span: with all assumptions at the ends of their ranges.
    """

    usd: float
    share: float
    interval: tuple[float, float] | None
    span: tuple[float, float]


class Sums:
    """Adds up the costs of requests before and after each lever, for each scenario."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        # Scenario, before the first lever and after each.
        self._shape = (SCENARIOS, len(LEVERS) + 1)
        self._total = np.zeros(self._shape)
        self._resampled = np.zeros((RESAMPLES, *self._shape))
        self._seen: set[bytes] = set()

    @property
    def conversations(self) -> int:
        """Return how many conversations there are, a million at most."""
        return len(self._seen)

    def add(self, conversation: str, costs: NDArray[np.float64]) -> None:
        """Add a request. costs: (3, levers + 1) US dollars, before the first and after each."""
        name = f"{self._seed}\x00{conversation}".encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(name, digest_size=8).digest()
        if len(self._seen) < _REMEMBERED:
            self._seen.add(digest)
        draw = np.random.Generator(np.random.PCG64(int.from_bytes(digest)))
        weights = draw.poisson(1.0, RESAMPLES)
        self._total += costs
        self._resampled += weights[:, None, None] * costs

    @property
    def bill_usd(self) -> float:
        """Return the cost of all requests."""
        return float(self._total[CENTRAL, 0])

    def saving(self, lever: Lever | None) -> Saving:
        """Return what a lever saves behind those before it; what all save for None."""
        start, end = (0, len(LEVERS)) if lever is None else _places(lever)
        saved = self._total[:, start] - self._total[:, end]
        bill = self.bill_usd
        bills = self._resampled[:, CENTRAL, 0]
        drawn = self._resampled[:, CENTRAL, start] - self._resampled[:, CENTRAL, end]
        shares = drawn[bills > 0] / bills[bills > 0]
        interval = None
        if self.conversations >= _FEWEST_CONVERSATIONS and shares.size:
            low, high = np.quantile(shares, (0.025, 0.975)) * bill
            interval = (float(low), float(high))
        usd = float(saved[CENTRAL])
        span = (float(min(saved)), float(max(saved)))
        return Saving(usd, usd / bill if bill else 0.0, interval, span)


def _places(lever: Lever) -> tuple[int, int]:
    place: int = LEVERS.index(lever)
    return place, place + 1


def scenario_costs(steps: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return (3, len(steps)) from the costs of the steps, each (3,)."""
    return np.stack(steps, axis=1)
