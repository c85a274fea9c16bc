"""What the arms of the cost replay save, with a bootstrap over conversations. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.replay_arms import Arm
from benchmarks.replay_earning import MONTH_DAYS, realised
from benchmarks.replay_setup import EARNED, LEVERS, Lever

_RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Figures:
    """One arm against the direct one. saved: net of busy local time and the gateway's processor.

    saved_with_idle: the replica's idle time included. loss: share of right answers lost; bounds
    are 95 %. p50_s, p95_s: by the assumed speeds. routes: requests by route. behind: share of the
    direct cost that exploring, judging and audits cost; `saved` is net of it.
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
    behind: float


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
    weights = _weights(len(sizes), seed)
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
        sum(one.behind_usd for one in arm.results) / total,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Effect:
    """What all levers save beyond an arm, as a share of the direct cost; bounds are 95 %.

    Paired: the arms have the same requests and coins, so that the bounds are of the difference.
    """

    name: str
    saved: float
    saved_bounds: tuple[float, float]
    loss: float
    loss_bounds: tuple[float, float]


def effect(direct: Arm, whole: Arm, arm: Arm, *, seed: int = 0) -> Effect:
    """Return the difference between all levers and an arm, usually all less one."""
    names = [one.conversation for one in direct.results]
    pairs = list(zip(whole.results, arm.results, strict=True))
    more = _sums(names, [b.usd - a.usd for a, b in pairs])
    lost = _sums(names, [float(b.is_right) - float(a.is_right) for a, b in pairs])
    paid = _sums(names, [one.usd for one in direct.results])
    sizes = _sums(names, [1.0] * len(names))
    weights = _weights(len(sizes), seed)
    return Effect(
        arm.name, float(more.sum() / paid.sum()), _ends((weights @ more) / (weights @ paid)),
        float(lost.sum() / sizes.sum()), _ends((weights @ lost) / (weights @ sizes)),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Month:
    """What the first month saves that begins with nothing earned, net of all that earning costs.

    earning_days: that were simulated before the replay. realised: net saving of what is earned in
    them, as a share of what the same days save once it is; below 0 where they cost more. unearned,
    earned: saving without the earned levers, and with them.
    """

    earning_days: float
    realised: float
    unearned: float
    earned: float
    saved: float
    saved_bounds: tuple[float, float]


def month(direct: Arm, unearned: Arm, earned: Arm, days: float, *, seed: int = 0) -> Month:
    """Return the saving of the first month. days: simulated before the replay.

    Hits by meaning are earned sooner than the others, and count as they do.
    """
    names = [one.conversation for one in direct.results]
    paid, off, on = (
        _sums(names, [one.usd for one in arm.results]) for arm in (direct, unearned, earned)
    )
    part = realised(earned.earned)
    # Of the month's requests, those that cost as after earning; the others as before it.
    share = 1.0 - min(1.0, days / MONTH_DAYS) * (1.0 - part)
    spent = off + share * (on - off)
    weights = _weights(len(paid), seed)
    saved = 1 - (weights @ spent) / (weights @ paid)
    total = float(paid.sum())
    return Month(
        days, part, 1 - float(off.sum()) / total, 1 - float(on.sum()) / total,
        1 - float(spent.sum()) / total, _ends(saved),
    )  # fmt: skip


def unearned_levers(levers: Sequence[Lever]) -> tuple[Lever, ...]:
    """Return the levers without those that must be earned."""
    return tuple(lever for lever in levers if lever not in EARNED)


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


def _weights(size: int, seed: int) -> NDArray[np.int64]:
    draw = np.random.default_rng(seed)
    found: NDArray[np.int64] = draw.multinomial(size, [1 / size] * size, size=_RESAMPLES)
    return found


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
