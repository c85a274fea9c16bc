"""Batches and their lines in the database.

Every method is blocking and raises LedgerUnavailable where the database is unreachable. A line
changes its state only from `running` under the process that holds it, or from `waiting`, so that
two processes cannot end it twice.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Literal
from uuid import uuid4

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Update,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    or_,
    select,
    true,
    update,
)

from serving.batch.check import GoodLine
from serving.batch.files import paged
from serving.batch.schema import batch_lease, batch_lines, batches
from serving.contracts.batch import (
    ENDED_STATES,
    FINAL_STATUSES,
    BatchOrder,
    BatchRecord,
    BatchStatus,
    Checked,
    LineCount,
    LineProblem,
    LineState,
    Page,
    PageRequest,
    PlannedRoute,
    TenantAudits,
    TenantBatches,
)
from serving.contracts.errors import BatchEnded, NotFound, Unauthenticated
from serving.contracts.ledger import Caller
from serving.ledger.database import Database
from serving.ledger.instances import database_now
from serving.ledger.schema import api_keys, evidence_pending
from serving.ledger.upsert import insert_new

_AT_ONCE = 1000
UNFINISHED_STATES: tuple[LineState, ...] = ("waiting", "following", "running", "submitted")
_HELD_STATES: tuple[LineState, ...] = ("running", "submitted")
_RECENT = timedelta(days=1)

AUDIT = "audit"
"""Endpoint of batches of audits, which no tenant sees: serving.batch.audit_store makes them."""

StopReason = Literal["cancelled", "expired", "budget_exceeded", "max_cost_exceeded"]


class LeaseLost(Exception):
    """Another process runs batches now."""


LONGEST_PAUSE = timedelta(seconds=60)
"""Of a line that is to be run again."""


def is_lease_lost(error: Exception) -> bool:
    """Return whether the lease was lost. The steps of a request may raise it in a group."""
    lost = error.subgroup(LeaseLost) if isinstance(error, ExceptionGroup) else None
    return isinstance(error, LeaseLost) or lost is not None


@dataclass(frozen=True, slots=True)
class Limits:
    """When a batch ends, and what it may cost. output_ttl_s: of its result files."""

    expires_at: datetime
    max_cost_usd: Decimal | None = None
    output_ttl_s: float | None = None


@dataclass(frozen=True, slots=True)
class ActiveBatch:
    """A batch that has not ended. caller: whose lines these are, in the lane `batch`."""

    id: str
    caller: Caller
    endpoint: str
    input_file: str
    status: BatchStatus
    stopped: StopReason | None
    metadata: Mapping[str, str]
    max_cost_usd: Decimal | None
    created_at: datetime
    expires_at: datetime

    @property
    def is_audit(self) -> bool:
        """Return whether its lines are audits, and not a tenant's own requests."""
        return self.endpoint == AUDIT


@dataclass(frozen=True, slots=True)
class ClaimedLine:
    """A line that this process runs. attempt: from 1. worst_usd, batch_usd: as in the schema."""

    batch: str
    number: int
    attempt: int
    custom_id: str
    start: int
    length: int
    target: str | None
    worst_usd: Decimal | None
    batch_usd: Decimal | None = None

    @property
    def request_id(self) -> str:
        """Return the id of this attempt in the ledger and the logs."""
        return f"{self.batch}_{self.number}_{self.attempt}"

    def most_usd(self, *, in_batch: bool) -> Decimal | None:
        """Return its worst case, in a provider's batch or asked synchronously; None if unknown."""
        return self.batch_usd if in_batch and self.batch_usd is not None else self.worst_usd


@dataclass(frozen=True, slots=True)
class LineEnd:
    """How an attempt of a line ended.

    state: `waiting` where it is to be run again, at not_before. result: its JSON in a result file,
    encrypted where key_id is not empty. cost_usd: of its calls, their worst case where unknown.
    target: of one that waits for the batch of that provider's model; result is then the provider's
    own request, and batch_usd its worst case. A line that waits keeps these where they are None.
    """

    batch: str
    number: int
    state: LineState
    result: bytes | None = None
    key_id: str = ""
    error: str | None = None
    cost_usd: Decimal | None = None
    not_before: datetime | None = None
    target: str | None = None
    batch_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class StoredResult:
    """What a result file says of a line. result: None of a line that never ran."""

    number: int
    custom_id: str
    state: LineState
    error: str | None
    result: bytes | None
    key_id: str


