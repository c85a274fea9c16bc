"""Remembers for a day what was deleted, so that work which was running does not write it again.

Every function takes part in a transaction of the caller's. A transaction that writes what names
a tenant, and one that deletes it, lock the sequence of evidence first: one of them sees the other.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy import Connection, Row, delete, or_, select, update

from serving.ledger.instances import clock_ahead, database_now
from serving.ledger.schema import evidence_erasures, evidence_sequence

_REMEMBERED = timedelta(days=1)
"""Longer than an input waits in a gateway's memory for its audit."""
_SKEW = timedelta(seconds=1)
"""Between the clocks of gateways, and of how far PostgreSQL's differs; SQLite has a gateway's."""


@dataclass(frozen=True, slots=True)
class DrawnInput:
    """Whose input it was, and when it was drawn."""

    tenant: str
    request_id: str
    end_user: str | None
    at: datetime


def lock_evidence(connection: Connection) -> None:
    """Hold off other transactions that write or delete evidence, until this one's end."""
    value = evidence_sequence.c.value
    connection.execute(update(evidence_sequence).values(value=value))


def note_erasure(
    connection: Connection, tenant: str, request_id: str | None, end_user: str | None
) -> None:
    """Write that this was deleted now, and forget what was deleted over a day ago."""
    now, column = database_now(connection), evidence_erasures.c.at
    is_old = or_(column < now - _REMEMBERED, column > now + _REMEMBERED)
    connection.execute(delete(evidence_erasures).where(is_old))
    digest = None if end_user is None else _digest(tenant, end_user)
    row = {
        "id": uuid4().hex, "tenant": tenant, "request_id": request_id, "end_user_digest": digest,
        "at": now,
    }  # fmt: skip
    connection.execute(evidence_erasures.insert(), row)


def erased(connection: Connection, origins: Iterable[DrawnInput]) -> set[DrawnInput]:
    """Return those that were deleted after they were drawn. Call it after `lock_evidence`."""
    found = list(origins)
    table = evidence_erasures.c
    now = database_now(connection)
    # A later moment is of a clock that was set back since: it says nothing of what is drawn now.
    query = select(evidence_erasures).where(
        table.tenant.in_({one.tenant for one in found}), table.at > now - _REMEMBERED,
        table.at <= now,
    )  # fmt: skip
    rows = connection.execute(query).all()
    skew = timedelta(0) if connection.dialect.name == "sqlite" else _SKEW
    until = skew - clock_ahead(connection)
    return {one for one in found for row in rows if _covers(row, one, row.at + until)}


def _covers(row: Row[Any], one: DrawnInput, until: datetime) -> bool:
    if one.tenant != row.tenant or one.at > until or row.request_id not in (None, one.request_id):
        return False
    digest = row.end_user_digest
    return digest is None or (
        one.end_user is not None and digest == _digest(one.tenant, one.end_user)
    )


def _digest(tenant: str, end_user: str) -> str:
    return hashlib.sha256(f"{tenant}\x00{end_user}".encode("utf-8", "replace")).hexdigest()
