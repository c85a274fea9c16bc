"""Queries of the report on the cache: hits, refinements, and the claims of hits by meaning."""

import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, case, func, select, type_coerce

from serving.contracts.evidence import Origin, ShortcutName
from serving.contracts.report import CacheClaim, CacheUse, Refinements
from serving.ledger.reports.query import Scope
from serving.ledger.schema import Usd, evidence_audits, evidence_states, exits

_OF_HITS: tuple[Origin, ...] = ("accepted", "refined")
_ANSWERED = and_(exits.c.endpoint != "audit", exits.c.outcome == "answered")


def cache_uses(connection: Connection, scope: Scope) -> tuple[CacheUse, ...]:
    """Return the cached answers by how they were found, most hits first."""
    # Rows from before lookups by meaning existed say no kind.
    kind = func.coalesce(exits.c.cache_kind, "exact")
    hits = func.count()
    saves = case((exits.c.guaranteed.is_(True), exits.c.reference_usd))
    query = (
        select(kind, hits, _dollars(saves), _dollars(exits.c.avoided_usd),
               func.coalesce(func.sum(exits.c.lookup_us), 0))
        .where(scope.covers(), _ANSWERED, exits.c.cached.is_(True))
        .group_by(kind)
        .order_by(hits.desc(), kind)
    )  # fmt: skip
    return tuple(
        CacheUse(
            name=name, hits=count, reference_usd=usd, avoided_usd=avoided, lookup_us=int(lookup_us)
        )
        for name, count, usd, avoided, lookup_us in connection.execute(query)
    )


def refinements(connection: Connection, scope: Scope) -> tuple[Refinements, ...]:
    """Return how often answers were repeated or corrected, by tenant and route."""
    tenant, route, refined = exits.c.tenant, exits.c.route, exits.c.refined_route
    of_chats = and_(scope.covers(), _ANSWERED, exits.c.endpoint == "chat")
    answered = _counts(connection, tenant, route, of_chats)
    counted = _counts(connection, tenant, refined, and_(of_chats, refined.is_not(None)))
    return tuple(
        Refinements(
            tenant=name, route=way, answered=answered.get((name, way), 0), refined=count,
            rate=count / answered[name, way] if answered.get((name, way)) else None,
        )
        for (name, way), count in sorted(counted.items())
    )  # fmt: skip


def _counts(
    connection: Connection, tenant: Any, route: Any, chosen: ColumnElement[bool]
) -> dict[tuple[str, str], int]:
    query = select(tenant, route, func.count()).where(chosen).group_by(tenant, route)
    return {(name, way): count for name, way, count in connection.execute(query)}


def cache_claims(connection: Connection, scope: Scope) -> tuple[CacheClaim, ...]:
    """Return the claims on hits by meaning, with their audits of the time of the report.

    scope: of one tenant leaves out claims of others and of pools.
    """
    found = [
        CacheClaim(**bound, audits_usd=compared_usd(connection, scope, bound["claim"], _OF_HITS))
        for bound in claim_bounds(connection, scope, "cached_answer")
    ]
    return tuple(sorted(found, key=lambda item: (item.tenants, item.subject, item.claim)))


def claim_bounds(
    connection: Connection, scope: Scope, shortcut: ShortcutName
) -> Iterator[dict[str, Any]]:
    """Yield the fields of each claim on a shortcut. scope: as cache_claims'."""
    for document in connection.execute(select(evidence_states.c.document)).scalars():
        claim = json.loads(document)
        tenants, interval = claim["scope"]["tenants"], claim["interval"]
        if claim["shortcut"] != shortcut or scope.tenant not in (None, tenants):
            continue
        yield {
            "claim": claim["id"],
            "tenants": tenants,
            "subject": claim["scope"]["subject"],
            "state": claim["state"],
            "is_slowed": claim.get("is_slowed", False),
            "target_error": claim["target_error"],
            "observed_error": claim["observed_error"],
            "upper_bound": None if interval is None else interval[1],
            "audits": claim["audits"],
        }


def compared_usd(
    connection: Connection, scope: Scope, claim: str, origins: Sequence[Origin]
) -> Decimal:
    """Return what the comparisons of some origins cost: other answers, and the judge."""
    table = evidence_audits.c
    query = select(_dollars(table.cost_usd)).where(
        table.claim == claim,
        table.origin.in_(origins),
        table.judged_at >= scope.since,
        table.judged_at < scope.until,
    )
    usd: Decimal = connection.execute(query).scalar_one()
    return usd


def _dollars(amount: Any) -> Any:
    return type_coerce(func.coalesce(func.sum(amount), 0), Usd)