class BatchStore:
    """Reads and writes batches and lines."""

    def __init__(self, database: Database) -> None:
        self.database = database

    # Tenants' view.

    def create(self, caller: Caller, order: BatchOrder, created: datetime, limits: Limits) -> str:
        """Create a batch whose file is still to be checked; return its id.

        Raises Unauthenticated for a key that is revoked: whoever revoked it has seen all of its
        batches.
        """
        ttl = limits.output_ttl_s
        row = {
            "id": f"batch_{uuid4().hex}", "tenant": caller.tenant, "key_id": caller.key_id,
            "evidence_external": caller.evidence_external, "endpoint": order.endpoint,
            "input_file": order.input_file, "completion_window": order.completion_window,
            "status": "validating", "metadata": json.dumps(dict(order.metadata)),
            "problems": "[]", "plan": "[]", "max_cost_usd": limits.max_cost_usd,
            "output_ttl_us": None if ttl is None else round(ttl * 1e6),
            "created_at": created, "expires_at": limits.expires_at,
        }  # fmt: skip
        with self.database.begin() as connection:
            _refuse_revoked(connection, caller.key_id)
            connection.execute(batches.insert(), [row])
        return str(row["id"])

    def find(self, tenant: str, batch: str) -> BatchRecord:
        """Return a batch with its counts. Raises NotFound."""
        with self.database.read() as connection:
            row = _row(connection, tenant, batch)
            return _record(row, _counts(connection, row), _spent(connection, row))

    def listed(self, tenant: str, page: PageRequest) -> Page:
        """Return a tenant's batches. Raises NotFound for an unknown `after`."""
        query = select(batches).where(batches.c.tenant == tenant, batches.c.endpoint != AUDIT)
        with self.database.read() as connection:
            rows = paged(connection, query, batches, tenant, page)
            shown = [
                _record(row, _counts(connection, row), _spent(connection, row))
                for row in rows[: page.limit]
            ]
        return Page(shown, len(rows) > page.limit)

    def cancel(self, tenant: str, batch: str, now: datetime) -> None:
        """Start no further line. Raises NotFound, BatchEnded."""
        with self.database.begin() as connection:
            row = _row(connection, tenant, batch)
            if row.status in FINAL_STATUSES:
                raise BatchEnded(
                    f"the batch {batch!r} is {row.status}",
                    field="batch_id",
                    fix="only a batch that has not ended can be cancelled",
                )
            _stop(connection, batch, "cancelled", now)

    def cancel_all(self, tenant: str, now: datetime) -> int:
        """Start no further line of a tenant's batches; return how many batches that ends."""
        with self.database.begin() as connection:
            return len(_cancel(connection, batches.c.tenant == tenant, now))

    def of_key(self, key_id: str) -> list[str]:
        """Return the ids of a key's batches that go on, the oldest first."""
        query = _going_on(batches.c.key_id == key_id)
        with self.database.read() as connection:
            return list(connection.execute(query).scalars())

    def cancel_of_key(self, key_id: str, now: datetime) -> list[str]:
        """Start no further line of a key's batches; return the ids of those that this ends."""
        with self.database.begin() as connection:
            return _cancel(connection, batches.c.key_id == key_id, now)

    def unfinished_lines(self, tenant: str) -> int:
        """Return how many lines a tenant's unfinished batches hold."""
        query = (
            select(func.count())
            .select_from(batch_lines.join(batches, batches.c.id == batch_lines.c.batch))
            .where(
                batches.c.tenant == tenant, batches.c.status.not_in(FINAL_STATUSES),
                batches.c.endpoint != AUDIT,
            )
        )  # fmt: skip
        with self.database.read() as connection:
            return int(connection.execute(query).scalar_one())

    # The check.

    def is_validating(self, batch: str) -> bool:
        """Return whether a batch's file is still to be checked."""
        query = select(batches.c.status).where(batches.c.id == batch)
        with self.database.read() as connection:
            return bool(connection.execute(query).scalar_one_or_none() == "validating")

    def clear_lines(self, batch: str) -> None:
        """Delete a batch's lines, some at a time."""
        while True:
            with self.database.begin() as connection:
                some = (
                    select(batch_lines.c.number)
                    .where(batch_lines.c.batch == batch)
                    .order_by(batch_lines.c.number)
                    .limit(_AT_ONCE)
                )
                numbers = connection.execute(some).scalars().all()
                if not numbers:
                    return
                connection.execute(
                    delete(batch_lines).where(
                        batch_lines.c.batch == batch, batch_lines.c.number.in_(numbers)
                    )
                )

    def add_lines(self, batch: str, lines: Sequence[GoodLine]) -> bool:
        """Add lines that wait, for their turn or for the answer to an equal line.

        Returns whether the batch's file is still being checked; else no line is added.
        """
        rows = [
            {
                "batch": batch, "number": line.number, "custom_id": line.custom_id,
                "start": line.start, "length": line.length,
                "state": "waiting" if line.same_as is None else "following", "attempt": 0,
                "target": line.target, "worst_usd": line.worst_usd, "batch_usd": line.batch_usd,
                "same_as": line.same_as, "key_id": "",
            }
            for line in lines
        ]  # fmt: skip
        with self.database.begin() as connection:
            status = select(batches.c.status).where(batches.c.id == batch).with_for_update()
            is_validating = connection.execute(status).scalar_one_or_none() == "validating"
            if is_validating and rows:
                connection.execute(batch_lines.insert(), rows)
        return is_validating

    def checked(self, batch: str, found: Checked, now: datetime, *, is_good: bool) -> None:
        """Write what a check found; the batch begins, or fails."""
        status, at = ("in_progress", "in_progress_at") if is_good else ("failed", "failed_at")
        counted = {} if is_good else {"total": 0, "completed": 0, "failed": 0}
        with self.database.begin() as connection:
            connection.execute(
                update(batches)
                .where(batches.c.id == batch, batches.c.status == "validating")
                .values(
                    status=status,
                    problems=json.dumps([asdict(one) for one in found.problems]),
                    plan=json.dumps([asdict(one) for one in found.plan], default=str),
                    **{at: now},
                    **counted,
                )
            )

    # The scheduler.

    def take_lease(self, holder: str, lease_s: float) -> bool:
        """Return whether this process runs batches now; by the clock that all processes share."""
        with self.database.begin() as connection:
            now = database_now(connection)
            row = {"id": 1, "holder": holder, "until": now + timedelta(seconds=lease_s)}
            connection.execute(insert_new(connection, batch_lease), [row])
            # Beyond what a lease can have left: the clock was set back since.
            latest = now + timedelta(seconds=2 * lease_s)
            until = batch_lease.c.until
            taken = connection.execute(
                update(batch_lease)
                .where(or_(batch_lease.c.holder == holder, until <= now, until > latest))
                .values(holder=holder, until=row["until"])
            )
            return bool(taken.rowcount)

    def keep_lease(self, holder: str, lease_s: float) -> bool:
        """Return whether this process still runs batches, and no other one did meanwhile.

        That holds after the lease's end too, until another process takes it.
        """
        with self.database.begin() as connection:
            until = database_now(connection) + timedelta(seconds=lease_s)
            kept = connection.execute(
                update(batch_lease).where(batch_lease.c.holder == holder).values(until=until)
            )
            return bool(kept.rowcount)

    def release_lease(self, holder: str) -> None:
        """Let another process take over at once."""
        with self.database.begin() as connection:
            now = database_now(connection)
            connection.execute(
                update(batch_lease).where(batch_lease.c.holder == holder).values(until=now)
            )

    def has_work(self) -> bool:
        """Return whether a batch has not ended; reads only."""
        query = select(batches.c.id).where(batches.c.status.not_in(FINAL_STATUSES)).limit(1)
        with self.database.read() as connection:
            return connection.execute(query).first() is not None

    def active(self) -> list[ActiveBatch]:
        """Return the batches that have not ended, the oldest first."""
        query = select(batches).where(batches.c.status.not_in(FINAL_STATUSES))
        with self.database.read() as connection:
            rows = connection.execute(query.order_by(batches.c.created_at, batches.c.id)).all()
        return [
            ActiveBatch(
                row.id,
                Caller(row.tenant, row.key_id, evidence_external=row.evidence_external,
                       lane="batch", purpose=told.get("purpose")),
                row.endpoint, row.input_file, row.status, row.stopped, told,
                row.max_cost_usd, row.created_at, row.expires_at,
            )
            for row in rows
            for told in [json.loads(row.metadata)]
        ]  # fmt: skip

    def claim(
        self,
        holder: str,
        batch: str,
        most: int,
        now: datetime,
        room_usd: Decimal | None = None,
        own: Sequence[str] | None = None,
        *,
        in_batch: bool = False,
    ) -> list[ClaimedLine]:
        """Begin lines that wait, in the file's order. Raises LeaseLost.

        room_usd: lines are begun while their worst cases together stay within it. own: targets
        whose lines are begun; those of others wait for a provider's batch. None: of all. in_batch:
        what the lines leave to a provider goes into its batch, and counts at that price.
        """
        line = batch_lines.c
        begun = true() if own is None else or_(line.target.is_(None), line.target.in_(own))
        with self.database.begin() as connection:
            require_lease(connection, holder)
            rows = connection.execute(
                select(batch_lines)
                .where(
                    line.batch == batch, line.state == "waiting",
                    is_due(now),
                )
                .where(begun)
                .order_by(line.number)
                .limit(most)
            ).all()  # fmt: skip
            chosen: list[ClaimedLine] = []
            left = room_usd
            for one in (claimed_line(row, row.attempt + 1) for row in rows):
                usd = one.most_usd(in_batch=in_batch)
                if left is not None:
                    # A line of unknown worst case may take all that is left, and runs alone.
                    left -= left if usd is None else usd
                    if left < 0 or (chosen and usd is None):
                        break
                chosen.append(one)
                if left is not None and usd is None:
                    break
            if chosen:
                connection.execute(
                    update(batch_lines)
                    .where(line.batch == batch, line.number.in_([one.number for one in chosen]))
                    .values(
                        state="running", holder=holder, started_at=now, attempt=line.attempt + 1
                    )
                )
        return chosen

    def claimable(self, batch: str, now: datetime) -> bool:
        """Return whether a line waits for nothing but its turn."""
        line = batch_lines.c
        query = select(line.number).where(
            line.batch == batch, line.state == "waiting",
            is_due(now),
        ).limit(1)  # fmt: skip
        with self.database.read() as connection:
            return connection.execute(query).first() is not None

    def end_lines(self, holder: str, ends: Sequence[LineEnd]) -> None:
        """Write how lines ended that this process runs."""
        line = batch_lines.c
        with self.database.begin() as connection:
            for statement, rows in written(ends):
                held = statement.where(line.state == "running", line.holder == holder)
                connection.execute(held.values(holder=None), rows)
            release_equal(connection, ends)

    def left_running(self, holder: str) -> list[tuple[ClaimedLine, str, datetime]]:
        """Take the lines over that are marked as running; with their tenants and starts.

        The caller runs none: an earlier holder left them, or this process before it lost the lease.

        Raises LeaseLost.
        """
        line = batch_lines.c
        with self.database.begin() as connection:
            require_lease(connection, holder)
            rows = connection.execute(
                select(batch_lines, batches.c.tenant)
                .join(batches, batches.c.id == line.batch)
                .where(
                    batches.c.status.not_in(FINAL_STATUSES), line.state == "running",
                )
            ).all()  # fmt: skip
            for row in rows:
                connection.execute(
                    update(batch_lines)
                    .where(line.batch == row.batch, line.number == row.number)
                    .values(holder=holder)
                )
        return [(claimed_line(row, row.attempt), row.tenant, row.started_at) for row in rows]

    def stop(self, batch: str, reason: StopReason, now: datetime, message: str | None) -> None:
        """Start no further line of a batch. message: of a problem to show, None for none."""
        with self.database.begin() as connection:
            _stop(connection, batch, reason, now, message)

    def end_waiting(self, batch: str, reason: StopReason) -> tuple[LineState, int]:
        """End the lines of a stopped batch that have not run; return their state and number."""
        state: LineState = "expired" if reason == "expired" else "cancelled"
        line = batch_lines.c
        with self.database.begin() as connection:
            ended = connection.execute(
                update(batch_lines)
                .where(line.batch == batch, line.state.in_(("waiting", "following")))
                # Of a line that waits for a provider's batch the result is its request.
                .values(state=state, error=_STOP_CODES[reason], result=None, key_id="")
            )
        return state, ended.rowcount

    def states(self, batch: str) -> Counter[str]:
        """Return how many lines are in each state."""
        with self.database.read() as connection:
            return _states(connection, batch)

    def committed_usd(self, batch: str) -> Decimal:
        """Return what ended lines cost, and may cost that are in providers' batches, US dollars.

        Where a cost is unknown, its worst case counts.
        """
        line = batch_lines.c
        # In one statement: a line that ends between two would be in neither sum.
        query = select(
            func.sum(line.cost_usd),
            func.sum(case((line.state == "submitted", _HELD_USD))),
        ).where(line.batch == batch)
        with self.database.read() as connection:
            spent, submitted = connection.execute(query).one()
        return (spent or Decimal(0)) + (submitted or Decimal(0))

    def held_usd(self) -> Decimal:
        """Return the worst case of all lines that run or are in providers' batches, US dollars."""
        line = batch_lines.c
        query = (
            select(func.sum(_HELD_USD))
            .join(batches, batches.c.id == line.batch)
            .where(
                batches.c.status.not_in(FINAL_STATUSES), line.state.in_(("running", "submitted"))
            )
        )
        with self.database.read() as connection:
            found: Decimal | None = connection.execute(query).scalar_one()
        return found or Decimal(0)

    def open_lines(self) -> Counter[str]:
        """Return how many lines of tenants' batches have not ended, by state."""
        line = batch_lines.c
        query = (
            select(line.state, func.count())
            .join(batches, batches.c.id == line.batch)
            .where(batches.c.status.not_in(FINAL_STATUSES), line.state.in_(UNFINISHED_STATES))
            .where(batches.c.endpoint != AUDIT)
            .group_by(line.state)
        )
        with self.database.read() as connection:
            return Counter({str(row.state): int(row[1]) for row in connection.execute(query)})

    def overview(self, now: datetime) -> list[TenantBatches]:
        """Return the batches of each tenant: those that have not ended, and those of a day."""
        batch, line, pending = batches.c, batch_lines.c, evidence_pending.c
        is_own = batch.endpoint != AUDIT
        is_open = and_(batch.status.not_in(FINAL_STATUSES), is_own)
        of_open = (
            select(batch.tenant, batch.status, func.count(), func.min(batch.created_at),
                   func.min(batch.expires_at))
            .where(is_open)
            .group_by(batch.tenant, batch.status)
        )  # fmt: skip
        of_lines = (
            select(batch.tenant, line.state, func.count(), func.sum(_HELD_USD))
            .select_from(batch_lines.join(batches, batch.id == line.batch))
            .where(is_open)
            .group_by(batch.tenant, line.state)
        )
        ended_at = func.coalesce(
            batch.completed_at, batch.failed_at, batch.expired_at, batch.cancelled_at
        )
        of_ended = (
            select(batch.tenant, batch.status, func.count(), func.sum(batch.failed))
            .where(batch.status.in_(FINAL_STATUSES), is_own, ended_at >= now - _RECENT)
            .group_by(batch.tenant, batch.status)
        )
        of_audits = select(
            pending.tenant, func.count(), func.min(pending.drawn_at), func.sum(pending.worst_usd)
        ).group_by(pending.tenant)
        of_audit_batches = (
            select(batch.tenant, batch.status, func.count())
            .where(batch.status.not_in(FINAL_STATUSES), batch.endpoint == AUDIT)
            .group_by(batch.tenant, batch.status)
        )
        queries = (of_open, of_lines, of_ended, of_audits, of_audit_batches)
        with self.database.read() as connection:
            opened, lines, ended, *audits = (connection.execute(one).all() for one in queries)
        found = []
        for tenant in sorted({row.tenant for rows in (opened, ended, *audits) for row in rows}):
            mine, states, done, awaited, carrying = (
                [row for row in rows if row.tenant == tenant]
                for rows in (opened, lines, ended, *audits)
            )
            held = [usd for _, state, _, usd in states if state in _HELD_STATES and usd is not None]
            found.append(
                TenantBatches(
                    tenant,
                    {row.status: row[2] for row in mine},
                    {row.state: row[2] for row in states},
                    min((row[3] for row in mine), default=None),
                    min((row[4] for row in mine), default=None),
                    sum(held, Decimal(0)),
                    {row.status: row[2] for row in done},
                    sum(int(row[3] or 0) for row in done),
                    _audits_of(awaited, carrying),
                )
            )
        return found

    def results(self, batch: str, *, succeeded: bool) -> Iterator[StoredResult]:
        """Yield the ended lines that succeeded, or the others, in the file's order."""
        line, last = batch_lines.c, 0
        wanted = line.state == "succeeded" if succeeded else line.state != "succeeded"
        columns = (line.number, line.custom_id, line.state, line.error, line.result, line.key_id)
        while True:
            query = (
                select(*columns)
                .where(line.batch == batch, line.state.in_(ENDED_STATES), wanted)
                .where(line.number > last)
                .order_by(line.number)
                .limit(_AT_ONCE)
            )
            with self.database.read() as connection:
                rows = connection.execute(query).all()
            if not rows:
                return
            last = rows[-1].number
            yield from (StoredResult(*row) for row in rows)

    def finalizing(self, batch: str, now: datetime) -> None:
        """Write that the result files are being made; a stopped batch keeps its status."""
        with self.database.begin() as connection:
            connection.execute(
                update(batches)
                .where(batches.c.id == batch, batches.c.status == "in_progress")
                .values(status="finalizing", finalizing_at=now)
            )

    def output_ttl_s(self, batch: str) -> float | None:
        """Return how long result files are kept, None for the setting's time."""
        with self.database.read() as connection:
            query = select(batches.c.output_ttl_us).where(batches.c.id == batch)
            found: int | None = connection.execute(query).scalar_one()
        return None if found is None else found / 1e6

    def finish(
        self, connection: Connection, batch: ActiveBatch, files: Mapping[str, str], now: datetime
    ) -> None:
        """Write a batch's end, in the transaction that keeps its result files.

        files: their ids by column. Raises LeaseLost where it has ended already.
        """
        states = _states(connection, batch.id)
        status: BatchStatus = (
            "completed" if batch.stopped is None
            else "expired" if batch.stopped == "expired" else "cancelled"
        )  # fmt: skip
        spent = select(func.sum(batch_lines.c.cost_usd)).where(batch_lines.c.batch == batch.id)
        done = connection.execute(
            update(batches)
            .where(batches.c.id == batch.id, batches.c.status.not_in(FINAL_STATUSES))
            .values(
                status=status, total=states.total(), completed=states["succeeded"],
                failed=states.total() - states["succeeded"],
                cost_usd=connection.execute(spent).scalar_one(), **{f"{status}_at": now}, **files,
            )
        )  # fmt: skip

        if not done.rowcount:
            # Another process has ended it; the result files of this one are not kept.
            raise LeaseLost


