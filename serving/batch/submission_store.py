"""Lines in providers' batches, in the database. Every method is blocking."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal
from uuid import uuid4

from sqlalchemy import Row, and_, bindparam, case, func, or_, select, update

from serving.batch.schema import batch_lines, batch_submissions
from serving.batch.store import END_LINE, ClaimedLine, LineEnd, end_row, require_lease
from serving.ledger.database import Database
from serving.ledger.schema import calls, exits

_NEAR = timedelta(hours=2)
"""Lines are held soon after the intent is written; hosts' clocks differ."""

SubmissionState = Literal["holding", "intent", "submitted", "ended", "abandoned"]


@dataclass(frozen=True, slots=True)
class Submission:
    """A batch at a provider. id: our key of it. provider_id: None while it may not exist."""

    id: str
    batch: str
    provider: str
    model: str
    state: SubmissionState
    provider_id: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class LedgerRows:
    """The rows of a line's call, as an earlier process may have opened them."""

    exit: Mapping[str, Any]
    call: Mapping[str, Any]


class SubmissionStore:
    """Reads and writes submissions and the lines that they hold."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def targets(self, batch: str, now: datetime) -> dict[str, bool]:
        """Return the providers' models of a batch's open lines, and whether one may be sent now."""
        line = batch_lines.c
        ready = and_(
            line.state == "waiting", or_(line.not_before.is_(None), line.not_before <= now)
        )
        query = (
            select(line.target, func.max(case((ready, 1), else_=0)))
            .where(
                line.batch == batch, line.state.in_(("waiting", "submitted")),
                line.target.is_not(None),
            )
            .group_by(line.target)
            .order_by(line.target)
        )  # fmt: skip
        with self._database.read() as connection:
            return {target: bool(is_ready) for target, is_ready in connection.execute(query)}

    def claim(
        self,
        holder: str,
        batch: str,
        target: str,
        most: int,
        now: datetime,
        room_usd: Decimal | None,
    ) -> tuple[str, list[ClaimedLine]]:
        """Take lines for a submission; return its key and the lines. Raises LeaseLost.

        room_usd: their worst cases together stay within it.
        """
        line, key = batch_lines.c, f"sub_{uuid4().hex}"
        provider, _, model = target.partition("/")
        with self._database.begin() as connection:
            require_lease(connection, holder)
            rows = connection.execute(
                select(batch_lines)
                .where(
                    line.batch == batch, line.state == "waiting", line.target == target,
                    or_(line.not_before.is_(None), line.not_before <= now),
                )
                .order_by(line.number)
                .limit(most)
            ).all()  # fmt: skip
            chosen: list[Row[Any]] = []
            left = room_usd
            for row in rows:
                if left is not None:
                    if row.worst_usd is None or row.worst_usd > left:
                        break
                    left -= row.worst_usd
                chosen.append(row)
            if chosen:
                connection.execute(batch_submissions.insert(), [{
                    "id": key, "provider": provider, "model": model, "state": "holding",
                    "lines": len(chosen), "created_at": now,
                }])  # fmt: skip
                connection.execute(
                    update(batch_lines)
                    .where(line.batch == batch, line.number == bindparam("of_number"))
                    .values(
                        state="submitted", submission=key, started_at=now,
                        attempt=line.attempt + 1, holder=None,
                    ),
                    [{"of_number": row.number} for row in chosen],
                )  # fmt: skip
        return key, [
            ClaimedLine(row.batch, row.number, row.attempt + 1, row.custom_id, row.start,
                        row.length, row.target, row.worst_usd)
            for row in chosen
        ]  # fmt: skip

    def intend(self, holder: str, submission: str) -> None:
        """Write the intent to call the provider. Raises LeaseLost."""
        table = batch_submissions.c
        with self._database.begin() as connection:
            require_lease(connection, holder)
            connection.execute(
                update(batch_submissions)
                .where(table.id == submission, table.state == "holding")
                .values(state="intent")
            )

    def opened(self) -> list[Submission]:
        """Return the submissions that have not ended, the oldest first."""
        table = batch_submissions.c
        batch = (
            select(func.min(batch_lines.c.batch))
            .where(batch_lines.c.submission == table.id)
            .scalar_subquery()
        )
        query = (
            select(batch_submissions, batch.label("batch"))
            .where(table.state.in_(("holding", "intent", "submitted")))
            .order_by(table.created_at, table.id)
        )
        with self._database.read() as connection:
            return [
                Submission(row.id, row.batch or "", row.provider, row.model, row.state,
                           row.provider_id, row.created_at)
                for row in connection.execute(query)
            ]  # fmt: skip

    def lines(self, submission: str) -> list[ClaimedLine]:
        """Return the lines of a submission that have not ended."""
        line = batch_lines.c
        query = select(batch_lines).where(line.submission == submission, line.state == "submitted")
        with self._database.read() as connection:
            return [
                ClaimedLine(row.batch, row.number, row.attempt, row.custom_id, row.start,
                            row.length, row.target, row.worst_usd)
                for row in connection.execute(query.order_by(line.number))
            ]  # fmt: skip

    def mark(
        self, submission: str, state: SubmissionState, now: datetime, provider_id: str | None
    ) -> None:
        """Write a submission's state."""
        ended = {"ended_at": now} if state in ("ended", "abandoned") else {}
        with self._database.begin() as connection:
            connection.execute(
                update(batch_submissions)
                .where(batch_submissions.c.id == submission)
                .values(state=state, provider_id=provider_id, **ended)
            )

    def end_lines(self, submission: str, ends: Sequence[LineEnd]) -> None:
        """Write how lines of a submission ended; those that wait again leave it."""
        line = batch_lines.c
        rows = [
            {**end_row(end), "new_submission": None if end.state == "waiting" else submission}
            for end in ends
        ]
        if not rows:
            return
        statement = END_LINE.where(line.state == "submitted", line.submission == submission)
        with self._database.begin() as connection:
            connection.execute(statement.values(submission=bindparam("new_submission")), rows)

    def ledger_rows(
        self, tenant: str, request_ids: Sequence[str], since: datetime
    ) -> dict[str, LedgerRows]:
        """Return the rows of attempts by request id. since: about when they were started."""
        joined = select(exits, calls).join(calls, calls.c.exit_id == exits.c.id)
        query = joined.where(
            exits.c.tenant == tenant,
            # Both bounds: a tenant may have a million rows a day.
            exits.c.opened_at >= since - _NEAR,
            exits.c.opened_at <= since + _NEAR,
            exits.c.request_id.in_(request_ids),
        )
        found = {}
        with self._database.read() as connection:
            for row in connection.execute(query):
                exit_ = {column.name: row[n] for n, column in enumerate(exits.c)}
                call = {column.name: row[len(exits.c) + n] for n, column in enumerate(calls.c)}
                found[exit_["request_id"]] = LedgerRows(exit_, call)
        return found
