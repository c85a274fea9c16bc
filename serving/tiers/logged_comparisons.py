"""What a refit of clusters is judged by: comparisons of logged chats, and what they save."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serving.contracts.evidence import Audit
from serving.contracts.prices import TokenPrices
from serving.evidence.store import Definition, EvidenceStore
from serving.tiers.clusters import Clustering, Vectors
from serving.tiers.planner import TierPlanner
from serving.tiers.policy import Prospect, Rung, Traffic, place_of, prospect, together
from serving.tiers.refit import (
    Assigned,
    Comparison,
    LoggedChat,
    Place,
    compared,
    document,
    places,
    switch,
)
from serving.tiers.shortcut import SUBJECT_PREFIX


class LoggedComparisons:
    """Reads what is known about the clusters of a planner, whose plan is up to date. Blocking.

    The traffic of a cluster is that of the last week; where it has none, the mean of all.
    """

    def __init__(self, planner: TierPlanner, store: EvidenceStore) -> None:
        self._planner = planner
        self._store = store
        self._own = {
            key: found
            for key, found in planner.traffic.items()
            if key[1].startswith(f"{planner.clustering.version}/")
        }

    @property
    def pools(self) -> int:
        """Return how many tenants, or pools of them, earn claims of their own."""
        return max(1, len({tenants for tenants, _ in self._own}))

    def start(self, rule: str) -> Rung | None:
        """Return the tier of a chat's reference. rule: the tier that the rules chose."""
        rung = self._planner.rung(rule)
        return None if rung is None else self._planner.start(rung.tier)

    def read(self, chats: Sequence[LoggedChat]) -> list[Comparison]:
        """Return the comparisons of these chats. Raises LedgerUnavailable."""
        positions = {chat.request_id: number for number, chat in enumerate(chats)}
        return [
            comparison
            for definition in self._store.definitions()
            for comparison in self._of_claim(definition, positions)
        ]

    def judged(
        self, chats: Sequence[LoggedChat], vectors: Vectors, fitted: Clustering, days: float
    ) -> dict[str, Any]:
        """Return the verdict on a fitted clustering, `taken` or `kept`, with its figures.

        chats: after those that it was fitted to. vectors: of each. days: that they took. Raises
        LedgerUnavailable.
        """
        present, tiers = self._planner.clustering, self._planner.settings
        found: dict[str, Any] = {
            "verdict": "kept", "present": present.version, "fitted": fitted.version,
            "chats": len(chats), "days": round(days, 2),
        }  # fmt: skip
        comparisons = self.read(chats)
        if not comparisons:
            return found | {"because": "no chat of the log's newer half was compared"}
        refit = compared(vectors, chats, comparisons, (present, fitted), tiers.target_error)
        strata, assigned = (places(vectors, chats, one) for one in (present, fitted))
        held_usd_a_day, held = self.held_usd_a_day()
        costs = switch(
            refit, self.earning(refit.fitted, strata, assigned, days), held_usd_a_day, days,
            float(tiers.explore_usd_a_day), tiers.payback_days,
        )  # fmt: skip
        found |= document(refit, costs) | {"held_claims": held}
        if refit.fitted.net_worse > tiers.target_error:
            return found | {"because": "its answers would be worse than tiers.target_error allows"}
        if not costs.pays:
            return found | {"because": "its gain does not pay for earning anew"}
        return found | {"verdict": "taken"}

    def held_usd_a_day(self) -> tuple[float, list[str]]:
        """Return what claims that are held now save in a day, and their ids."""
        saved, held = 0.0, []
        for (tenants, cluster), traffic in self._own.items():
            _, number, tier = cluster.split("/")
            start = self._planner.rung(tier)
            if start is None:
                continue
            rungs = self._planner.ladder(start)
            claims = [self._planner.claim(int(number), start, rung, tenants) for rung in rungs]
            serving = place_of(claims).serving
            if serving is not None and (claim := claims[serving]) is not None:
                saved += traffic.requests_a_day * _saving(traffic, start, rungs[serving])
                held.append(claim.id)
        return saved, held

    def earning(
        self, assigned: Assigned, strata: Sequence[Place], places: Sequence[Place], days: float
    ) -> list[Prospect]:
        """Return what is to be earned for an assignment, each claim by itself.

        strata, places: of each chat, in the present clustering and in the assigned one. days: that
        the chats took.
        """
        judge = self._planner.judge_prices
        if judge is None:
            return []
        found = []
        for place, tier in assigned.tiers.items():
            own = [stratum for stratum, one in zip(strata, places, strict=True) if one == place]
            found += self._earned(place, tier, own, days, judge)
        return found

    def _earned(
        self, place: Place, tier: str, strata: Sequence[Place], days: float, judge: TokenPrices
    ) -> list[Prospect]:
        start, rung = self._planner.rung(place[1]), self._planner.rung(tier)
        if start is None or rung is None:
            return []
        known = [self._traffic_of(self._name(*stratum)) for stratum in strata]
        pools = self.pools
        traffic = Traffic(
            max(1, len(strata) // pools), days,
            sum(one.input_tokens for one in known) / len(known),
            sum(one.output_tokens for one in known) / len(known),
        )  # fmt: skip
        target = self._planner.settings.target_error
        one = prospect(str(place[0]), traffic, (start, None, rung), judge, None, target)
        return [one] * pools

    def _of_claim(
        self, definition: Definition, positions: Mapping[str, int]
    ) -> Iterator[Comparison]:
        scope, planner = definition.scope, self._planner
        if (
            definition.shortcut != "cheaper_tier"
            or scope.versions.get("clustering") != planner.clustering.version
        ):
            return
        number, _, tier = scope.subject.removeprefix(SUBJECT_PREFIX).partition("/")
        rung = planner.rung(tier)
        start = planner.rung_of(definition.reference)
        if rung is None or start is None or rung.model != scope.versions.get("model"):
            return
        saving = _saving(self._traffic_of(self._name(int(number), start.tier)), start, rung)
        for audit in self._audits(definition.id):
            chat = positions.get(audit.request_id)
            # Where no coin chose it, it was chosen for what it is.
            if chat is not None and audit.loss is not None and audit.coin is not None:
                yield Comparison(chat, rung.tier, 2.0 * audit.loss - 1.0, audit.group, saving)

    def _audits(self, claim: str) -> Iterator[Audit]:
        sequence = 0
        while rows := self._store.rows_after(sequence, claim):
            yield from (row for row in rows if isinstance(row, Audit))
            sequence = rows[-1].sequence

    def _name(self, cluster: int, tier: str) -> str:
        return f"{self._planner.clustering.version}/{cluster}/{tier}"

    def _traffic_of(self, cluster: str) -> Traffic:
        own = [found for (_, name), found in self._own.items() if name == cluster]
        known = own or list(self._own.values())
        return together(known) if known else _UNKNOWN


_UNKNOWN = Traffic(0, 1.0, 0.0, 0.0)
"""Without any traffic nothing is saved, so that no clustering is better than another one."""


def _saving(traffic: Traffic, start: Rung, rung: Rung) -> float:
    return traffic.cost_usd(start.prices) - traffic.cost_usd(rung.prices)
