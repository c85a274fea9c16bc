"""What became of the lines that a lost process was running: the ledger knows what was paid.

Every function is blocking.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

from sqlalchemy import select

from serving.ledger.database import Database
from serving.ledger.schema import calls, exits

_CLOCKS_DIFFER = timedelta(minutes=10)


@dataclass(frozen=True, slots=True)
class Paid:
    """Calls of providers for one attempt that were billed, or may have been.

    usd: known costs, and worst cases of the others.
    """

    usd: Decimal


def paid_attempts(
    database: Database, tenant: str, request_ids: Sequence[str], since: datetime
) -> Mapping[str, Paid]:
    """Return those attempts that a provider may have billed, by request id.

    A call is written before it is made, so that an attempt without one has cost nothing. since:
    when the first of them was started.
    """
    query = (
        select(exits.c.request_id, calls.c.state, calls.c.cost_usd, calls.c.held_usd)
        .join(calls, calls.c.exit_id == exits.c.id)
        .where(
            exits.c.tenant == tenant,
            # A client may send any id with a request of its own.
            exits.c.lane == "batch",
            exits.c.opened_at >= since - _CLOCKS_DIFFER,
            exits.c.request_id.in_(request_ids),
            exits.c.endpoint != "audit",
            calls.c.kind == "frontier",
        )
    )
    found: dict[str, Paid] = {}
    with database.read() as connection:
        for row in connection.execute(query):
            usd = (row.cost_usd or Decimal(0)) + row.held_usd
            if row.state != "closed" or usd:
                before = found.get(row.request_id, Paid(Decimal(0)))
                found[row.request_id] = Paid(before.usd + usd)
    return found
