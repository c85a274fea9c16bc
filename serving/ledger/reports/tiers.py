"""Queries of the report on tiers: what comparisons cost by purpose, and clusters of chats."""

from typing import Any

from sqlalchemy import Connection, Select, and_, case, func, select, type_coerce

from serving.contracts.report import ClusterSpend, PurposeSpend
from serving.ledger.reports.query import Scope
from serving.ledger.schema import Usd, exits

_MOST_CLUSTERS = 50


def purposes(connection: Connection, scope: Scope) -> tuple[PurposeSpend, ...]:
    """Return calls that no client waited for, by purpose, the most expensive first."""
    purpose = func.coalesce(exits.c.reason, "audit")
    query: Select[Any] = (
        select(purpose, func.count(), _dollars(exits.c.cost_usd), _dollars(exits.c.held_usd))
        .where(scope.covers(), exits.c.endpoint == "audit")
        .group_by(purpose)
    )
    rows = connection.execute(query).all()
    found = [
        PurposeSpend(name=name, count=count, cost_usd=cost, held_usd=held)
        for name, count, cost, held in rows
    ]
    return tuple(sorted(found, key=lambda one: (-one.cost_usd - one.held_usd, one.name)))


def clusters(connection: Connection, scope: Scope) -> tuple[ClusterSpend, ...]:
    """Return open-ended chats by cluster, the most expensive first, at most 50."""
    is_chat = and_(exits.c.endpoint != "audit", exits.c.outcome == "answered")
    is_cheaper = and_(is_chat, exits.c.reason.in_(("earned_tier", "cascade")))
    query: Select[Any] = (
        select(
            exits.c.cluster,
            func.count(case((is_chat, exits.c.id))),
            func.count(case((is_cheaper, exits.c.id))),
            _dollars(case((exits.c.endpoint != "audit", exits.c.cost_usd))),
            _dollars(case((exits.c.endpoint == "audit", exits.c.cost_usd))),
        )
        .where(scope.covers(), exits.c.cluster.is_not(None))
        .group_by(exits.c.cluster)
    )
    found = [
        ClusterSpend(name=name, answered=count, cheaper=cheaper, cost_usd=cost, own_usd=own)
        for name, count, cheaper, cost, own in connection.execute(query).all()
    ]
    found.sort(key=lambda one: (-one.cost_usd, one.name))
    return tuple(found[:_MOST_CLUSTERS])


def _dollars(amount: Any) -> Any:
    return type_coerce(func.coalesce(func.sum(amount), 0), Usd)
