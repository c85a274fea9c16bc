"""One thread that writes for the event loop: what waits at once is committed at once."""

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
from serving.ledger.operations import Close, Leave, Open, Operation, to_line, withdrawal
from serving.ledger.spill import Spill
from serving.ledger.worker import BATCH, Answer, LedgerWorker

logger = logging.getLogger(__name__)

_START_S = 10.0
_STOP_S = 15.0
_WATCH_S = 0.5
_AFTER_BUG_S = 0.1
"""Pause of the thread after an error that nobody foresaw, which may well come again at once."""

_MAX_QUEUED = 10_000
"""From which calls are refused; what is over already is taken in any case."""


@dataclass(slots=True, eq=False)
class _Ticket:
    """abandoned: nobody waits for the call any more; it is not to be opened."""

    operation: Operation
    answer: "asyncio.Future[Answer]"
    abandoned: bool = False


class Writer:
    """Hands operations to a keeper's thread. Its methods are for the loop that started it."""

    def __init__(
        self, keeper: LedgerWorker, line: ConnectionWatchdog, late: Spill, events: LedgerEvents
    ) -> None:
        """late: where what comes after the end is kept."""
        self._keeper = keeper
        self._line = line
        self._late = late
        self._events = events
        self._queue: queue.SimpleQueue[_Ticket | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self._tried = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch: asyncio.Task[None] | None = None
        self._ended = False

    @property
    def state(self) -> LedgerState:
        """Return whether the database takes what is written."""
        return "up" if self._keeper.up else "down"

    async def start(self) -> None:
        """Start, and wait until the database was tried, 10 s at most. Raises LedgerUnusable."""
        self._loop = asyncio.get_running_loop()
        self._watch = asyncio.create_task(self._watch_line())
        self._thread.start()
        await asyncio.to_thread(self._tried.wait, _START_S)
        if self._keeper.fault is not None:
            await self.aclose()
            raise self._keeper.fault

    async def open(self, operation: Open, wait_s: float, deadline: Deadline) -> None:
        """Open a call. Raises BudgetExceeded, LedgerUnavailable or DeadlineExceeded.

        Whatever it raises, and where it is cancelled: the call holds nothing.
        """
        if not deadline.remaining_s():
            raise deadline_exceeded()
        began = time.monotonic()
        try:
            answer = await self._opened(operation, min(wait_s, deadline.remaining_s()))
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

    def submit(self, operation: Close | Leave) -> "asyncio.Future[Answer]":
        """Have an operation done; the future is done when it is on disk. Never waits."""
        return self._put(operation).answer

    def later(self, seconds: float, do: Callable[[], None]) -> None:
        """Have something done on the loop that started this."""
        assert self._loop is not None, "the ledger was not started"
        self._loop.call_later(seconds, do)

    async def aclose(self) -> None:
        """Write what waits and stop, within 15 s; what comes later goes to a file."""
        if self._ended:
            return
        if self._thread.is_alive():
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join, _STOP_S)
        self._ended = True
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
        with contextlib.suppress(queue.Empty):
            while True:
                ticket = self._queue.get_nowait()
                if ticket is not None:
                    self._settle([(ticket, self._keep_late(ticket.operation))])

    async def _opened(self, operation: Open, wait_s: float) -> Answer:
        if not self._keeper.up or self._queue.qsize() > _MAX_QUEUED:
            raise _too_slow()
        ticket = self._put(operation)
        try:
            async with asyncio.timeout(wait_s):
                return await ticket.answer
        except BaseException:
            # It is skipped where it was not written yet, and undone where it was.
            ticket.abandoned = True
            self.submit(withdrawal(operation))
            raise

    def _put(self, operation: Operation) -> _Ticket:
        assert self._loop is not None, "the ledger was not started"
        ticket = _Ticket(operation, self._loop.create_future())
        if self._ended:
            ticket.answer.set_result(self._keep_late(operation))
        else:
            self._queue.put(ticket)
        return ticket

    def _keep_late(self, operation: Operation) -> Answer:
        if isinstance(operation, Open):
            return _too_slow()
        try:
            self._late.append([to_line(operation)])
            # At once, so that the next process finds it.
            self._late.close()
        except OSError as error:
            logger.error("ledger.row_lost error=%s", error.strerror)  # noqa: TRY400
        return None

    async def _watch_line(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            if self._line.cut_if_silent():
                logger.warning("ledger.server_silent")

    def _work(self) -> None:
        stopping = False
        while not stopping:
            try:
                self._keeper.tend()
                self._tried.set()
                batch, stopping = self._take(self._keeper.idle_s())
                self._write(batch)
            except Exception:
                logger.exception("ledger.writer_failed")
                time.sleep(_AFTER_BUG_S)
        self._keeper.finish()

    def _take(self, wait_s: float) -> tuple[list[_Ticket], bool]:
        """Return what waits, and whether it was the last of all."""
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
        answers = self._keeper.write([ticket.operation for ticket in live])
        assert self._loop is not None
        # A loop that was closed has nobody left who waits.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._settle, list(zip(live, answers, strict=True)))

    @staticmethod
    def _settle(answered: list[tuple[_Ticket, Answer]]) -> None:
        for ticket, answer in answered:
            if not ticket.answer.done():
                ticket.answer.set_result(answer)


def _too_slow() -> LedgerUnavailable:
    return LedgerUnavailable(
        "the ledger's database does not answer, so the call was not made",
        fix="retry later; see that the database runs",
        retry_after_s=5,
    )
