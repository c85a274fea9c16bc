"""Decides about each open-ended chat which tier answers it and whether a cheaper one is explored.

Decisions are made from memory. What is explored is planned every half minute from the ledger.
"""

import asyncio
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, timedelta
from decimal import Decimal
from typing import Literal, Protocol

from sqlalchemy.exc import SQLAlchemyError

from serving.contracts.context import RequestContext
from serving.contracts.errors import LedgerUnavailable
from serving.contracts.evidence import Claim
from serving.contracts.prices import PriceList, TokenPrices
from serving.contracts.routing import TIERS, Tier
from serving.contracts.tiers_settings import TiersSettings
from serving.evidence.pacing import coin
from serving.evidence.rulings import Evidence, Ruling
from serving.evidence.store import EvidenceStore
from serving.ledger.database import Database
from serving.tiers.cascades import CALLS, Asked, Cascades, Check, Place
from serving.tiers.clusters import Clustering
from serving.tiers.policy import (
    AuditShares,
    Exploration,
    Prospect,
    Rung,
    Traffic,
    allot,
    cascade_prospect,
    is_cascade_open,
    ladder,
    place_of,
    prospect,
    together,
)
from serving.tiers.shortcut import CascadedTier, CheaperTier
from serving.tiers.traffic import ClusterTraffic, read_traffic

logger = logging.getLogger(__name__)

_REFRESH_S = 30.0
_MOST_CONVERSATIONS = 10_000
_LEAST_DAY_LEFT = 1.0 / 24.0
"""In the last hour of a day its budget is not spent faster than within an hour."""

TierOutcome = Literal[
    "reference",  # no cheaper tier has earned it
    "cheaper_tier",  # under its claim
    "cascade_kept",  # the cheaper tier answered first, and was sure enough
    "cascade_escalated",  # it was not: the reference answered
    "cascade_failed",  # it could not answer or be checked in time: the reference answered
    "fallback",  # the cheaper tier could not answer
    "not_comparable",  # images, several choices, too long
    "no_vector",  # the embedder failed
]


class TierEvents(Protocol):
    """Counts what tiers do; the gateway's metrics implement it."""

    def tier_chosen(self, cluster: str, tier: Tier, outcome: TierOutcome) -> None:
        """Count one open-ended chat. cluster: its topic, `none` where it has none."""
        ...

    def tier_compared(self, cluster: str, tier: Tier, verdict: str) -> None:
        """Count one comparison of a cheaper tier's answer with the reference's."""
        ...


@dataclass(frozen=True, slots=True)
class TierCandidate:
    """A cheaper tier of one request. ruling: on its claim. share: of the coin; drawn: its result.

    judge: the model that compares. check, threshold: of a cascade. beside: the ruling on the
    cascade that is earned by the same comparisons; None for none. expected_usd: what exploring it
    is expected to cost.
    """

    rung: Rung
    shortcut: CheaperTier | CascadedTier
    ruling: Ruling
    judge: str
    share: float
    drawn: bool
    check: Check = "samples"
    threshold: float = 0.0
    beside: Ruling | None = None
    expected_usd: Decimal = Decimal(0)


@dataclass(frozen=True, slots=True)
class TierChoice:
    """The decision about one request.

    cluster: as the ledger names it. topic: its name. start: the tier of the reference. serving:
    that answers in its place; None for the reference. exploring: whose answer is compared.
    cascading: that answers first; None where no cascade is expected to cost less.
    """

    cluster: str
    topic: str
    start: Rung
    serving: TierCandidate | None = None
    exploring: TierCandidate | None = None
    cascading: TierCandidate | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """Planned from the ledger. Keys: (tenants, cluster)."""

    traffic: Mapping[tuple[str, str], Traffic] = field(default_factory=dict)
    explored: Mapping[tuple[str, str], Exploration] = field(default_factory=dict)


