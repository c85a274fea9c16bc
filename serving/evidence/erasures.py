"""Remembers for a day what was deleted, so that work which was running does not write it again.

Every function takes part in a transaction of the caller's. A transaction that writes what names
a tenant, and one that deletes it, lock the sequence of evidence first: one of them sees the other.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, update

from serving.ledger import erasures
from serving.ledger.schema import evidence_erasures, evidence_sequence

_REMEMBERED = timedelta(days=1)
"""Longer than an input waits in a gateway's memory for its audit."""


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
    digest = None if end_user is None else _digest(tenant, end_user)
    values = {"tenant": tenant, "request_id": request_id, "end_user_digest": digest}
    erasures.note_erasure(connection, evidence_erasures, values, _REMEMBERED)


def erased(connection: Connection, origins: Iterable[DrawnInput]) -> set[DrawnInput]:
    """Return those that were deleted after they were drawn. Call it after `lock_evidence`."""
    found = list(origins)
    first = min((one.at for one in found), default=None)
    if first is None:
        return set()
    is_theirs = evidence_erasures.c.tenant.in_({one.tenant for one in found})
    noted = erasures.erasures_since(connection, evidence_erasures, first, is_theirs)
    return {one for one in found for row, until in noted if _covers(row, one, until)}


def _covers(row: Row[Any], one: DrawnInput, until: datetime) -> bool:
    if one.tenant != row.tenant or one.at > until or row.request_id not in (None, one.request_id):
        return False
    digest = row.end_user_digest
    return digest is None or (
        one.end_user is not None and digest == _digest(one.tenant, one.end_user)
    )


def _digest(tenant: str, end_user: str) -> str:
    return hashlib.sha256(f"{tenant}\x00{end_user}".encode("utf-8", "replace")).hexdigest()
