"""Batches of audits in the database: collected from pending audits, ended with their verdicts.

They are rows of the batch tables, of the endpoint AUDIT, and are shown to no tenant. Every method
is blocking and raises LedgerUnavailable where the database is unreachable.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

from sqlalchemy import Row, and_, func, select, update

from serving.batch.schema import batch_lines, batches
from serving.batch.store import AUDIT, ActiveBatch, BatchStore, require_lease
from serving.evidence.pending_audits import drop_audits
from serving.ledger.schema import evidence_pending

WINDOW = "24h"

_AT_ONCE = 5000
_LASTS = timedelta(hours=24)
_PROMPT_BYTES = 20_000
"""Added to the size of an audit's content: the task's own part of its request."""

_Key = tuple[str, str | None, str, str]


@dataclass(frozen=True, slots=True)
class Awaited:
    """Audits without a verdict. oldest_at: their first draw. usd: worst case of all together."""

    audits: int = 0
    oldest_at: datetime | None = None
    usd: Decimal = Decimal(0)


class AuditStore:
    """Collects pending audits into batches, and ends these."""

    def __init__(self, store: BatchStore) -> None:
        self._store = store
        self._database = store.database

    def has_pending(self) -> bool:
        """Return whether an audit waits to be collected; reads only."""
        query = select(evidence_pending.c.id).where(evidence_pending.c.batch.is_(None)).limit(1)
        with self._database.read() as connection:
            return connection.execute(query).first() is not None

    def awaited(self) -> Awaited:
        """Return how many audits have no verdict."""
        pending = evidence_pending.c
        query = select(func.count(), func.min(pending.drawn_at), func.sum(pending.worst_usd))
        with self._database.read() as connection:
            count, oldest_at, usd = connection.execute(query).one()
        return Awaited(int(count), oldest_at, usd or Decimal(0))

    def collect(
        self,
        holder: str,
        now: datetime,
        collect_since: datetime,
        drop_before: datetime,
        is_served: Callable[[str], bool],
    ) -> int:
        """Put audits that wait into batches, once one of them waits since collect_since.

        Those drawn before drop_before get no verdict. is_served: whether a reference has a batch
        API now. Returns the number of batches. Raises LeaseLost.
        """
        pending = evidence_pending.c
        query = (
            select(evidence_pending)
            .where(pending.batch.is_(None))
            .order_by(pending.drawn_at, pending.id)
            .limit(_AT_ONCE)
        )
        with self._database.begin() as connection:
            require_lease(connection, holder)
            rows = connection.execute(query).all()
            late = [row for row in rows if row.drawn_at < drop_before]
            drop_audits(connection, late, now)
            rows = [row for row in rows[len(late) :] if is_served(row.reference)]
            if not rows or rows[0].drawn_at > collect_since:
                return 0
            groups: defaultdict[_Key, list[Row[Any]]] = defaultdict(list)
            for row in rows:
                groups[row.tenant, row.key_id, row.task, row.reference].append(row)
            for key, some in groups.items():
                batch = _batch_row(key, now)
                connection.execute(batches.insert(), [batch])
                lines = [_line_row(batch["id"], n, row) for n, row in enumerate(some, 1)]
                connection.execute(batch_lines.insert(), lines)
                ids = [row.id for row in some]
                connection.execute(
                    update(evidence_pending).where(pending.id.in_(ids)).values(batch=batch["id"])
                )
        return len(groups)

    def finish(self, batch: ActiveBatch, now: datetime, again_since: datetime | None) -> int:
        """End a batch whose lines have all ended; return how many audits got no verdict.

        Those of expired lines that were drawn since again_since wait for another batch; None lets
        none wait. Raises LeaseLost where it has ended already.
        """
        pending, line = evidence_pending.c, batch_lines.c
        with self._database.begin() as connection:
            rows = connection.execute(
                select(evidence_pending, line.state.label("line_state"))
                .join(batch_lines, and_(line.batch == batch.id, line.custom_id == pending.id))
                .where(pending.batch == batch.id)
            ).all()
            dropped = [
                row
                for row in rows
                if row.line_state != "expired" or again_since is None or row.drawn_at < again_since
            ]
            drop_audits(connection, dropped, now)
            # The others: what was dropped is gone.
            connection.execute(
                update(evidence_pending).where(pending.batch == batch.id).values(batch=None)
            )
            self._store.finish(connection, batch, {}, now)
        return len(dropped)


def _batch_row(key: _Key, now: datetime) -> dict[str, Any]:
    tenant, key_id, task, _ = key
    return {
        "id": f"batch_{uuid4().hex}", "tenant": tenant, "key_id": key_id, "endpoint": AUDIT,
        "input_file": "", "completion_window": WINDOW, "status": "in_progress",
        "metadata": json.dumps({"task": task}), "problems": "[]", "plan": "[]",
        "created_at": now, "expires_at": now + _LASTS, "in_progress_at": now,
    }  # fmt: skip


def _line_row(batch: str, number: int, row: Row[Any]) -> Mapping[str, Any]:
    return {
        "batch": batch, "number": number, "custom_id": row.id, "start": 0,
        "length": len(row.content) + _PROMPT_BYTES, "state": "waiting", "attempt": 0,
        "target": row.reference, "worst_usd": row.worst_usd, "key_id": "",
    }  # fmt: skip