class TierPlanner:
    """One for a process. tiers: `provider/model`s in order. configured: those that have a key.

    gives_logprobs: whether a `provider/model` may give the log-probabilities of its tokens.
    replicas: of the gateway, which share the day's budget: each may spend its part between plans.
    """

    def __init__(
        self,
        settings: TiersSettings,
        clustering: Clustering,
        tiers: Mapping[Tier, tuple[str, ...]],
        configured: Callable[[tuple[str, ...]], tuple[str, ...]],
        prices: PriceList,
        evidence: Evidence,
        events: TierEvents,
        gives_logprobs: Callable[[str], bool] = lambda model: False,
        replicas: int = 1,
    ) -> None:
        self.settings = settings
        self._replicas = replicas
        self.clustering = clustering
        self.evidence = evidence
        self.events = events
        self._rungs = _rungs(tiers, configured, prices)
        self._judge = _judge(settings, tiers, configured, prices)
        self._continued: OrderedDict[tuple[str, str], None] = OrderedDict()
        self.cascades: Cascades | None = None
        if self._judge is not None:
            self.cascades = Cascades(
                settings, evidence, clustering.version, (self._judge.model, self._judge.prices),
                gives_logprobs,
            )  # fmt: skip
        self._shortcuts: dict[tuple[int, str], CheaperTier] = {}
        self._plan = _Plan()
        self._shares = AuditShares(
            settings.audit_share_of_saving, settings.audit_floor, settings.audit_high,
            settings.audit_high_requests, settings.audit_settled,
        )  # fmt: skip
        # Of what is left of the day's budget: in progress, and spent since the last plan.
        self._held_usd = self._spent_usd = self._left_usd = Decimal(0)

    @property
    def is_possible(self) -> bool:
        """Return whether any tier may be earned: a judge, and two tiers with keys and prices."""
        return self._judge is not None and len(self._rungs) > 1

    def start(self, rule: Tier) -> Rung | None:
        """Return the tier of the reference; None where it has no key or price."""
        return self._rungs.get(self.settings.start(rule))

    def rung(self, tier: str) -> Rung | None:
        """Return a tier; None where it has no key or price."""
        return next((rung for rung in self._rungs.values() if rung.tier == tier), None)

    def rung_of(self, model: str) -> Rung | None:
        """Return the tier whose model this is; None for no model of a tier."""
        return next((rung for rung in self._rungs.values() if rung.model == model), None)

    @property
    def judge_prices(self) -> TokenPrices | None:
        """Return the prices of the model that compares; None where there is none."""
        return None if self._judge is None else self._judge.prices

    def ladder(self, start: Rung) -> tuple[Rung, ...]:
        """Return the cheaper tiers than a start, the most expensive first."""
        return ladder(start, list(self._rungs.values()))

    def explored(self, tenants: str, cluster: str) -> Exploration | None:
        """Return what is planned to be explored of a cluster; None for nothing."""
        return self._plan.explored.get((tenants, cluster))

    @property
    def traffic(self) -> Mapping[tuple[str, str], Traffic]:
        """Return the traffic by (tenants, cluster), as last planned for."""
        return self._plan.traffic

    def name_of(self, cluster: int, start: Rung) -> str:
        """Return a cluster as the ledger names it."""
        return f"{self.clustering.version}/{cluster}/{start.tier}"

    def choose(self, cluster: int, start: Rung, asked: Asked) -> TierChoice:
        """Return the decision about a request. Never waits."""
        name = self.name_of(cluster, start)
        nothing = TierChoice(name, self.clustering.names[cluster], start)
        judge = self._judge
        if judge is None:
            return nothing
        try:
            rulings = self._rulings(cluster, start, asked.context, asked.conversation)
        except LedgerUnavailable:
            return nothing
        found = [
            (rung, shortcut, ruling) for rung, shortcut, ruling in rulings if ruling is not None
        ]
        key = (self.tenants_of(asked.context.caller.tenant), name)
        serving = exploring = None
        for rung, shortcut, ruling in found:
            standing = ruling.standing
            if standing.mode == "claim":
                if not self.evidence.always_escalates(ruling.name, asked.text):
                    share = self._audit_share(key, start, rung, ruling)
                    serving = TierCandidate(rung, shortcut, ruling, judge.model, share, coin(share))
                exploring = None
            elif standing.mode == "shadow" and self._explores(key, rung):
                planned = self._plan.explored[key]
                drawn = coin(planned.share) and self._counts(ruling, asked.conversation)
                exploring = TierCandidate(
                    rung, shortcut, ruling, judge.model, planned.share, drawn,
                    expected_usd=Decimal(planned.pair_usd),
                )  # fmt: skip
        if self.settings.mode != "on":
            serving = None
        place = Place(
            cluster, start, asked, self._plan.traffic.get(key),
            lambda rung, ruling: self._audit_share(key, start, rung, ruling),
        )  # fmt: skip
        choice = TierChoice(name, nothing.topic, start, serving, exploring)
        return self._with_cascades(choice, place, [rung for rung, _, _ in found])

    def _counts(self, ruling: Ruling, conversation: str | None) -> bool:
        """Return whether a comparison would be evidence: of a conversation, one continuation is.

        Known in this replica alone; what another one has compared is only paid for twice.
        """
        if conversation is None:
            return True
        place = (ruling.name, ruling.group)
        if place in self._continued:
            return False
        self._continued[place] = None
        if len(self._continued) > _MOST_CONVERSATIONS:
            self._continued.popitem(last=False)
        return True

    def _with_cascades(self, choice: TierChoice, place: Place, rungs: Sequence[Rung]) -> TierChoice:
        """Return the choice with the cascade that is earned beside it, and the one that answers."""
        cascades, exploring, judge = self.cascades, choice.exploring, self._judge
        if self.settings.cascade == "off" or cascades is None or judge is None:
            return choice
        if exploring is not None:
            beside = cascades.ruling(place, exploring.rung)
            if beside is not None and beside.standing.mode == "shadow":
                check = cascades.check_of(exploring.rung.model)
                choice = replace(choice, exploring=replace(exploring, beside=beside, check=check))
        if self.settings.mode != "on":
            return choice
        present = choice.start if choice.serving is None else choice.serving.rung
        best = cascades.best(place, rungs, present)
        if best is None:
            return choice
        taken = TierCandidate(
            best.rung, best.shortcut, best.ruling, judge.model, best.share, coin(best.share),
            best.check, best.threshold,
        )  # fmt: skip
        return replace(choice, serving=None, cascading=taken)

    def may_explore(self, candidate: TierCandidate) -> bool:
        """Hold what exploring a request is expected to cost; return False, holding nothing, where
        the budget has no room for it. Many may have been drawn before the first one began.
        """
        if not self._has_room(candidate.expected_usd):
            return False
        self._held_usd += candidate.expected_usd
        return True

    def explored_for(self, usd: Decimal, candidate: TierCandidate) -> None:
        """Note what an exploration has cost that was begun, with or without a verdict."""
        self._held_usd -= candidate.expected_usd
        self._spent_usd += usd

    async def watch(self, database: Database, store: EvidenceStore) -> None:
        """Plan what is explored until cancelled; an unreachable database leaves the last plan."""
        while True:
            try:
                await asyncio.to_thread(self.refresh, database, store)
            except (LedgerUnavailable, SQLAlchemyError) as error:
                logger.warning("tiers.not_planned error=%s", type(error).__name__)
            await asyncio.sleep(_REFRESH_S)

    def refresh(self, database: Database, store: EvidenceStore) -> None:
        """Plan what is explored. Blocking; raises LedgerUnavailable."""
        now = self.evidence.now()
        midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        spent = store.spent_usd(midnight, "shadow")
        ours = {
            claim.id for claim in self.evidence.snapshot.all() if claim.shortcut == "cheaper_tier"
        }
        today = sum((usd for claim, usd in spent.items() if claim in ours), Decimal(0))
        self.plan(
            self.pooled(read_traffic(database)), today, 1.0 - (now - midnight) / timedelta(days=1)
        )

    def plan(
        self,
        traffic: Mapping[tuple[str, str], Traffic],
        today_usd: Decimal,
        day_left: float = 1.0,
    ) -> None:
        """Plan what is explored of some traffic, by (tenants, cluster).

        today_usd: spent on exploring today. day_left: share of the day that is not over, in (0, 1].
        """
        left = max(Decimal(0), self.settings.explore_usd_a_day - today_usd)
        # What is left is for the rest of the day. Spread over a whole day, as if it began now, a
        # third of each day's budget was never spent.
        pace = left / Decimal(max(day_left, _LEAST_DAY_LEFT))
        shares = allot(
            [p for key, found in traffic.items() for p in self.prospects(*key, found)],
            pace,
            self.settings.payback_days,
        )
        self._spent_usd = Decimal(0)
        self._left_usd = left
        self._plan = _Plan(traffic, {_unjoined(name): found for name, found in shares.items()})

    def prospects(self, tenants: str, cluster: str, traffic: Traffic) -> list[Prospect]:
        """Return what each cheaper tier of a cluster would bring that may still be earned."""
        version, number, tier = cluster.split("/")
        start = self.rung(tier)
        if version != self.clustering.version or start is None or self._judge is None:
            return []
        rungs = self.ladder(start)
        claims = [self.claim(int(number), start, rung, tenants) for rung in rungs]
        place = place_of(claims)
        serving = None if place.serving is None else rungs[place.serving]
        found = [
            prospect(
                _joined(tenants, cluster), traffic, (start, serving, rungs[position]),
                self._judge.prices, claims[position], self.settings.target_error,
            )
            for position in place.open
        ]  # fmt: skip
        if self.settings.cascade == "off" or self.cascades is None:
            return found
        # A tier that may still be earned earns its cascade by the same comparisons.
        first = 0 if place.serving is None else place.serving + 1
        for position, rung in enumerate(rungs[first:], first):
            claim = self.cascades.claim(int(number), start, rung, tenants)
            if position not in place.open and is_cascade_open(claim):
                found.append(
                    cascade_prospect(
                        _joined(tenants, cluster), traffic, (start, serving, rung),
                        self._judge.prices, claim, CALLS[self.cascades.check_of(rung.model)],
                    )
                )  # fmt: skip
        return found

    def claim(self, cluster: int, start: Rung, rung: Rung, tenant: str) -> Claim | None:
        """Return the claim on one tier of a cluster."""
        return self.evidence.tier_claim(self._shortcut(cluster, rung), tenant, start.model)

    def _rulings(
        self, cluster: int, start: Rung, context: RequestContext, conversation: str | None
    ) -> list[tuple[Rung, CheaperTier, Ruling | None]]:
        assert self._judge is not None
        found = []
        for rung in self.ladder(start):
            shortcut = self._shortcut(cluster, rung)
            asked = (start.model, rung.model, self._judge.model)
            ruling = self.evidence.tier_ruling(shortcut, context, start.model, asked, conversation)
            found.append((rung, shortcut, ruling))
        return found

    def _shortcut(self, cluster: int, rung: Rung) -> CheaperTier:
        known = self._shortcuts.get((cluster, rung.tier))
        if known is None:
            assert self._judge is not None
            known = CheaperTier(
                cluster, self.clustering.version, rung.tier, rung.model, self._judge.model,
                self.settings.target_error,
            )  # fmt: skip
            self._shortcuts[cluster, rung.tier] = known
        return known

    def _explores(self, key: tuple[str, str], rung: Rung) -> bool:
        planned = self._plan.explored.get(key)
        if planned is None or planned.tier != rung.tier:
            return False
        return self._has_room(Decimal(planned.pair_usd))

    def _has_room(self, usd: Decimal) -> bool:
        return self._held_usd + self._spent_usd + usd <= self._left_usd / self._replicas

    def _audit_share(self, key: tuple[str, str], start: Rung, rung: Rung, ruling: Ruling) -> float:
        traffic, claim = self._plan.traffic.get(key), self.evidence.snapshot.find(ruling.name)
        if traffic is None or claim is None or self._judge is None:
            return self._shares.high
        reference = traffic.cost_usd(start.prices)
        return self._shares.rate(
            reference - traffic.cost_usd(rung.prices),
            reference + traffic.judging_usd(self._judge.prices),
            claim,
        )

    def tenants_of(self, tenant: str) -> str:
        """Return the tenant's pool, or the tenant."""
        return self.evidence.settings.pool_of(tenant) or tenant

    def pooled(self, rows: Sequence[ClusterTraffic]) -> dict[tuple[str, str], Traffic]:
        """Return the traffic by (tenants, cluster), that of a pool's tenants together."""
        grouped: defaultdict[tuple[str, str], list[Traffic]] = defaultdict(list)
        for row in rows:
            grouped[self.tenants_of(row.tenant), row.cluster].append(row.traffic)
        return {key: together(found) for key, found in grouped.items()}


