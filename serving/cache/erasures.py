"""Remembers what was deleted by request, so that an answer being made is not stored after it.

Every function takes part in a transaction of the caller's. A transaction that stores entries, and
one that deletes them by request, lock the cache's sequence first: one of them sees the other.
"""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Row, delete, or_, select, update

from serving.cache.entry import PackedEntry
from serving.cache.schema import cache_erasures as table
from serving.cache.schema import cache_sequence
from serving.ledger.instances import clock_ahead, database_now

_REMEMBERED = timedelta(days=2)
"""Longer than a request, or a line of a batch, is being answered."""
_SKEW = timedelta(seconds=1)
"""Between the clocks of gateways, and of how far PostgreSQL's differs; SQLite has a gateway's."""


def lock_entries(connection: Connection) -> None:
    """Hold off other transactions that store or delete entries, until this one's end."""
    value = cache_sequence.c.value
    connection.execute(update(cache_sequence).values(value=value))


def note_erasure(connection: Connection, given: Mapping[str, str]) -> None:
    """Write that entries were deleted now, and forget what was deleted over two days ago.

    given: `namespace`, `tenant`, `request_id`, `end_user` of the entries; all of them without one.
    """
    now = database_now(connection)
    is_old = or_(table.c.at < now - _REMEMBERED, table.c.at > now + _REMEMBERED)
    connection.execute(delete(table).where(is_old))
    user = given.get("end_user")
    connection.execute(table.insert(), {
        "id": uuid4().hex, "namespace": given.get("namespace"), "tenant": given.get("tenant"),
        "request_id": given.get("request_id"),
        "end_user_digest": None if user is None else _digest(user), "at": now,
    })  # fmt: skip


def kept(connection: Connection, entries: Iterable[PackedEntry]) -> list[PackedEntry]:
    """Return the entries whose requests arrived after every deletion that names them.

    Call it after `lock_entries`.
    """
    found = list(entries)
    skew = timedelta(0) if connection.dialect.name == "sqlite" else _SKEW
    if not found:
        return []
    ahead = clock_ahead(connection)
    first = min(one.arrived_at for one in found) + ahead
    # A later moment is of a clock that was set back since: it says nothing of what arrives now.
    query = select(table).where(
        table.c.at >= first - skew, table.c.at <= database_now(connection)
    )  # fmt: skip
    rows = connection.execute(query).all()
    return [
        one for one in found if not any(_covers(row, one, row.at + skew - ahead) for row in rows)
    ]


def _covers(row: Row[Any], packed: PackedEntry, until: datetime) -> bool:
    entry = packed.entry
    fields = ((row.namespace, entry.namespace), (row.tenant, entry.tenant),
              (row.request_id, entry.request_id))  # fmt: skip
    if packed.arrived_at > until or any(given not in (None, own) for given, own in fields):
        return False
    digest = row.end_user_digest
    return digest is None or (entry.end_user is not None and digest == _digest(entry.end_user))


def _digest(end_user: str) -> str:
    return hashlib.sha256(end_user.encode("utf-8", "replace")).hexdigest()
