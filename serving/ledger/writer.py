"""The thread that writes for the event loop. Pending writes are committed in one transaction."""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from serving.contracts.deadline import Deadline, deadline_exceeded
from serving.contracts.errors import BudgetExceeded, LedgerUnavailable
from serving.contracts.ledger import LedgerEvents, LedgerState
from serving.ledger.connection_watchdog import ConnectionWatchdog
from serving.ledger.operations import Close, Open, Operation, RecordExit, to_line, withdrawal
from serving.ledger.spill import Spill
from serving.ledger.worker import BATCH, Answer, LedgerWorker

logger = logging.getLogger(__name__)

_START_S = 10.0
_STOP_S = 15.0
_AFTER_BUG_S = 0.1
"""Pause after an unexpected error, which may come again at once."""

_PATIENCE_S = 0.02
"""How long an operation for which nobody waits may wait for one that must be flushed anyway."""

_MAX_PATIENT = 128
"""Operations that wait so at most; well below a transaction's."""

_MAX_QUEUED = 10_000
"""Queue length above which calls are refused. Exits and ends of calls are always accepted."""


@dataclass(slots=True, eq=False)
class _Ticket:
    """A queued operation. abandoned: its caller has given up, so it must not be opened."""

    operation: Operation
    answer: "asyncio.Future[Answer]"
    abandoned: bool = False