_STOP_CODES: Mapping[StopReason, str] = {
    "cancelled": "batch_cancelled",
    "expired": "batch_expired",
    "budget_exceeded": "budget_exceeded",
    "max_cost_exceeded": "max_cost_exceeded",
}


_OF_LINE = update(batch_lines).where(
    batch_lines.c.batch == bindparam("of_batch"), batch_lines.c.number == bindparam("of_number")
)
_HELD_USD = case(
    (batch_lines.c.state == "submitted",
     func.coalesce(batch_lines.c.batch_usd, batch_lines.c.worst_usd)),
    else_=batch_lines.c.worst_usd,
)  # fmt: skip
_END = _OF_LINE.values(
    state=bindparam("new_state"), result=bindparam("new_result"), key_id=bindparam("new_key"),
    error=bindparam("new_error"), cost_usd=bindparam("new_cost"), not_before=None,
)  # fmt: skip
_WAIT = _OF_LINE.values(
    state="waiting", error=bindparam("new_error"), cost_usd=bindparam("new_cost"),
    not_before=bindparam("new_not_before"),
)  # fmt: skip
_DEFER = _WAIT.values(
    result=bindparam("new_result"), key_id=bindparam("new_key"), target=bindparam("new_target"),
    batch_usd=bindparam("new_batch_usd"),
)  # fmt: skip


