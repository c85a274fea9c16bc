"""Would clusters that were fitted anew save more than the present ones? Pure.

Both clusterings are judged by the same comparisons of answers, of chats after the new one was
fixed. A comparison stands for the chats of its present cluster, because clusters are explored at
different rates. A tier answers a cluster where both halves of the comparisons say so.
"""

import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.contracts.routing import Tier
from serving.evidence.payback import MOST_EARNABLE
from serving.tiers.clusters import Clustering, Vectors
from serving.tiers.policy import Prospect

_LEAST_PAIRS = 15
"""Comparisons of one half that decide about a tier of a cluster."""

_RESAMPLES = 2_000
_LOW = 0.05
"""Lower end of a one-sided interval of 95 %."""

Place = tuple[int, Tier]
"""A cluster, and the tier of its reference, which a claim is against."""


@dataclass(frozen=True, slots=True)
class LoggedChat:
    """A chat that was clustered. start: the tier of its reference."""

    request_id: str
    start: Tier


@dataclass(frozen=True, slots=True)
class Comparison:
    """A judged pair of answers. chat: its position among the chats. tier: the cheaper one.

    net: 1 where that answer is worse in both orders, -1 where it is better. group: comparisons
    that are not independent share it. saving_usd: of one such request at that tier.
    """

    chat: int
    tier: Tier
    net: float
    group: str
    saving_usd: float


@dataclass(frozen=True, slots=True)
class Assigned:
    """What a clustering would do with the chats.

    sent: share of them that a cheaper tier answers. net_worse: of these answers. saving_usd: of
    all. tiers: that answer, by place.
    """

    sent: float
    net_worse: float
    saving_usd: float
    tiers: Mapping[Place, Tier]


@dataclass(frozen=True, slots=True)
class Refit:
    """Two clusterings by the same comparisons. gain_usd, gain_low_usd: what the fitted one saves
    beyond the present one, and the lower end of its 95 % interval, bootstrapped over groups.
    """

    comparisons: int
    present: Assigned
    fitted: Assigned
    gain_usd: float
    gain_low_usd: float


@dataclass(frozen=True, slots=True)
class Switch:
    """What it costs to begin anew. days: until all is earned. earning_usd: what that costs.

    lost_usd: what held claims of the present clustering save in these days. gain_usd: what the
    fitted one brings in the rest of the payback time, by its lower end.
    """

    days: float
    earning_usd: float
    lost_usd: float
    gain_usd: float

    @property
    def pays(self) -> bool:
        """Return whether the gain exceeds what the switch costs."""
        return self.gain_usd > self.earning_usd + self.lost_usd


def compared(
    vectors: Vectors,
    chats: Sequence[LoggedChat],
    comparisons: Sequence[Comparison],
    clusterings: tuple[Clustering, Clustering],
    target_error: float,
    seed: int = 0,
) -> Refit:
    """Return what two clusterings, the present and the fitted one, would save.

    vectors: (chats, dimensions). Raises ValueError where there is no comparison.
    """
    if not comparisons:
        raise ValueError("no comparison of a chat in the log")
    present, fitted = clusterings
    strata = places(vectors, chats, present)
    weights = _weights(strata, comparisons)
    old, saved = _measured(strata, comparisons, weights, target_error)
    new, would_save = _measured(places(vectors, chats, fitted), comparisons, weights, target_error)
    gains = _by_group(would_save - saved, comparisons)
    return Refit(len(comparisons), old, new, float(gains.sum()), _low_sum(gains, seed))


def switch(
    refit: Refit,
    earning: Sequence[Prospect],
    held_usd_a_day: float,
    days: float,
    budget_usd_a_day: float,
    payback_days: float,
) -> Switch:
    """Return what it costs and brings to take the fitted clustering.

    earning: each tier of a cluster that is to be earned. held_usd_a_day: saved under claims that
    are held now. days: that the compared chats took. budget_usd_a_day: for exploring.
    """
    usd = sum(one.cost_usd for one in earning)
    slowest = max((one.pairs_left / one.requests_a_day for one in earning), default=0.0)
    takes = max(slowest, usd / budget_usd_a_day if budget_usd_a_day > 0.0 else payback_days)
    left = max(0.0, payback_days - takes)
    return Switch(takes, usd, held_usd_a_day * takes, max(0.0, refit.gain_low_usd) / days * left)


