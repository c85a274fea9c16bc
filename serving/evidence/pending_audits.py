"""Audits that wait for the reference's answer from a provider's batch. All methods block.

The input is stored encrypted, as texts for people are, until its verdict is written. One
transaction takes an audit from the draws into this table, and one from this table into the
verdicts: a crash leaves it in exactly one of them.
"""

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, delete, func, select

from serving.contracts.answer import Answer, TaskRequest, Value
from serving.contracts.evidence import AWAITED, Audit
from serving.evidence.erasures import lock_evidence
from serving.evidence.heads.cipher import UnreadableContent, VectorCipher
from serving.evidence.store import append_audits, find_audit
from serving.ledger.database import Database
from serving.ledger.schema import evidence_draws, evidence_pending

_LATE_AT_ONCE = 5000
_AUDIT: TypeAdapter[Audit] = TypeAdapter(Audit)
_VALUE: TypeAdapter[Value] = TypeAdapter(Value)


@dataclass(frozen=True, slots=True)
class ProposedValue:
    """What a candidate answered when the input was drawn."""

    name: str
    confidence: float
    value: Value
    valid: bool


@dataclass(frozen=True, slots=True)
class PendingAudit:
    """One audited input that awaits the reference's answer.

    audit: its row, without a verdict. spec: digest of the task as it was at the draw. served: the
    answer that the client got. local: the local model's, None where none ran. vector: of the text,
    (dimensions,) float32, None without one. proposed: by the candidates that existed at the draw; a
    later one must not be judged by it. key_id: of the caller. worst_usd: of the reference's call.
    """

    audit: Audit
    request: TaskRequest
    spec: str
    served: Answer
    local: Answer | None
    vector: NDArray[np.float32] | None
    proposed: tuple[ProposedValue, ...]
    key_id: str | None
    worst_usd: Decimal

    @property
    def id(self) -> str:
        """Return the name of its row."""
        return f"{self.audit.claim}:{self.audit.input}"


class PendingAudits:
    """Keeps pending audits in the database. One object serves any thread."""

    def __init__(self, database: Database, cipher: VectorCipher) -> None:
        self._database = database
        self._cipher = cipher

    def defer(self, found: Sequence[PendingAudit]) -> None:
        """Store audits and note that they are awaited, in place of their draws.

        May be repeated after a lost confirmation, also where a verdict has come since.
        """
        if not found:
            return
        rows = [self._row(one) for one in found]
        awaited = [
            replace(one.audit, input=f"{one.audit.input}{AWAITED}", verdict="awaited")
            for one in found
        ]
        with self._database.begin() as connection:
            new = {(row.claim, row.input) for row in append_audits(connection, awaited)}
            for row, note in zip(rows, awaited, strict=True):
                if (note.claim, note.input) in new:
                    connection.execute(evidence_pending.insert(), [row])
                draw = evidence_draws.c.id == row["id"]
                connection.execute(delete(evidence_draws).where(draw))

    def find(self, ids: Iterable[str]) -> dict[str, PendingAudit]:
        """Return pending audits by id; those that are settled, deleted or unreadable are missing.

        An unreadable one was encrypted with a key that is not configured any more.
        """
        names = sorted(set(ids))
        with self._database.read() as connection:
            rows = connection.execute(
                select(evidence_pending).where(evidence_pending.c.id.in_(names))
            ).all()
        return {row.id: one for row in rows if (one := self._read(row)) is not None}

    def settle(self, verdicts: Sequence[Audit]) -> list[Audit]:
        """Write verdicts of pending audits; return those that were written.

        An audit that is not pending any more was settled before, or deleted with its tenant.
        """
        with self._database.begin() as connection:
            return settle_audits(connection, verdicts)

    def outstanding_usd(self) -> Decimal:
        """Return the worst case of all pending audits, US dollars."""
        query = select(func.sum(evidence_pending.c.worst_usd))
        with self._database.read() as connection:
            found: Decimal | None = connection.execute(query).scalar_one()
        return found or Decimal(0)

    def _row(self, one: PendingAudit) -> dict[str, Any]:
        audit = one.audit
        return {
            "id": one.id, "claim": audit.claim, "input": audit.input, "task": one.request.task,
            "reference": audit.reference, "tenant": audit.tenant, "key_id": one.key_id,
            "request_id": audit.request_id, "end_user": audit.end_user,
            "worst_usd": one.worst_usd, "drawn_at": audit.drawn_at,
            "content": self._cipher.encrypted(_content(one), one.id),
        }  # fmt: skip

    def _read(self, row: Row[Any]) -> PendingAudit | None:
        try:
            content = json.loads(self._cipher.decrypted(row.content, row.id))
        except UnreadableContent:
            return None
        vector = content["vector"]
        local = content["local"]
        return PendingAudit(
            _AUDIT.validate_python(content["audit"]),
            TaskRequest(**content["request"]),
            content["spec"],
            Answer.model_validate(content["served"]),
            None if local is None else Answer.model_validate(local),
            None if vector is None else np.frombuffer(base64.b64decode(vector), np.float32),
            tuple(
                ProposedValue(p["name"], p["confidence"], _VALUE.validate_python(p["value"]),
                              p["valid"])
                for p in content["proposed"]
            ),
            row.key_id,
            row.worst_usd,
        )  # fmt: skip