def written(ends: Sequence[LineEnd]) -> Iterator[tuple[Update, list[dict[str, Any]]]]:
    """Yield the statements that write how lines ended, with parameters. Add who must hold them."""
    rows: dict[Update, list[dict[str, Any]]] = {}
    for end in ends:
        statement = _END if end.state != "waiting" else _WAIT if end.target is None else _DEFER
        row = {
            "of_batch": end.batch, "of_number": end.number, "new_error": end.error,
            "new_cost": end.cost_usd,
        }  # fmt: skip
        if statement is not _WAIT:
            row |= {"new_result": end.result, "new_key": end.key_id}
        if statement is _END:
            row["new_state"] = end.state
        else:
            row["new_not_before"] = end.not_before
        if statement is _DEFER:
            row |= {"new_target": end.target, "new_batch_usd": end.batch_usd}
        rows.setdefault(statement, []).append(row)
    yield from rows.items()


def release_equal(connection: Connection, ends: Sequence[LineEnd]) -> None:
    """Let lines run that waited for the answer to an equal line which has now ended.

    In the transaction that ends it: no crash leaves them waiting for nothing. After an answer they
    count nothing: the cache has it. Where it does not, their call reserves what it may cost.
    """
    first, line = batch_lines.alias(), batch_lines.c
    ended = exists().where(
        first.c.batch == line.batch, first.c.number == line.same_as,
        first.c.state.in_(ENDED_STATES),
    )  # fmt: skip
    answered = exists().where(
        first.c.batch == line.batch, first.c.number == line.same_as, first.c.state == "succeeded"
    )
    for batch in {end.batch for end in ends}:
        numbers = [end.number for end in ends if end.batch == batch and end.state != "waiting"]
        if numbers:
            connection.execute(
                update(batch_lines)
                .where(
                    line.batch == batch, line.same_as.in_(numbers), line.state == "following",
                    ended,
                )
                .values(
                    state="waiting",
                    worst_usd=case((answered, Decimal(0)), else_=line.worst_usd),
                    batch_usd=case((answered, Decimal(0)), else_=line.batch_usd),
                )
            )  # fmt: skip


