"""Lines in providers' batches, in the database. Every method is blocking."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal
from uuid import uuid4

from sqlalchemy import and_, bindparam, case, func, or_, select, update

from serving.batch.schema import batch_lines, batch_submissions
from serving.batch.store import (
    ClaimedLine,
    LineEnd,
    StoredResult,
    claimed_line,
    is_due,
    release_equal,
    require_lease,
    written,
)
from serving.ledger.database import Database
from serving.ledger.schema import calls, exits

_NEAR = timedelta(hours=2)
"""Lines are held soon after the intent is written; hosts' clocks differ."""

# Not the requests: thousands of them are not in memory at once.
_CLAIMED = [column for column in batch_lines.c if column.name != "result"]

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
class TargetLines:
    """Lines of a batch for one model of a provider. waiting: those that may be sent now.

    is_first: one of them was never started.
    """

    waiting: int
    is_first: bool


@dataclass(frozen=True, slots=True)
class LedgerRows:
    """The rows of a line's call, as an earlier process may have opened them."""

    exit: Mapping[str, Any]
    call: Mapping[str, Any]


class SubmissionStore:
    """Reads and writes submissions and the lines that they hold."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def targets(self, batch: str, now: datetime) -> "dict[str, TargetLines]":
        """Return the open lines of a batch by the provider's model that they are for."""
        line = batch_lines.c
        ready = and_(line.state == "waiting", is_due(now))
        first = and_(ready, line.attempt == 0)
        query = (
            select(line.target, func.sum(case((ready, 1), else_=0)),
                   func.max(case((first, 1), else_=0)))
            .where(
                line.batch == batch, line.state.in_(("waiting", "submitted")),
                line.target.is_not(None),
            )
            .group_by(line.target)
            .order_by(line.target)
        )  # fmt: skip
        with self._database.read() as connection:
            return {
                target: TargetLines(int(waiting), bool(is_first))
                for target, waiting, is_first in connection.execute(query)
            }

    def may_grow(self, batch: str) -> bool:
        """Return whether lines of a batch may still come to wait for a provider's batch."""
        line = batch_lines.c
        own = and_(line.state == "waiting", line.target.is_(None))
        query = select(line.number).where(line.batch == batch, or_(own, line.state == "running"))
        with self._database.read() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def requests(self, batch: str, numbers: Sequence[int]) -> dict[int, StoredResult]:
        """Return the providers' own requests of those lines that have one, by line."""
        line = batch_lines.c
        columns = (line.number, line.custom_id, line.state, line.error, line.result, line.key_id)
        query = select(*columns).where(
            line.batch == batch, line.number.in_(numbers), line.result.is_not(None)
        )
        with self._database.read() as connection:
            return {row.number: StoredResult(*row) for row in connection.execute(query)}

    def leave(self, submission: str, numbers: Sequence[int]) -> None:
        """Return lines of a submission to the gateway's own lane: no provider is needed."""
        line = batch_lines.c
        with self._database.begin() as connection:
            connection.execute(
                update(batch_lines)
                .where(line.submission == submission, line.number.in_(numbers))
                .values(state="waiting", submission=None, target=None)
            )

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

        room_usd: their worst cases at batch prices together stay within it.
        """
        line, key = batch_lines.c, f"sub_{uuid4().hex}"
        provider, _, model = target.partition("/")
        with self._database.begin() as connection:
            require_lease(connection, holder)
            rows = connection.execute(
                select(*_CLAIMED)
                .where(
                    line.batch == batch, line.state == "waiting", line.target == target,
                    is_due(now),
                )
                .order_by(line.number)
                .limit(most)
            ).all()  # fmt: skip
            chosen: list[ClaimedLine] = []
            left = room_usd
            for row in (claimed_line(row, row.attempt + 1) for row in rows):
                if left is not None:
                    usd = row.most_usd(in_batch=True)
                    if usd is None or usd > left:
                        break
                    left -= usd
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
        return key, chosen

    def reprice(self, submission: str, usd: Mapping[int, Decimal]) -> None:
        """Write what lines of a submission may cost as the ledger holds it. usd: by number."""
        line = batch_lines.c
        if not usd:
            return
        with self._database.begin() as connection:
            connection.execute(
                update(batch_lines)
                .where(line.submission == submission, line.number == bindparam("of_number"))
                .values(batch_usd=bindparam("new_batch_usd")),
                [{"of_number": number, "new_batch_usd": one} for number, one in usd.items()],
            )

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
        query = select(*_CLAIMED).where(line.submission == submission, line.state == "submitted")
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(line.number))
            return [claimed_line(row, row.attempt) for row in rows]

    def ran(self, submission: str) -> int:
        """Return how many lines of a submission have ended with an answer or an error."""
        line = batch_lines.c
        query = select(func.count()).where(
            line.submission == submission, line.state.in_(("succeeded", "failed"))
        )
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

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
        if not ends:
            return
        with self._database.begin() as connection:
            for statement, rows in written(ends):
                held = statement.where(line.state == "submitted", line.submission == submission)
                for row in rows:
                    row["new_submission"] = submission if "new_state" in row else None
                connection.execute(held.values(submission=bindparam("new_submission")), rows)
            release_equal(connection, ends)

    def ledger_rows(
        self, tenant: str, request_ids: Sequence[str], since: datetime
    ) -> dict[str, LedgerRows]:
        """Return the rows of attempts by request id. since: about when they were started."""
        joined = select(exits, calls).join(calls, calls.c.exit_id == exits.c.id)
        query = joined.where(
            exits.c.tenant == tenant,
            # A client may send any id with a request of its own.
            exits.c.lane == "batch",
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
