"""What the arms of the cost replay save, with a bootstrap over conversations. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.replay_arms import LEVERS, Arm, Lever

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Figures:
    """One arm against the direct one. saved: net of busy local time and the gateway's processor.

    saved_with_idle: the replica's idle time included. loss: share of right answers lost; bounds
    are 95 %. p50_s, p95_s: by the assumed speeds. routes: requests by route.
    """

    name: str
    usd: float
    saved: float
    saved_bounds: tuple[float, float]
    saved_with_idle: float
    loss: float
    loss_bounds: tuple[float, float]
    p50_s: float
    p95_s: float
    gateway_ms: float
    routes: dict[str, int]


def figures(direct: Arm, arm: Arm, hour_usd: float, *, seed: int = 0) -> Figures:
    """Compare an arm with the direct one, request by request. hour_usd: of the local replica."""
    names = [one.conversation for one in direct.results]
    spent = _sums(names, [one.usd for one in arm.results])
    paid = _sums(names, [one.usd for one in direct.results])
    lost = _sums(
        names,
        [
            float(a.is_right) - float(b.is_right)
            for a, b in zip(direct.results, arm.results, strict=True)
        ],
    )
    sizes = _sums(names, [1.0] * len(names))
    draw = np.random.default_rng(seed)
    weights = draw.multinomial(len(sizes), [1 / len(sizes)] * len(sizes), size=_RESAMPLES)
    saved = 1 - (weights @ spent) / (weights @ paid)
    loss = (weights @ lost) / (weights @ sizes)
    idle_usd = max(0.0, arm.span_s - arm.local_s) * hour_usd / 3600 if arm.local_s else 0.0
    latencies = np.array([one.latency_s for one in arm.results])
    routes: dict[str, int] = {}
    for one in arm.results:
        routes[one.route] = routes.get(one.route, 0) + 1
    total = float(paid.sum())
    return Figures(
        arm.name, float(spent.sum()), 1 - float(spent.sum()) / total, _ends(saved),
        1 - (float(spent.sum()) + idle_usd) / total, float(lost.sum() / sizes.sum()), _ends(loss),
        float(np.quantile(latencies, 0.5)), float(np.quantile(latencies, 0.95)),
        float(np.mean([one.gateway_s for one in arm.results])) * 1000, dict(sorted(routes.items())),
    )  # fmt: skip


def by_removal(arms: Iterable[Arm]) -> dict[Lever, float]:
    """Return the share that each lever saves behind those before it; they add up to all of them.

    The order is that of LEVERS. Empty where an arm with the first of them is missing.
    """
    spent = {arm.levers: _usd(arm) for arm in arms}
    steps = [LEVERS[:count] for count in range(len(LEVERS) + 1)]
    if not all(step in spent for step in steps):
        return {}
    return {
        lever: (spent[steps[n]] - spent[steps[n + 1]]) / spent[()] for n, lever in enumerate(LEVERS)
    }


def _usd(arm: Arm) -> float:
    return sum(one.usd for one in arm.results)


def _sums(names: Sequence[str], values: Sequence[float]) -> NDArray[np.float64]:
    found: dict[str, float] = {}
    for name, value in zip(names, values, strict=True):
        found[name] = found.get(name, 0.0) + value
    return np.array(list(found.values()))


def _ends(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