def places(vectors: Vectors, chats: Sequence[LoggedChat], clustering: Clustering) -> list[Place]:
    """Return the place of each chat. vectors: (chats, dimensions)."""
    return [
        (clustering.nearest(vector), chat.start)
        for vector, chat in zip(vectors, chats, strict=True)
    ]


def _weights(strata: Sequence[Place], comparisons: Sequence[Comparison]) -> NDArray[np.float64]:
    """Return how many chats each comparison stands for, among those of its tier."""
    chats = Counter(strata)
    pairs = Counter((strata[one.chat], one.tier) for one in comparisons)
    return np.array(
        [chats[place] / pairs[place, one.tier]
         for one in comparisons for place in (strata[one.chat],)]
    )  # fmt: skip


def _measured(
    found: Sequence[Place],
    comparisons: Sequence[Comparison],
    weights: NDArray[np.float64],
    target_error: float,
) -> tuple[Assigned, NDArray[np.float64]]:
    """Return what a clustering would do, and what each comparison stands for of its saving."""
    halves = np.array([zlib.crc32(one.group.encode()) % 2 for one in comparisons])
    own = [found[one.chat] for one in comparisons]
    one_half, other_half = (
        _chosen(own, comparisons, weights * (halves == half), target_error) for half in (0, 1)
    )
    # Few comparisons find a tier good by chance, of many clusters the more often.
    tiers = dict(one_half.items() & other_half.items())
    is_sent = np.array(
        [tiers.get(place) == one.tier for place, one in zip(own, comparisons, strict=True)]
    )
    sent = weights * is_sent
    net = np.array([one.net for one in comparisons])
    saved = sent * np.array([one.saving_usd for one in comparisons])
    total = float(sent.sum())
    assigned = Assigned(
        total / len(found),
        float((sent * net).sum()) / total if total else 0.0,
        float(saved.sum()),
        tiers,
    )
    return assigned, saved


def _chosen(
    places: Sequence[Place],
    comparisons: Sequence[Comparison],
    weights: NDArray[np.float64],
    target_error: float,
) -> dict[Place, Tier]:
    """Return the tier that saves most of those that a place would earn, by its comparisons."""
    rows: defaultdict[tuple[Place, Tier], list[int]] = defaultdict(list)
    for number, (place, one) in enumerate(zip(places, comparisons, strict=True)):
        if weights[number] > 0.0:
            rows[place, one.tier].append(number)
    found: dict[Place, tuple[float, Tier]] = {}
    for (place, tier), own in rows.items():
        heavy = weights[own]
        net = float(heavy @ [comparisons[n].net for n in own]) / float(heavy.sum())
        saving = float(heavy @ [comparisons[n].saving_usd for n in own]) / float(heavy.sum())
        is_earned = len(own) >= _LEAST_PAIRS and net <= MOST_EARNABLE * target_error
        if is_earned and saving > found.get(place, (0.0, tier))[0]:
            found[place] = (saving, tier)
    return {place: tier for place, (_, tier) in found.items()}


def _by_group(
    values: NDArray[np.float64], comparisons: Sequence[Comparison]
) -> NDArray[np.float64]:
    sums: defaultdict[str, float] = defaultdict(float)
    for value, one in zip(values, comparisons, strict=True):
        sums[one.group] += float(value)
    return np.array(list(sums.values()))


def _low_sum(values: NDArray[np.float64], seed: int) -> float:
    draw = np.random.default_rng(seed)
    counts = draw.multinomial(len(values), np.full(len(values), 1.0 / len(values)), _RESAMPLES)
    return float(np.quantile(counts @ values, _LOW))


def document(refit: Refit, taken: Switch) -> dict[str, Any]:
    """Return both as JSON."""

    def assigned(one: Assigned) -> dict[str, Any]:
        return {
            "sent": round(one.sent, 4),
            "net_worse": round(one.net_worse, 4),
            "saving_usd": round(one.saving_usd, 6),
            "tiers": len(one.tiers),
        }

    return {
        "comparisons": refit.comparisons,
        "present_clusters": assigned(refit.present),
        "fitted_clusters": assigned(refit.fitted),
        "gain_usd": round(refit.gain_usd, 6),
        "gain_low_usd": round(refit.gain_low_usd, 6),
        "earning_days": round(taken.days, 2),
        "earning_usd": round(taken.earning_usd, 4),
        "lost_usd": round(taken.lost_usd, 4),
        "gain_in_payback_usd": round(taken.gain_usd, 4),
        "pays": taken.pays,
    }