class Writer:
    """Passes operations to the worker's thread. Only the loop that started it may call it."""

    def __init__(
        self,
        worker: LedgerWorker,
        watchdog: ConnectionWatchdog,
        late: Spill,
        events: LedgerEvents,
        watch_s: float,
    ) -> None:
        """late: takes operations that come after the end. watch_s: between checks for silence."""
        self._worker = worker
        self._watchdog = watchdog
        self._late = late
        self._events = events
        self._watch_s = watch_s
        self._queue: queue.SimpleQueue[_Ticket | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self._tried = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch: asyncio.Task[None] | None = None
        self._ended = False
        self._patient: list[_Ticket] = []
        self._patience: asyncio.TimerHandle | None = None

    @property
    def state(self) -> LedgerState:
        """Return whether the database accepts writes."""
        return "up" if self._worker.up else "down"

    async def start(self) -> None:
        """Start, and wait until the database was tried, at most 10 s. Raises LedgerUnusable."""
        self._loop = asyncio.get_running_loop()
        self._watch = asyncio.create_task(self._watch_connection())
        self._thread.start()
        await asyncio.to_thread(self._tried.wait, _START_S)
        if self._worker.fault is not None:
            await self.aclose()
            raise self._worker.fault

    async def open(self, operation: Open, wait_s: float, deadline: Deadline) -> None:
        """Open a call. Raises BudgetExceeded, LedgerUnavailable or DeadlineExceeded.

        After an error or a cancellation, the call holds nothing.
        """
        if not deadline.remaining_s():
            raise deadline_exceeded()
        began = time.monotonic()
        try:
            answer = await self._opened(operation, wait_s, deadline)
        except TimeoutError:
            if not deadline.remaining_s():
                raise deadline_exceeded() from None
            raise _too_slow() from None
        finally:
            self._events.ledger_waited(time.monotonic() - began)
        if isinstance(answer, BudgetExceeded):
            self._events.budget_refused(operation.call["tenant"])
        if answer is not None:
            raise answer

    def submit(
        self, operation: Close | RecordExit, *, is_awaited: bool = True
    ) -> "asyncio.Future[Answer]":
        """Queue an operation; the future is done when it is on disk. Does not block.

        is_awaited: False where nobody waits for it now. It is then written 20 ms later, or with the
        next operation that is awaited: one flush for both, and no call waits for a flush before its
        own.
        """
        if is_awaited or self._ended:
            return self._put(operation).answer
        assert self._loop is not None, "the ledger was not started"
        ticket = _Ticket(operation, self._loop.create_future())
        self._patient.append(ticket)
        if len(self._patient) >= _MAX_PATIENT:
            self.hurry()
        elif self._patience is None:
            self._patience = self._loop.call_later(_PATIENCE_S, self.hurry)
        return ticket.answer

    def hurry(self) -> None:
        """Queue the operations that waited for another one."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        for ticket in self._patient:
            self._queue.put(ticket)
        self._patient.clear()

    def later(self, seconds: float, do: Callable[[], None]) -> None:
        """Schedule a function on the loop that started the writer."""
        assert self._loop is not None, "the ledger was not started"
        self._loop.call_later(seconds, do)

    async def aclose(self) -> None:
        """Write pending rows and stop, within 15 s. Later operations go to a file."""
        if self._ended:
            return
        if self._thread.is_alive():
            self.hurry()
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join, _STOP_S)
        self._ended = True
        self.hurry()
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        with contextlib.suppress(queue.Empty):
            while True:
                ticket = self._queue.get_nowait()
                if ticket is not None:
                    self._resolve([(ticket, self._spill_late(ticket.operation))])

    async def _opened(self, operation: Open, wait_s: float, deadline: Deadline) -> Answer:
        if not self._worker.up or self._queue.qsize() > _MAX_QUEUED:
            raise _too_slow()
        ticket = self._put(operation)
        try:
            async with deadline.timeout(wait_s):
                return await ticket.answer
        except BaseException:  # cancellation too: the row must not stay open; re-raised
            # The worker skips it if it is still queued; the withdrawal undoes it if it was written.
            ticket.abandoned = True
            self.submit(withdrawal(operation))
            raise

    def _put(self, operation: Operation) -> _Ticket:
        assert self._loop is not None, "the ledger was not started"
        ticket = _Ticket(operation, self._loop.create_future())
        if self._ended:
            ticket.answer.set_result(self._spill_late(operation))
        else:
            # In the order of submission: a budget is checked against all ends before.
            self.hurry()
            self._queue.put(ticket)
        return ticket

    def _spill_late(self, operation: Operation) -> Answer:
        if isinstance(operation, Open):
            return _too_slow()
        try:
            self._late.append([to_line(operation)])
            # Closed at once, so that the next process can claim the file.
            self._late.close()
        except OSError as error:
            logger.error("ledger.row_lost error=%s", error.strerror)  # noqa: TRY400
        return None

    async def _watch_connection(self) -> None:
        while True:
            await asyncio.sleep(self._watch_s)
            if self._watchdog.cut_if_unresponsive():
                logger.warning("ledger.connection_timeout")

    def _work(self) -> None:
        stopping = False
        while not stopping:
            try:
                self._worker.tend()
                self._tried.set()
                batch, stopping = self._take(self._worker.idle_s())
                self._write(batch)
            except Exception:  # the thread's edge: a defect must not end the writer
                logger.exception("ledger.writer_failed")
                time.sleep(_AFTER_BUG_S)
        self._worker.finish()

    def _take(self, wait_s: float) -> tuple[list[_Ticket], bool]:
        """Return the pending operations, and whether the end was requested after them."""
        batch: list[_Ticket] = []
        with contextlib.suppress(queue.Empty):
            found = self._queue.get(timeout=wait_s) if wait_s else self._queue.get_nowait()
            while found is not None:
                batch.append(found)
                if len(batch) == BATCH:
                    return batch, False
                found = self._queue.get_nowait()
            return batch, True
        return batch, False

    def _write(self, batch: list[_Ticket]) -> None:
        live = [ticket for ticket in batch if not ticket.abandoned]
        if not live:
            return
        answers = self._worker.write([ticket.operation for ticket in live])
        assert self._loop is not None
        # On a closed loop, no caller waits any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._resolve, list(zip(live, answers, strict=True)))

    @staticmethod
    def _resolve(answered: list[tuple[_Ticket, Answer]]) -> None:
        for ticket, answer in answered:
            if not ticket.answer.done():
                ticket.answer.set_result(answer)


def _too_slow() -> LedgerUnavailable:
    return LedgerUnavailable(
        "the call was not made because the ledger's database does not answer in time",
        fix="retry later; check that the database runs",
        retry_after_s=5,
    )
