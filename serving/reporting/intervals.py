"""The exact interval of a share, as reports state it. Pure."""

from dataclasses import dataclass

# Not scipy.stats, which takes 45 MB of a gateway's memory.
from scipy import special

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """Bounds of a mean, and its estimate."""

    mean: float
    low: float
    high: float


def clopper_pearson(errors: int, count: int, confidence: float = CONFIDENCE) -> Interval:
    """Return the exact two-sided interval of a binomial share. Raises ValueError."""
    if not 0 <= errors <= count or count == 0:
        raise ValueError(f"{errors!r} errors of {count!r} examples")
    tail = (1.0 - confidence) / 2.0
    low = float(special.betaincinv(errors, count - errors + 1, tail)) if errors else 0.0
    high = 1.0
    if errors < count:
        high = float(special.betaincinv(errors + 1, count - errors, 1.0 - tail))
    return Interval(errors / count, low, high)
