"""Remembers what was deleted by request, so that an answer being made is not stored after it.

Every function takes part in a transaction of the caller's. A transaction that stores entries, and
one that deletes them by request, lock the cache's sequence first: one of them sees the other.
"""

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, update

from serving.cache.entry import PackedEntry
from serving.cache.schema import cache_erasures, cache_sequence
from serving.ledger import erasures

_REMEMBERED = timedelta(days=2)
"""Longer than a request, or a line of a batch, is being answered."""


def lock_entries(connection: Connection) -> None:
    """Hold off other transactions that store or delete entries, until this one's end."""
    value = cache_sequence.c.value
    connection.execute(update(cache_sequence).values(value=value))


def note_erasure(connection: Connection, given: Mapping[str, str]) -> None:
    """Write that entries were deleted now, and forget what was deleted over two days ago.

    given: `namespace`, `tenant`, `request_id`, `end_user` of the entries; all of them without one.
    """
    user = given.get("end_user")
    values = {name: given.get(name) for name in ("namespace", "tenant", "request_id")}
    values["end_user_digest"] = None if user is None else _digest(user)
    erasures.note_erasure(connection, cache_erasures, values, _REMEMBERED)


def kept(connection: Connection, entries: Iterable[PackedEntry]) -> list[PackedEntry]:
    """Return the entries whose requests arrived after every deletion that names them.

    Call it after `lock_entries`.
    """
    found = list(entries)
    first = min((one.arrived_at for one in found), default=None)
    if first is None:
        return []
    noted = erasures.erasures_since(connection, cache_erasures, first)
    return [one for one in found if not any(_covers(row, one, until) for row, until in noted)]


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