def claimed_line(row: Row[Any], attempt: int) -> ClaimedLine:
    """Return a row of batch_lines as an attempt."""
    return ClaimedLine(
        row.batch, row.number, attempt, row.custom_id, row.start, row.length, row.target,
        row.worst_usd, row.batch_usd,
    )  # fmt: skip


def is_due(now: datetime) -> ColumnElement[bool]:
    """Return whether a line need not wait any longer, as a condition of SQL.

    A pause that is longer than any that is written comes of a clock that was set back.
    """
    not_before = batch_lines.c.not_before
    return or_(not_before.is_(None), not_before <= now, not_before > now + 2 * LONGEST_PAUSE)


def require_lease(connection: Connection, holder: str) -> None:
    """Raise LeaseLost unless a process holds the lease until the transaction's end."""
    now = database_now(connection)
    lease = connection.execute(select(batch_lease).with_for_update()).one_or_none()
    if lease is None or lease.holder != holder or lease.until <= now:
        raise LeaseLost


def _row(connection: Connection, tenant: str, batch: str) -> Row[Any]:
    query = select(batches).where(
        batches.c.id == batch, batches.c.tenant == tenant, batches.c.endpoint != AUDIT
    )
    row = connection.execute(query).one_or_none()
    if row is None:
        raise NotFound(
            f"there is no batch {batch[:64]!r}",
            field="batch_id",
            fix="send the id of a batch in GET /v1/batches",
        )
    return row