def _joined(tenants: str, cluster: str) -> str:
    return f"{tenants} {cluster}"


def _unjoined(name: str) -> tuple[str, str]:
    tenants, _, cluster = name.partition(" ")
    return tenants, cluster


def _rungs(
    tiers: Mapping[Tier, tuple[str, ...]],
    configured: Callable[[tuple[str, ...]], tuple[str, ...]],
    prices: PriceList,
) -> dict[Tier, Rung]:
    """Return each tier's first model that has a key, of those tiers whose model has a price."""
    found: dict[Tier, Rung] = {}
    for tier in TIERS:
        model = next(iter(configured(tiers[tier])), None)
        if model is None:
            continue
        price = prices.of(model)
        if price is None:
            logger.warning("tiers.unpriced tier=%s model=%s: it is not used", tier, model)
            continue
        found[tier] = Rung(tier, model, price.base)
    return found


@dataclass(frozen=True, slots=True)
class _Judge:
    model: str
    prices: TokenPrices


def _judge(
    settings: TiersSettings,
    tiers: Mapping[Tier, tuple[str, ...]],
    configured: Callable[[tuple[str, ...]], tuple[str, ...]],
    prices: PriceList,
) -> _Judge | None:
    named = tiers["standard"] if settings.judge is None else (settings.judge,)
    model = next(iter(configured(named)), None)
    price = None if model is None else prices.of(model)
    if model is None or price is None:
        logger.warning("tiers.no_judge model=%s: nothing is explored", model or ", ".join(named))
        return None
    return _Judge(model, price.base)
