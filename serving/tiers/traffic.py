"""What requests of each cluster are like, from the ledger. Blocking."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, and_, func, select

from serving.ledger.database import Database
from serving.ledger.instances import database_now
from serving.ledger.schema import exits
from serving.tiers.policy import Traffic

WINDOW = timedelta(days=7)
_LEAST_DAYS = 1.0 / 24.0
"""Traffic of a shorter time says little about a day."""


@dataclass(frozen=True, slots=True)
class ClusterTraffic:
    """The requests of one tenant in one cluster. cluster: as the ledger names it."""

    tenant: str
    cluster: str
    traffic: Traffic


def read_traffic(database: Database, window: timedelta = WINDOW) -> list[ClusterTraffic]:
    """Return the traffic of every cluster. Raises LedgerUnavailable."""
    tokens = exits.c.uncached_input_tokens + exits.c.cache_read_tokens
    written = exits.c.cache_write_5m_tokens + exits.c.cache_write_1h_tokens
    output = exits.c.output_tokens + exits.c.reasoning_tokens
    with database.read() as connection:
        now = database_now(connection)
        query: Select[Any] = (
            select(
                exits.c.tenant, exits.c.cluster, func.count(), func.min(exits.c.opened_at),
                func.avg(tokens + written), func.avg(output),
            )
            .where(
                and_(
                    exits.c.cluster.is_not(None), exits.c.endpoint != "audit",
                    exits.c.outcome == "answered", exits.c.route == "frontier",
                    exits.c.opened_at >= now - window, exits.c.output_tokens.is_not(None),
                )
            )
            .group_by(exits.c.tenant, exits.c.cluster)
        )  # fmt: skip
        rows = connection.execute(query).all()
    return [
        ClusterTraffic(
            tenant, cluster, Traffic(count, _days(now, first), float(given), float(made))
        )
        for tenant, cluster, count, first, given, made in rows
    ]


def _days(now: datetime, first: datetime) -> float:
    return max(_LEAST_DAYS, (now - first) / timedelta(days=1))
