"""Runs batches on one of the replicas: the one that holds the lease.

A line is started only where interactive requests leave room, ends in the database before its
place is given to another, and is never repeated where a provider may have billed it.
"""

import asyncio
import logging
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from sqlalchemy.exc import SQLAlchemyError

from serving.batch.audits import AuditBatches
from serving.batch.blobs import Blob, BlobStore
from serving.batch.check import FileCheck, GoodLine, LineRules
from serving.batch.check_turns import CheckTurns
from serving.batch.files import FileStore, utc_now
from serving.batch.line_work import Defer, LineWork
from serving.batch.lines import BadLine
from serving.batch.recovery import paid_attempts
from serving.batch.results import write_results
from serving.batch.room import BatchRoom
from serving.batch.runner import LineRunner, unrun_text
from serving.batch.slack import Slack
from serving.batch.store import (
    LONGEST_PAUSE,
    UNFINISHED_STATES,
    ActiveBatch,
    BatchStore,
    ClaimedLine,
    LeaseLost,
    LineEnd,
    StopReason,
    is_lease_lost,
)
from serving.batch.submissions import Lane, SubmissionParts, Submissions
from serving.contracts.batch import SKIP, Checked, LineProblem
from serving.contracts.batch_settings import BatchSettings
from serving.contracts.errors import (
    BudgetExceeded,
    LedgerUnavailable,
    MaxCostExceeded,
    NarrowgateError,
    NotFound,
    StorageUnavailable,
)

logger = logging.getLogger(__name__)
T = TypeVar("T")

_THREADS = 4
_BUSY_S = 0.05
"""Between two rounds while lines run: new lines are started as others end, without a round."""
_IDLE_S = 1.0
_AFTER_FAILURE_S = 1.0
_HELD_EVERY_S = 10.0
_TARGETS_EVERY_S = 0.5
"""All open lines of a batch are counted for it."""
_ADDED_AT_ONCE = 1000
_WRITTEN_AT_ONCE = 500
_DEFECT_PAUSE = timedelta(seconds=60)
_LOST_CODE = "outcome_unknown"
_LOST = (
    "the gateway stopped while a provider was asked; the call may have been billed and was not "
    "repeated"
)


class BatchEvents(Protocol):
    """Counts events of the lane; the gateway's metrics implement it. None may raise."""

    def batch_lines_ended(self, state: str, lines: int) -> None:
        """Lines ended in a state."""
        ...

    def batch_round(self, by_status: dict[str, int], oldest_waiting_s: float, running: int) -> None:
        """This replica runs batches: how many are in each status, and how long the oldest waits.

        running: lines in progress.
        """
        ...

    def batch_open(self, held_usd: Decimal, overdue_s: float, lines: Mapping[str, int]) -> None:
        """Lines that are running or in providers' batches may cost so much together.

        overdue_s: since the earliest deadline of a batch that has not ended, 0 before it. lines:
        those that have not ended, by state.
        """
        ...

    def audits_awaited(self, audits: int, oldest_s: float, usd: Decimal) -> None:
        """So many audits have no verdict yet. usd: their worst case. oldest_s: since a draw."""
        ...

    def batch_lane(self, *, leads: bool) -> None:
        """This replica runs batches, or does not."""
        ...


@dataclass(slots=True)
class _Progress:
    """What this process knows of a batch that it runs.

    room: under its limit of cost. alone: lines run one after another, because a budget had no room
    for several. is_full: the limit has no room for the next line that would run. paused_until: no
    line goes into a provider's batch before: the budget is held by others. targets: those whose
    lines wait for a provider's batch. own: those whose lines are asked synchronously, None for all.
    targets_at_s: when both were read.
    """

    room: BatchRoom
    running: dict[int, ClaimedLine] = field(default_factory=dict)
    alone: bool = False
    is_full: bool = False
    paused_until: datetime | None = None
    targets: dict[str, bool] = field(default_factory=dict)
    own: Sequence[str] | None = None
    targets_at_s: float = float("-inf")

    def forget(self, number: int) -> None:
        """Forget a line that no longer runs here, and what is reserved for it."""
        self.running.pop(number, None)
        self.room.release(number)


