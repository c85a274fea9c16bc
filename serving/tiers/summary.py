"""What tiers have done so far, and what is explored next: for people. Blocking."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import Select, func, select

from serving.contracts.evidence import Claim, ClaimState
from serving.ledger.database import Database
from serving.ledger.schema import exits
from serving.tiers.cascades import CALLS
from serving.tiers.planner import TierPlanner
from serving.tiers.policy import Prospect, Rung, place_of
from serving.tiers.traffic import read_traffic

_LEAST_REFERENCES = 30
"""Answers of the reference whose mean cost is taken for what one of it costs."""


@dataclass(frozen=True, slots=True)
class TierState:
    """One tier of a cluster, or its cascade. claim: None before its first request.

    net_worse: of a cascade, the share of kept answers that are worse.
    """

    tier: str
    model: str
    claim: str | None
    state: str
    progress: float
    pairs: int
    net_worse: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class NextTier:
    """What is explored next. share: of requests, by the present plan; 0 where it is not planned."""

    tier: str
    share: float
    pairs_left: int
    cost_usd: str
    payback_days: float | None


@dataclass(frozen=True, slots=True)
class ClusterState:
    """One cluster of one tenant. present: the tier that answers.

    requests_a_day: over the last week. reference_usd: what the answers of cheaper tiers would have
    cost at the reference, by the mean cost of its own answers here, or, before 30 of these, by the
    same tokens. own_usd: of exploring, judging and auditing. saved_usd: net of it.
    """

    tenants: str
    cluster: str
    topic: str
    reference: str
    present: str
    requests_a_day: float
    answered: int
    answered_cheaper: int
    reference_usd: str
    paid_usd: str
    own_usd: str
    saved_usd: str
    tiers: tuple[TierState, ...]
    next: NextTier | None

    def document(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


@dataclass(slots=True)
class _Money:
    references: int = 0
    references_usd: Decimal = Decimal(0)
    cheaper: int = 0
    cheaper_usd: Decimal = Decimal(0)
    same_tokens_usd: Decimal = Decimal(0)
    own_usd: Decimal = Decimal(0)

    @property
    def reference_usd(self) -> Decimal:
        """Return what the cheaper answers would have cost at the reference."""
        if self.references < _LEAST_REFERENCES:
            return self.same_tokens_usd
        return self.references_usd / self.references * self.cheaper


def summary(planner: TierPlanner, database: Database) -> list[ClusterState]:
    """Return every cluster with traffic in the last week, the most saving first.

    planner: its plan is up to date. Raises LedgerUnavailable.
    """
    money = _money(planner, database)
    found = []
    pooled = planner.pooled(read_traffic(database))
    for (tenants, cluster), traffic in pooled.items():
        version, number, tier = cluster.split("/")
        start = planner.rung(tier)
        if version != planner.clustering.version or start is None:
            continue
        rungs = planner.ladder(start)
        claims = [planner.claim(int(number), start, rung, tenants) for rung in rungs]
        place = place_of(claims)
        present = start if place.serving is None else rungs[place.serving]
        spent = money[tenants, cluster]
        saved = spent.reference_usd - spent.cheaper_usd - spent.own_usd
        found.append(
            ClusterState(
                tenants=tenants,
                cluster=cluster,
                topic=planner.clustering.names[int(number)],
                reference=start.model,
                present=present.tier,
                requests_a_day=round(traffic.requests_a_day, 1),
                answered=spent.references + spent.cheaper,
                answered_cheaper=spent.cheaper,
                reference_usd=f"{spent.reference_usd:.4f}",
                paid_usd=f"{spent.cheaper_usd:.4f}",
                own_usd=f"{spent.own_usd:.4f}",
                saved_usd=f"{saved:.4f}",
                tiers=(
                    *(
                        _state(rung.tier, rung.model, claim)
                        for rung, claim in zip(rungs, claims, strict=True)
                    ),
                    *_cascades(planner, int(number), start, tenants),
                ),
                next=_next(planner, tenants, cluster, planner.prospects(tenants, cluster, traffic)),
            )
        )
    return sorted(found, key=lambda one: (-Decimal(one.saved_usd), one.tenants, one.cluster))


def held_elsewhere(planner: TierPlanner) -> dict[str, list[str]]:
    """Return the held claims of other clusterings than the present one, by its version.

    They answer nothing, and are watched by nothing, until their clusters are set again.
    """
    found: defaultdict[str, list[str]] = defaultdict(list)
    for claim in planner.evidence.snapshot.all():
        version = claim.scope.versions.get("clustering")
        is_other = version is not None and version != planner.clustering.version
        if is_other and claim.state is ClaimState.HELD:
            found[str(version)].append(claim.id)
    return dict(found)


def _cascades(planner: TierPlanner, cluster: int, start: Rung, tenants: str) -> Iterator[TierState]:
    """Yield the cascades that have any evidence, by the tier that answers first."""
    if planner.settings.cascade == "off" or planner.cascades is None:
        return
    for rung in planner.ladder(start):
        for check in CALLS:
            claim = planner.cascades.claim(cluster, start, rung, tenants, check)
            if claim is not None:
                yield _state(f"{rung.tier}, cascade by {check}", rung.model, claim)


def _state(tier: str, model: str, claim: Claim | None) -> TierState:
    if claim is None:
        return TierState(tier, model, None, "new", 0.0, 0, None, None)
    net = claim.observed_error if claim.observed_error is not None else claim.shadow_loss
    return TierState(
        tier, model, claim.id, claim.state.value, round(claim.progress, 3), claim.audits,
        None if net is None else round(net, 4), claim.interval,
    )  # fmt: skip


def _next(
    planner: TierPlanner, tenants: str, cluster: str, prospects: Sequence[Prospect]
) -> NextTier | None:
    days = planner.settings.payback_days
    best = max(prospects, key=lambda one: one.net_usd(days), default=None)
    if best is None:
        return None
    planned = planner.explored(tenants, cluster)
    share = planned.share if planned is not None and planned.tier == best.tier else 0.0
    payback = best.payback_days()
    return NextTier(
        best.tier, round(share, 3), round(best.pairs_left), f"{best.cost_usd:.4f}",
        None if payback == float("inf") else round(payback, 1),
    )  # fmt: skip


def _money(planner: TierPlanner, database: Database) -> defaultdict[tuple[str, str], _Money]:
    found: defaultdict[tuple[str, str], _Money] = defaultdict(_Money)
    given = exits.c.uncached_input_tokens + exits.c.cache_read_tokens
    written = exits.c.cache_write_5m_tokens + exits.c.cache_write_1h_tokens
    made = exits.c.output_tokens + exits.c.reasoning_tokens
    is_cheaper = exits.c.reason.in_(("earned_tier", "cascade"))
    query: Select[Any] = (
        select(
            exits.c.tenant, exits.c.cluster, exits.c.endpoint, is_cheaper, exits.c.outcome,
            func.count(), func.sum(exits.c.cost_usd), func.sum(given + written), func.sum(made),
        )
        .where(exits.c.cluster.is_not(None), exits.c.route != "cache")
        .group_by(
            exits.c.tenant, exits.c.cluster, exits.c.endpoint, is_cheaper, exits.c.outcome
        )
    )  # fmt: skip
    with database.read() as connection:
        rows = connection.execute(query).all()
    for tenant, cluster, endpoint, cheaper, outcome, count, usd, tokens_in, tokens_out in rows:
        one = found[planner.tenants_of(tenant), cluster]
        paid = usd or Decimal(0)
        if endpoint == "audit":
            one.own_usd += paid
        elif outcome == "answered" and cheaper:
            one.cheaper += count
            one.cheaper_usd += paid
            start = planner.rung(cluster.split("/")[2])
            if start is not None:
                prices = start.prices
                one.same_tokens_usd += int(tokens_in or 0) * prices.uncached_input
                one.same_tokens_usd += int(tokens_out or 0) * prices.output
        elif outcome == "answered":
            one.references += count
            one.references_usd += paid
    return found
