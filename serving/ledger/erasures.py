"""Lists of what was deleted by request, so that work which was running does not write it again.

Each function takes part in a transaction of the caller's, on a table with the columns `id` and
`at`. A transaction that writes what a deletion may name, and one that deletes it, take the same
lock first: one of them sees the other.
"""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, Connection, Row, Table, delete, or_, select

from serving.ledger.instances import clock_ahead, database_now

_SKEW = timedelta(seconds=1)
"""Between the clocks of gateways, and of how far PostgreSQL's differs; SQLite has a gateway's."""


def note_erasure(
    connection: Connection, table: Table, values: dict[str, str | None], remembered: timedelta
) -> None:
    """Write that something was deleted now, and forget what was deleted longer ago than that."""
    now = database_now(connection)
    is_old = or_(table.c.at < now - remembered, table.c.at > now + remembered)
    connection.execute(delete(table).where(is_old))
    connection.execute(table.insert(), {"id": uuid4().hex, "at": now, **values})


def erasures_since(
    connection: Connection, table: Table, first: datetime, *conditions: ColumnElement[bool]
) -> list[tuple[Row[Any], datetime]]:
    """Return deletions that may cover what began at `first` or later, by this process's clock.

    With each, the moment of this clock until which it covers what began.
    """
    skew = timedelta(0) if connection.dialect.name == "sqlite" else _SKEW
    ahead = clock_ahead(connection)
    # A later moment is of a clock that was set back since: it says nothing of what begins now.
    now = datetime.now(UTC) + ahead
    query = select(table).where(table.c.at >= first + ahead - skew, table.c.at <= now, *conditions)
    return [(row, row.at + skew - ahead) for row in connection.execute(query)]