@dataclass(frozen=True, slots=True)
class SchedulerParts:
    """What the scheduler uses. rules: of checks. grace_s: for running lines at the end.

    submissions: to providers' batches; None without.
    """

    store: BatchStore
    files: FileStore
    blobs: BlobStore
    runner: LineRunner
    rules: LineRules
    slack: Slack
    settings: BatchSettings
    events: BatchEvents
    grace_s: float
    audits: AuditBatches
    submissions: SubmissionParts | None = None
    now: Callable[[], datetime] = utc_now


class Scheduler:
    """Checks files, runs lines and writes result files while this process holds the lease."""

    def __init__(self, parts: SchedulerParts) -> None:
        self._parts = parts
        self.holder = uuid4().hex
        self._woken = asyncio.Event()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="batch")
        self._progress: dict[str, _Progress] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: dict[str, asyncio.Task[None]] = {}
        # By tenant: files that were checked at once would each get the room that is left.
        self._checks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        # Not in the threads: four files would hold up the lease, and everybody's lines.
        self._turns = CheckTurns()
        self._defective: dict[str, datetime] = {}
        self._ends: list[LineEnd] = []
        self._ended = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._leads = False
        self._renewed_at_s = 0.0
        self._turn = 0
        submissions = parts.submissions
        self._submissions = (
            None if submissions is None
            else Submissions(
                submissions,
                Lane(self._insist, self._fence, self._count, lambda one: self._of(one).room),
            )
        )  # fmt: skip
        parts.runner.fence(self._fence)
        self._followed_at_s = 0.0
        self._collected_at_s = float("-inf")
        self._attended_at_s: dict[str, float] = {}
        self._summed_at_s = float("-inf")

    def wake(self) -> None:
        """Make the next round begin at once."""
        self._woken.set()

    async def watch(self) -> None:
        """Run batches until cancelled; then let running lines end, and give the lease up."""
        writer = asyncio.create_task(self._write_ends())
        try:
            while True:
                pause_s = await self._round()
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._woken.wait()
                self._woken.clear()
        finally:
            await self._close(writer)

    async def _round(self) -> float:
        """Do what can be done now; return how long to wait for the next round, seconds."""
        try:
            return await self._led()
        except LeaseLost:
            self._lose()
        except (LedgerUnavailable, SQLAlchemyError) as error:
            # The lease may end meanwhile: another process may reach the database.
            logger.warning("batch.database_unavailable error=%s", type(error).__name__)
            if self._lease_left_s() <= 0:
                self._lose()
        except Exception:
            # The process edge of the lane: its end would be the end of all batches.
            logger.exception("batch.round_failed")
        return _AFTER_FAILURE_S

    async def _led(self) -> float:
        loop, parts = asyncio.get_running_loop(), self._parts
        if not self._leads and not await self._run(self._has_work):
            return _IDLE_S
        if not self._leads or self._lease_left_s() < parts.settings.lease_s * 2 / 3:
            asked_at_s = loop.time()
            # Where another process ran batches meanwhile, the lease is taken anew in a later round.
            ask = parts.store.keep_lease if self._leads else parts.store.take_lease
            if not await self._run(ask, self.holder, parts.settings.lease_s):
                raise LeaseLost
            self._renewed_at_s = asked_at_s
        if not self._leads:
            self._leads = True
            parts.events.batch_lane(leads=True)
            logger.info("batch.leads holder=%s", self.holder)
            if remaining := [*self._tasks, *self._busy.values()]:
                # Cancelled when the lease was lost.
                await asyncio.wait(remaining)
            await self._flush()
            await self._recover()
        await self._collect()
        active = self._sound(await self._run(parts.store.active))
        self._report([batch for batch in active if not batch.is_audit])
        if loop.time() >= self._summed_at_s + _HELD_EVERY_S:
            self._summed_at_s = loop.time()
            held_usd = await self._run(parts.store.held_usd)
            lines = await self._run(parts.store.open_lines)
            late = [(parts.now() - batch.expires_at).total_seconds() for batch in active]
            parts.events.batch_open(held_usd, max(0.0, *late, 0.0), lines)
        if not active:
            return _IDLE_S
        for batch in active:
            async with self._apart(batch):
                await self._attend(batch)
        self._follow(active)
        await self._start(active)
        return _BUSY_S if self._tasks else 4 * _BUSY_S

    def _has_work(self) -> bool:
        return self._parts.store.has_work() or self._parts.audits.has_pending()

    async def _collect(self) -> None:
        """Put audits that wait into batches, when it is time."""
        now_s, audits = asyncio.get_running_loop().time(), self._parts.audits
        if now_s < self._collected_at_s + self._parts.settings.provider_poll_s:
            return
        self._collected_at_s = now_s
        if made := await self._run(audits.collect, self.holder):
            logger.info("batch.audits_collected batches=%d", made)
        waiting = await self._run(audits.awaited)
        oldest_at, now = waiting.oldest_at, self._parts.now()
        oldest_s = 0.0 if oldest_at is None else (now - oldest_at).total_seconds()
        self._parts.events.audits_awaited(waiting.audits, oldest_s, waiting.usd)

    def _lease_left_s(self) -> float:
        loop = asyncio.get_running_loop()
        return self._renewed_at_s + self._parts.settings.lease_s - loop.time()

    async def _fence(self) -> None:
        """Return when no other process can run batches. Raises LeaseLost where another one may.

        After the lease's end, which a process that slept sees, the next round finds out.
        """
        while self._leads:
            if self._lease_left_s() > 0:
                return
            self._woken.set()
            await asyncio.sleep(_BUSY_S)
        raise LeaseLost

    def _lose(self) -> None:
        """Stop everything: another process runs batches, or may."""
        if self._leads:
            self._parts.events.batch_round({}, 0.0, 0)
            self._parts.events.batch_open(Decimal(0), 0.0, {})
            self._parts.events.audits_awaited(0, 0.0, Decimal(0))
            logger.warning("batch.lease_lost holder=%s", self.holder)
            self._parts.events.batch_lane(leads=False)
        self._leads = False
        for task in [*self._tasks, *self._busy.values()]:
            task.cancel()
        self._progress.clear()

    def _sound(self, active: Sequence[ActiveBatch]) -> list[ActiveBatch]:
        """Return the batches that are not left alone after a defect."""
        now = self._parts.now()
        self._defective = {id_: until for id_, until in self._defective.items() if until > now}
        return [batch for batch in active if batch.id not in self._defective]

    def _report(self, active: Sequence[ActiveBatch]) -> None:
        counts: dict[str, int] = {}
        for batch in active:
            counts[batch.status] = counts.get(batch.status, 0) + 1
        now = self._parts.now()
        waits = [(now - batch.created_at).total_seconds() for batch in active]
        self._parts.events.batch_round(counts, max(waits, default=0.0), len(self._tasks))

    # One batch.

    def _of(self, batch: ActiveBatch) -> _Progress:
        """Return what this process knows of a batch."""
        if batch.id not in self._progress:
            committed = partial(self._committed, batch.id)
            self._progress[batch.id] = _Progress(BatchRoom(batch.max_cost_usd, committed))
        return self._progress[batch.id]

    async def _committed(self, batch: str) -> Decimal:
        """Return what lines have cost that ended, and may cost in providers' batches."""
        # Before the database is read: an end that is written meanwhile counts twice for a round.
        pending = [end.cost_usd or Decimal(0) for end in self._ends if end.batch == batch]
        written: Decimal = await self._insist(self._parts.store.committed_usd, batch)
        return written + sum(pending, Decimal(0))

    def _pause(self, batch: str) -> None:
        """Leave a batch alone for a while: what failed would fail again at once."""
        self._defective[batch] = self._parts.now() + _DEFECT_PAUSE

    @asynccontextmanager
    async def _apart(self, batch: ActiveBatch) -> AsyncIterator[None]:
        """Keep a batch's defect from other batches: it is left alone for a while.

        Errors of the lease and of the database concern all of them, and pass.
        """
        try:
            yield
        except (LeaseLost, LedgerUnavailable, SQLAlchemyError):
            raise
        except Exception:
            logger.exception("batch.failed id=%s", batch.id)
            self._pause(batch.id)

    async def _attend(self, batch: ActiveBatch) -> None:
        """Do what a batch needs besides running its lines."""
        if batch.id in self._busy:
            return
        parts, now = self._parts, self._parts.now()
        if batch.stopped is None and now >= batch.expires_at:
            await self._run(parts.store.stop, batch.id, "expired", now, None)
            return
        if batch.status == "validating" and batch.stopped is None:
            self._alone(batch.id, self._check(batch))
            return
        if batch.stopped is not None:
            state, count = await self._run(parts.store.end_waiting, batch.id, batch.stopped)
            if count:
                parts.events.batch_lines_ended(state, count)
        if batch.is_audit:
            await self._attend_audits(batch)
            return
        if self._of(batch).running or self._ends:
            return
        states = await self._run(parts.store.states, batch.id)
        if not any(states[state] for state in UNFINISHED_STATES):
            self._alone(batch.id, self._finish(batch))

    async def _attend_audits(self, batch: ActiveBatch) -> None:
        """Send a batch of audits, and end it. There may be many, and each is open for a day."""
        now_s, parts = asyncio.get_running_loop().time(), self._parts
        last_s = self._attended_at_s.get(batch.id, float("-inf"))
        if now_s < last_s + parts.settings.provider_poll_s:
            return
        self._attended_at_s[batch.id] = now_s
        states = await self._run(parts.store.states, batch.id)
        if not states["waiting"] + states["submitted"]:
            self._alone(batch.id, self._finish_audits(batch))
        elif states["waiting"] and batch.stopped is None:
            await self._submit_some(batch)
            if not self._of(batch).targets and not states["submitted"]:
                # None can be sent any more: another batch may take them.
                await self._run(parts.store.stop, batch.id, "expired", parts.now(), None)

    async def _finish_audits(self, batch: ActiveBatch) -> None:
        dropped = await self._run(self._parts.audits.finish, batch)
        self._attended_at_s.pop(batch.id, None)
        self._progress.pop(batch.id, None)
        logger.info("batch.audits_ended id=%s dropped=%d", batch.id, dropped)
        await self._run(self._parts.store.clear_lines, batch.id)

    def _alone(self, batch: str, work: Any) -> None:
        """Do a batch's work beside the rounds; nothing else is done with the batch meanwhile."""

        async def done() -> None:
            try:
                await work
            except LeaseLost:
                logger.warning("batch.delayed id=%s error=LeaseLost", batch)
            except (LedgerUnavailable, SQLAlchemyError) as error:
                logger.warning("batch.delayed id=%s error=%s", batch, type(error).__name__)
                # It would fail again at once where a right is missing or a disk is full.
                await asyncio.sleep(_AFTER_FAILURE_S)
            except StorageUnavailable as error:
                logger.warning("batch.delayed id=%s error=%s", batch, error.message)
                self._pause(batch.partition(" ")[0])
            except Exception:
                # The process edge of a batch: another batch must not wait for it.
                logger.exception("batch.failed id=%s", batch)
                self._pause(batch.partition(" ")[0])
            finally:
                del self._busy[batch]
                self._woken.set()

        self._busy[batch] = asyncio.create_task(done())

    async def _check(self, batch: ActiveBatch) -> None:
        """Check a batch's file; its good lines become rows that wait."""
        async with self._checks[batch.caller.tenant]:
            # A round that read the batch before its check ended comes late: its lines may run.
            if not await self._run(self._parts.store.is_validating, batch.id):
                return
            found = await self._checked(batch)
        is_good = found.lines > 0 and (not found.problems or batch.metadata.get("on_error") == SKIP)
        if not is_good:
            await self._run(self._parts.store.clear_lines, batch.id)
        await self._run_checked(batch, found, is_good)
        logger.info(
            "batch.checked id=%s lines=%d problems=%d", batch.id, found.lines, len(found.problems)
        )

    async def _run_checked(self, batch: ActiveBatch, found: Checked, is_good: bool) -> None:
        store, now = self._parts.store, self._parts.now()
        await self._run(lambda: store.checked(batch.id, found, now, is_good=is_good))

    async def _checked(self, batch: ActiveBatch) -> Checked:
        """Return what is in a batch's file, whose good lines are rows now."""
        parts = self._parts
        # A check that a crash ended left rows.
        await self._run(parts.store.clear_lines, batch.id)
        check = FileCheck(parts.rules, batch.endpoint, batch.caller)
        try:
            blob = await self._run(parts.files.blob, batch.caller.tenant, batch.input_file)
            left = parts.settings.tenant_lines - await self._run(
                parts.store.unfinished_lines, batch.caller.tenant
            )
            await self._turns.run(self._steps(batch.id, check, blob, left))
        except NotFound as error:
            return Checked(0, (LineProblem("file_not_found", error.message),), ())
        except (LedgerUnavailable, StorageUnavailable, SQLAlchemyError, LeaseLost, OSError):
            # Not the file's fault: it is checked again.
            raise
        except NarrowgateError as error:
            return Checked(0, (LineProblem(error.code, error.message),), ())
        except Exception:
            # A defect would show itself at each check, and the batch would never end.
            logger.exception("batch.check_failed id=%s", batch.id)
            why = "the file could not be checked: internal error"
            return Checked(0, (LineProblem("internal_error", why),), ())
        return check.result()

    def _steps(self, batch: str, check: FileCheck, blob: Blob, left: int) -> Iterator[None]:
        """Check a file, a line with each step, and write its good lines.

        Ends early where the batch was cancelled meanwhile. left: lines that the tenant may have.
        """
        found: list[GoodLine] = []
        for line in check.found(self._parts.blobs.pieces(blob)):
            if line is not None:
                found.append(line)
            if check.good > left:
                check.give_up(_no_lines_left(self._parts.settings.tenant_lines, left))
                return
            if len(found) == _ADDED_AT_ONCE:
                if not self._parts.store.add_lines(batch, found):
                    return
                found = []
            yield
        self._parts.store.add_lines(batch, found)

    async def _finish(self, batch: ActiveBatch) -> None:
        parts = self._parts
        await self._run(parts.store.finalizing, batch.id, parts.now())
        await self._run(
            write_results, parts.store, parts.files, parts.blobs, parts.runner, batch, parts.now()
        )
        self._progress.pop(batch.id, None)
        logger.info("batch.finished id=%s stopped=%s", batch.id, batch.stopped)
        await self._run(parts.store.clear_lines, batch.id)

    # Providers' batches.

    def _follow(self, active: Sequence[ActiveBatch]) -> None:
        """Look after the submissions, beside the rounds."""
        now_s, pause_s = asyncio.get_running_loop().time(), self._parts.settings.provider_poll_s
        if self._submissions is None or "" in self._busy:
            return
        if now_s < self._followed_at_s + min(1.0, pause_s):
            return
        self._followed_at_s = now_s
        self._alone("", self._submissions.follow({batch.id: batch for batch in active}))

    async def _submit_some(self, batch: ActiveBatch) -> None:
        """Send lines to providers' batches."""
        if self._submissions is None:
            return
        progress, now_s = self._of(batch), asyncio.get_running_loop().time()
        if now_s >= progress.targets_at_s + _TARGETS_EVERY_S:
            is_busy = bool(progress.running or self._ends)
            found, own = await self._submissions.targets(batch, may_grow=not progress.is_full)
            if is_busy:
                # A line that came to wait for a target may not have been written by then.
                fits = self._submissions.fits
                found = {t: False for t in progress.targets if fits(batch, t)} | found
            progress.targets, progress.own, progress.targets_at_s = found, own, now_s
            if progress.paused_until is None or self._parts.now() >= progress.paused_until:
                for target, is_ready in found.items():
                    if is_ready and (name := f"{batch.id} {target}") not in self._busy:
                        self._alone(name, self._submit(batch, target))

    async def _submit(self, batch: ActiveBatch, target: str) -> None:
        assert self._submissions is not None
        progress, parts = self._of(batch), self._parts
        message: str | None = None
        reason: StopReason = "max_cost_exceeded"
        try:
            claimed = await self._submissions.submit(self.holder, batch, target)
            if not claimed and batch.max_cost_usd is not None:
                message = _max_cost_text(batch)
        except (BudgetExceeded, MaxCostExceeded) as error:
            reason, message = _reason(error), error.message
        if message is None:
            return
        states = await self._run(parts.store.states, batch.id)
        if progress.running or self._ends or states["submitted"]:
            # What these hold is released when they end.
            pause = timedelta(seconds=parts.settings.provider_poll_s)
            progress.paused_until = parts.now() + pause
        elif states["waiting"]:
            await self._stop(batch, reason, message)

    # Lines.

    async def _start(self, active: Sequence[ActiveBatch]) -> None:
        """Start lines of all batches in turn, as many as may run now."""
        ready = [
            batch
            for batch in active
            if batch.status == "in_progress"
            and not batch.is_audit
            and batch.stopped is None
            and batch.id not in self._busy
        ]
        if not ready:
            return
        # A line keeps its place until its end is written: a kill makes no more of them unknown.
        free = self._parts.slack.limit() - len(self._tasks) - len(self._ends)
        # Each round begins with another batch, so that a long one does not starve the others.
        self._turn = (self._turn + 1) % len(ready)
        order = ready[self._turn :] + ready[: self._turn]
        for position, batch in enumerate(order):
            async with self._apart(batch):
                await self._submit_some(batch)
                share = -(-max(0, free) // (len(order) - position))
                free -= await self._start_some(batch, share)

    async def _start_some(self, batch: ActiveBatch, most: int) -> int:
        progress = self._of(batch)
        if progress.alone:
            most = min(most, 1 - len(progress.running))
        if most <= 0:
            return 0
        lines, room = await self._claimed(batch, progress, most)
        if not lines:
            if not progress.targets:
                await self._stop_at_limit(batch, progress, room)
            return 0
        texts = await self._texts(batch, progress, lines)
        for line, data in zip(lines, texts, strict=False):
            task = asyncio.create_task(self._run_line(batch, line, data, room))
            self._tasks.add(task)
            task.add_done_callback(self._line_done)
        return len(texts)

    async def _claimed(
        self, batch: ActiveBatch, progress: _Progress, most: int
    ) -> tuple[list[ClaimedLine], Decimal | None]:
        """Begin lines; return them and the room that they were begun with."""
        in_batch = self._submissions is not None and self._submissions.fits_any(batch)
        claim = partial(self._parts.store.claim, own=progress.own, in_batch=in_batch)
        async with progress.room.claiming:
            room = await progress.room.free_usd()
            lines = await self._run(claim, self.holder, batch.id, most, self._parts.now(), room)
            progress.room.begin(lines, room, in_batch=in_batch)
            progress.running |= {line.number: line for line in lines}
        progress.is_full = not lines and room is not None and not progress.running
        return lines, room

    async def _texts(
        self, batch: ActiveBatch, progress: _Progress, lines: Sequence[ClaimedLine]
    ) -> list[bytes]:
        """Return the lines' bytes; none where they cannot be read: they have ended then."""
        parts = self._parts

        def read() -> list[bytes]:
            blob = parts.files.blob(batch.caller.tenant, batch.input_file)
            return [parts.blobs.slice(blob, line.start, line.length) for line in lines]

        try:
            return await self._insist(read)
        except NarrowgateError as error:
            # The content is missing or damaged: a retry would not help.
            for line in lines:
                self._end(progress, parts.runner.refused(line, error, None))
            return []
        except Exception:
            for line in lines:
                self._end(progress, LineEnd(line.batch, line.number, "waiting"))
            raise

    async def _stop_at_limit(
        self, batch: ActiveBatch, progress: _Progress, room: Decimal | None
    ) -> None:
        """Stop a batch whose next line does not fit its limit, once nothing may be released."""
        if room is None or progress.running or self._ends:
            return
        states = await self._run(self._parts.store.states, batch.id)
        if states["submitted"]:
            return
        if await self._run(self._parts.store.claimable, batch.id, self._parts.now()):
            await self._stop(batch, "max_cost_exceeded", _max_cost_text(batch))

    async def _run_line(
        self, batch: ActiveBatch, line: ClaimedLine, data: bytes, room: Decimal | None
    ) -> None:
        parts, progress = self._parts, self._of(batch)
        reserve = partial(progress.room.require, line.number)
        # Lines that run now may release what this one needs.
        is_alone = progress.alone and len(progress.running) == 1
        try:
            work = LineWork(self._defer(batch), room_usd=room, reserve=reserve)
            end = await parts.runner.run(batch, line, data, parts.now(), work)
        except (BudgetExceeded, MaxCostExceeded) as error:
            end = await self._refused(batch, line, error, is_alone=is_alone)
        except BadLine as problem:
            # Checked before; the settings may have changed since.
            text = unrun_text(line.request_id, line.custom_id, problem.code, problem.message)
            failed = LineEnd(line.batch, line.number, "failed", error=problem.code)
            end = parts.runner.sealed(failed, text)
        except Exception as error:
            if is_lease_lost(error):
                # The next holder ends or repeats it.
                progress.forget(line.number)
                return
            # The process edge of a line: it must end, and its batch must go on.
            logger.exception("batch.line_failed id=%s", line.request_id)
            wrapped = NarrowgateError(f"the line failed: {type(error).__name__}")
            end = parts.runner.refused(line, wrapped, line.worst_usd)
        if end.target is not None:
            # Known before it is read: the batch has lines that wait for a provider's.
            progress.targets.setdefault(end.target, False)
        self._end(progress, end)

    def _end(self, progress: _Progress, end: LineEnd) -> None:
        """Have the end of a line that ran here written."""
        # Both at once: what it cost counts from now on in the place of what was reserved.
        progress.forget(end.number)
        self._ends.append(end)
        self._ended.set()

    def _defer(self, batch: ActiveBatch) -> Defer | None:
        """Return which calls of a batch's lines wait for a provider's batch; None for none."""
        submissions = self._submissions
        return None if submissions is None else lambda target: submissions.fits(batch, target)

    async def _refused(
        self,
        batch: ActiveBatch,
        line: ClaimedLine,
        error: BudgetExceeded | MaxCostExceeded,
        *,
        is_alone: bool,
    ) -> LineEnd:
        """Return a line to those that wait; stop its batch where nothing else holds money."""
        progress, not_before = self._of(batch), None
        states = await self._insist(self._parts.store.states, batch.id)
        if states["submitted"]:
            # Their worst cases are held, and most of each will be released; it may take hours.
            pause = timedelta(seconds=self._parts.settings.provider_poll_s)
            not_before = self._parts.now() + min(LONGEST_PAUSE, pause)
        elif is_alone:
            await self._stop(batch, _reason(error), error.message)
        progress.alone = True
        return LineEnd(line.batch, line.number, "waiting", error=error.code, not_before=not_before)

    async def _stop(self, batch: ActiveBatch, reason: StopReason, message: str) -> None:
        logger.warning("batch.stopped id=%s reason=%s", batch.id, reason)
        await self._insist(self._parts.store.stop, batch.id, reason, self._parts.now(), message)

    def _line_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("batch.line_task_failed", exc_info=task.exception())
        self._woken.set()

    async def _write_ends(self) -> None:
        """Write how lines ended, many in one transaction, until cancelled."""
        while True:
            await self._ended.wait()
            self._ended.clear()
            await self._flush()

    async def _flush(self) -> None:
        async with self._flushing:
            await self._flush_all()

    async def _flush_all(self) -> None:
        while self._ends:
            some = self._ends[:_WRITTEN_AT_ONCE]
            # What was paid for is not given up while this process lives.
            await self._insist(self._parts.store.end_lines, self.holder, some)
            del self._ends[: len(some)]
            self._count(some)
        self._woken.set()

    def _count(self, ends: Sequence[LineEnd]) -> None:
        for end in ends:
            progress = self._progress.get(end.batch)
            if progress is not None and end.number not in progress.running:
                # The database counts all that it cost.
                progress.room.release(end.number)
        for state, count in Counter(end.state for end in ends).items():
            self._parts.events.batch_lines_ended(state, count)

    async def _recover(self) -> None:
        """End or repeat the lines that an earlier holder was running."""
        store = self._parts.store
        left = await self._run(store.left_running, self.holder)
        by_tenant: defaultdict[str, list[ClaimedLine]] = defaultdict(list)
        since = min((started for _, _, started in left), default=None)
        for line, tenant, _ in left:
            by_tenant[tenant].append(line)
        ends: list[LineEnd] = []
        for tenant, lines in by_tenant.items():
            assert since is not None
            names = [line.request_id for line in lines]
            paid = await self._run(paid_attempts, store.database, tenant, names, since)
            for line in lines:
                found = paid.get(line.request_id)
                if found is None:
                    ends.append(LineEnd(line.batch, line.number, "waiting"))
                    continue
                text = unrun_text(line.request_id, line.custom_id, _LOST_CODE, _LOST)
                end = LineEnd(
                    line.batch, line.number, "failed", error=_LOST_CODE, cost_usd=found.usd
                )
                ends.append(self._parts.runner.sealed(end, text))
        if ends:
            await self._run(store.end_lines, self.holder, ends)
            self._count(ends)
            lost = sum(end.state == "failed" for end in ends)
            logger.warning("batch.recovered lines=%d lost=%d", len(ends), lost)

    async def _close(self, writer: "asyncio.Task[None]") -> None:
        """Let running lines end for a while, then cancel them; write what ended."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self._parts.grace_s)
        remaining = [*self._tasks, *self._busy.values()]
        for task in remaining:
            task.cancel()
        await asyncio.gather(*remaining, return_exceptions=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(self._parts.grace_s):
                await self._flush()
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
        if self._leads:
            with suppress(LedgerUnavailable, SQLAlchemyError):
                await self._run(self._parts.store.release_lease, self.holder)
        if self._submissions is not None:
            await self._submissions.aclose()
        self._threads.shutdown(wait=False)
        self._turns.close()

    async def _insist(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a blocking function until the database answers."""
        while True:
            try:
                return await self._run(function, *arguments)
            except (LedgerUnavailable, SQLAlchemyError) as error:
                logger.warning("batch.retried error=%s", type(error).__name__)
                await asyncio.sleep(_AFTER_FAILURE_S)

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, function, *arguments)


def _reason(error: BudgetExceeded | MaxCostExceeded) -> StopReason:
    return "budget_exceeded" if isinstance(error, BudgetExceeded) else "max_cost_exceeded"


def _no_lines_left(most: int, left: int) -> LineProblem:
    return LineProblem(
        "too_many_lines",
        f"the tenant's unfinished batches may hold {most} lines together, and {max(0, left)} are "
        "left",
    )


def _max_cost_text(batch: ActiveBatch) -> str:
    return (
        f"max_cost_usd is {batch.max_cost_usd:f}, and the next line's worst case does not fit what "
        "is left of it"
    )