def _refuse_revoked(connection: Connection, key_id: str | None) -> None:
    # Locked: a revocation waits for this transaction, or comes before it. A gateway knows a
    # revocation auth.refresh_s later.
    query = select(api_keys.c.revoked_at).where(api_keys.c.id == key_id).with_for_update(read=True)
    if connection.execute(query).scalar_one_or_none() is not None:
        raise Unauthenticated("the API key is revoked", fix="send another key")


def _going_on(condition: ColumnElement[bool]) -> Select[Any]:
    """Return the query for the ids of batches whose lines are still started, the oldest first."""
    return (
        select(batches.c.id)
        .where(
            condition, batches.c.status.not_in(FINAL_STATUSES), batches.c.status != "cancelling",
            batches.c.endpoint != AUDIT,
        )
        .order_by(batches.c.created_at, batches.c.id)
    )  # fmt: skip


def _cancel(connection: Connection, condition: ColumnElement[bool], now: datetime) -> list[str]:
    found = list(connection.execute(_going_on(condition)).scalars())
    for batch in found:
        _stop(connection, batch, "cancelled", now)
    return found


def _stop(
    connection: Connection,
    batch: str,
    reason: StopReason,
    now: datetime,
    message: str | None = None,
) -> None:
    # Of several reasons the first one holds.
    row = connection.execute(
        select(batches.c.problems, batches.c.status)
        .where(batches.c.id == batch, batches.c.stopped.is_(None))
        .where(batches.c.status.not_in(FINAL_STATUSES))
        .with_for_update()
    ).one_or_none()
    if row is None:
        return
    problems = json.loads(row.problems)
    if message is not None:
        problems.append(asdict(LineProblem(reason, message)))
    values: dict[str, Any] = {"stopped": reason, "problems": json.dumps(problems)}
    if reason != "expired":
        values |= {"status": "cancelling", "cancelling_at": now}
    connection.execute(update(batches).where(batches.c.id == batch).values(**values))