def settle_audits(connection: Connection, verdicts: Sequence[Audit]) -> list[Audit]:
    """As PendingAudits.settle, within a transaction."""
    if not verdicts:
        return []
    # First, as a deletion does: it would wait for a row that this one has, and this for its lock.
    lock_evidence(connection)
    pending = evidence_pending.c
    waited = [
        # The inputs that took the shortcut were counted in the row that says `awaited`.
        replace(audit, accepted=0)
        for audit in verdicts
        if connection.execute(
            delete(evidence_pending).where(pending.id == f"{audit.claim}:{audit.input}")
        ).rowcount
    ]
    return append_audits(connection, waited)


def drop_late_audits(database: Database, silence_h: float) -> int:
    """End audits that were drawn so many hours ago without a verdict; return how many. Blocking.

    The batch lane does so itself; where it is off, they would wait for ever.
    """
    now = datetime.now(UTC)
    late = evidence_pending.c.drawn_at < now - timedelta(hours=silence_h)
    with database.begin() as connection:
        query = select(evidence_pending).where(late).order_by(evidence_pending.c.drawn_at)
        rows = connection.execute(query.limit(_LATE_AT_ONCE)).all()
        drop_audits(connection, rows, now)
        # Also those without a note that they are awaited.
        names = [row.id for row in rows]
        connection.execute(delete(evidence_pending).where(evidence_pending.c.id.in_(names)))
    return len(rows)


def drop_audits(connection: Connection, rows: Iterable[Row[Any]], at: datetime) -> list[Audit]:
    """End pending audits that get no verdict, within a transaction; return their rows.

    Their contents need not be readable: what is written was noted when they were deferred.
    """
    found = [find_audit(connection, row.claim, f"{row.input}{AWAITED}") for row in rows]
    return settle_audits(connection, [
        replace(
            audit, input=audit.input.removesuffix(AWAITED), verdict="dropped", judged_at=at
        )
        for audit in found
        if audit is not None
    ])  # fmt: skip


def _content(one: PendingAudit) -> bytes:
    vector = one.vector
    return json.dumps({
        "audit": _AUDIT.dump_python(one.audit, mode="json"),
        "request": asdict(one.request),
        "spec": one.spec,
        "served": one.served.model_dump(mode="json"),
        "local": None if one.local is None else one.local.model_dump(mode="json"),
        "vector": None if vector is None
        else base64.b64encode(vector.astype(np.float32).tobytes()).decode(),
        "proposed": [
            {"name": p.name, "confidence": p.confidence,
             "value": _VALUE.dump_python(p.value, mode="json"), "valid": p.valid}
            for p in one.proposed
        ],
    }).encode()  # fmt: skip