def _audits_of(awaited: Sequence[Any], carrying: Sequence[Any]) -> TenantAudits:
    """Return a tenant's audits. awaited: one row or none. carrying: batches by status."""
    statuses = {row.status: row[2] for row in carrying}
    if not awaited:
        return TenantAudits(statuses=statuses)
    _, count, oldest_at, usd = awaited[0]
    return TenantAudits(count, oldest_at, usd, statuses)


def _states(connection: Connection, batch: str) -> Counter[str]:
    query = (
        select(batch_lines.c.state, func.count())
        .where(batch_lines.c.batch == batch)
        .group_by(batch_lines.c.state)
    )
    return Counter({str(row.state): int(row[1]) for row in connection.execute(query)})


def _counts(connection: Connection, row: Row[Any]) -> LineCount:
    if row.total is not None:
        return LineCount(row.total, row.completed, row.failed)
    if row.status == "validating":
        return LineCount()
    states = _states(connection, row.id)
    ended = sum(states[state] for state in ENDED_STATES)
    return LineCount(states.total(), states["succeeded"], ended - states["succeeded"])


def _spent(connection: Connection, row: Row[Any]) -> Decimal | None:
    if row.total is not None:
        return row.cost_usd  # type: ignore[no-any-return]
    query = select(func.sum(batch_lines.c.cost_usd)).where(batch_lines.c.batch == row.id)
    found: Decimal | None = connection.execute(query).scalar_one()
    return found


def _record(row: Row[Any], counts: LineCount, cost_usd: Decimal | None) -> BatchRecord:
    def routes() -> Iterator[PlannedRoute]:
        for one in json.loads(row.plan):
            sums = (one["max_usd"], one.get("reference_usd"), one.get("batch_usd"))
            known = (None if usd is None else Decimal(usd) for usd in sums)
            yield PlannedRoute(one["route"], one["model"], one["lines"], *known)

    return BatchRecord(
        row.id, row.tenant, row.endpoint, row.input_file, row.completion_window, row.status,
        row.created_at, row.expires_at, json.loads(row.metadata), row.output_file, row.error_file,
        row.in_progress_at, row.finalizing_at, row.completed_at, row.failed_at, row.expired_at,
        row.cancelling_at, row.cancelled_at,
        tuple(LineProblem(**one) for one in json.loads(row.problems)), tuple(routes()), counts,
        cost_usd, row.max_cost_usd,
    )  # fmt: skip
