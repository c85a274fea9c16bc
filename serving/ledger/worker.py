"""Writes ledger operations into the database, and into files while it is unreachable.

Blocking, and for one thread.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from sqlalchemy import exc

from serving.contracts.errors import LedgerUnavailable, LedgerUnusable, NarrowgateError
from serving.contracts.ledger import LedgerEvents
from serving.ledger.accounts import StaleRoom
from serving.ledger.connection_watchdog import ConnectionWatchdog
from serving.ledger.database import DEFAULT_TIMEOUTS, Database, Timeouts, blames_row
from serving.ledger.instances import HEARTBEAT_TIMEOUT, Instance, beat, end
from serving.ledger.migrate import migrate
from serving.ledger.operations import (
    Open,
    Operation,
    Spillable,
    UnreadableLine,
    from_line,
    to_line,
    withdrawal,
    without_reported_values,
)
from serving.ledger.spill import Spill, SpillFile
from serving.ledger.store import Store

logger = logging.getLogger(__name__)
T = TypeVar("T")

BATCH = 256
"""Operations in one transaction."""

_MAX_UNSPILLED = 10_000
"""Lines kept in memory while neither the database nor the disk accepts writes."""

Answer = NarrowgateError | None
"""Why a call may not be made; None for an operation that is written or will be."""


class WorkerDeps(NamedTuple):
    """Dependencies of the worker. No other thread may use the database."""

    database: Database
    watchdog: ConnectionWatchdog
    spill: Spill
    instance: Instance
    timeouts: Timeouts = DEFAULT_TIMEOUTS


class LedgerWorker:
    """Writes operations, sends heartbeats, probes the database and replays spill files.

    up: the database accepts writes; False until the first probe succeeds. fault: why the database
    can never be used as it is.
    """

    def __init__(self, deps: WorkerDeps, events: LedgerEvents) -> None:
        self._deps = deps
        self._events = events
        self._store = Store()
        self.up = False
        self.fault: LedgerUnusable | None = None
        self._up_since_s = 0.0
        self._next_s = 0.0
        self._reached_commit = False
        self._unspilled: list[str] = []
        self._files: list[SpillFile] = []
        self._chunks: Iterator[list[str]] | None = None
        events.ledger_changed("down")

    def idle_s(self) -> float:
        """Return the seconds until `tend` has work to do."""
        if self.up and self._files:
            return 0.0
        return max(0.0, self._next_s - time.monotonic())

    def tend(self) -> None:
        """Do the due work. Does not raise for an unreachable database."""
        if time.monotonic() >= self._next_s:
            timeouts = self._deps.timeouts
            self._next_s = time.monotonic() + (timeouts.beat_s if self.up else timeouts.probe_s)
            self._beat()
            self._retry_unspilled()
        if self.up and self._files:
            self._replay()

    def write(self, operations: Sequence[Operation]) -> list[Answer]:
        """Apply operations or spill them to a file, and return their answers in the same order.

        An operation that the database rejects does not affect the others.
        """
        if not self.up:
            return self._postpone(operations)
        try:
            answers = self._commit(operations)
        except LedgerUnavailable as error:
            self._went_down(error)
            return self._postpone(operations, maybe_committed=self._reached_commit)
        except Exception as error:  # noqa: BLE001  # the thread's edge: a bad row, or a bug
            if len(operations) > 1:
                return [answer for item in operations for answer in self.write([item])]
            return [self._reject(operations[0], error)]
        self._events.ledger_written(sum(answer is None for answer in answers))
        return answers

    def finish(self) -> None:
        """Mark this process as ended and close everything."""
        database, watchdog, spill, instance, _ = self._deps
        if self.up:
            try:
                with watchdog.watched(), database.begin() as connection:
                    end(connection, instance.id)
            except (LedgerUnavailable, exc.DBAPIError):
                # Another process will mark this one as ended.
                logger.warning("ledger.end_not_written instance=%s", instance.id)
        if self._unspilled:
            self._spill([])
        for file in self._files:
            file.close()
        spill.close()
        database.close()
        watchdog.close()

    def _commit(self, operations: Sequence[Operation]) -> list[Answer]:
        try:
            return self._connected(lambda: self._transaction(operations))
        except StaleRoom:
            # The store has forgotten what was left, and locks the accounts first.
            return self._transaction(operations)

    def _connected(self, work: Callable[[], T]) -> T:
        """Return the work's result; try it on a new connection where the old one was lost.

        A restart, a failover or a proxy's time-out cuts a connection to a server that answers.
        """
        self._reached_commit = False
        try:
            return work()
        except LedgerUnavailable as error:
            # A commit that was sent may have been executed, and a silent server stays silent.
            if self._reached_commit or not self._was_only_cut(error):
                raise
        return work()

    def _was_only_cut(self, error: Exception) -> bool:
        cause = error.__cause__
        is_lost = isinstance(cause, exc.DBAPIError) and cause.connection_invalidated
        return is_lost and not self._deps.watchdog.has_cut

    def _transaction(self, operations: Sequence[Operation]) -> list[Answer]:
        self._reached_commit = False
        try:
            with self._deps.watchdog.watched(), self._deps.database.begin() as connection:
                answers = self._store.apply(connection, operations)
                self._reached_commit = True
        except BaseException as error:  # whatever ends the transaction; re-raised
            self._store.forget()
            if isinstance(error, exc.DBAPIError) and not blames_row(error):
                raise _unavailable() from error
            raise
        return list(answers)

    def _postpone(
        self, operations: Sequence[Operation], *, maybe_committed: bool = False
    ) -> list[Answer]:
        """Spill what can be written later and refuse calls.

        maybe_committed: the database may have committed the operations without a confirmation.
        """
        later: list[Spillable] = [item for item in operations if not isinstance(item, Open)]
        if maybe_committed:
            later += [withdrawal(item) for item in operations if isinstance(item, Open)]
        if later:
            self._spill([line for item in later if (line := self._line_of(item))])
        return [_unavailable() if isinstance(item, Open) else None for item in operations]

    def _spill(self, lines: Sequence[str]) -> None:
        lines = [*self._unspilled, *lines]
        try:
            self._deps.spill.append(lines)
        except OSError as error:
            lost = max(0, len(lines) - _MAX_UNSPILLED)
            logger.error("ledger.spill_failed error=%s lost=%d", error.strerror, lost)  # noqa: TRY400
            self._unspilled = lines[-_MAX_UNSPILLED:]
            return
        self._unspilled = []
        self._events.ledger_spilled(len(lines))

    def _retry_unspilled(self) -> None:
        """Write the lines that neither the database nor the disk accepted before."""
        if not self.up:
            if self._unspilled:
                self._spill([])
            return
        try:
            while self._unspilled:
                self._rewrite(self._read(self._unspilled[:BATCH]))
                del self._unspilled[:BATCH]
        except LedgerUnavailable as error:
            self._went_down(error)

    def _beat_once(self, *, others_had_time: bool) -> int:
        database, watchdog, _, instance, _ = self._deps
        with watchdog.watched():
            if not self.up:
                migrate(database)
            with database.begin() as connection:
                return beat(connection, instance, others_had_time=others_had_time)

    def _beat(self) -> None:
        """Send a heartbeat; probe a database that was unreachable."""
        long_up = (
            self.up and time.monotonic() - self._up_since_s > HEARTBEAT_TIMEOUT.total_seconds()
        )
        try:
            ended = self._connected(lambda: self._beat_once(others_had_time=long_up))
        except LedgerUnusable as error:
            if self.fault is None:
                logger.error("ledger.unusable %s", error.message)  # noqa: TRY400  # no traceback
            self.fault = error
            self._went_down(error)
        except (LedgerUnavailable, exc.DBAPIError) as error:
            self._went_down(error)
        else:
            self._came_up(ended)

    def _came_up(self, ended: int) -> None:
        if not self.up:
            self.up, self.fault, self._up_since_s = True, None, time.monotonic()
            self._next_s = time.monotonic() + self._deps.timeouts.beat_s
            self._events.ledger_changed("up")
            logger.info("ledger.up")
        elif not ended:
            return
        self._files += self._deps.spill.take()

    def _went_down(self, error: Exception) -> None:
        if self.up:
            self.up = False
            self._chunks = None
            wait_s = 0.0 if self._was_only_cut(error) else self._deps.timeouts.probe_s
            self._next_s = time.monotonic() + wait_s
            self._events.ledger_changed("down")
            cause = error.__cause__ or error
            kind = cause.orig if isinstance(cause, exc.DBAPIError) else cause
            logger.warning("ledger.down error=%s", type(kind).__name__)

    def _replay(self) -> None:
        """Write the next lines of the first file in one transaction."""
        file = self._files[0]
        try:
            if self._chunks is None:
                self._chunks = file.chunks(BATCH)
            lines = next(self._chunks, None)
            if lines is None:
                self._next_file()
                file.remove()
            else:
                self._rewrite(self._read(lines))
        except LedgerUnavailable as error:
            # Replayed from the first line again: applying a line twice changes nothing.
            self._went_down(error)
        except OSError as error:
            self._next_file()
            logger.error("ledger.spill_unreadable error=%s", error.strerror)  # noqa: TRY400

    def _next_file(self) -> None:
        self._files.pop(0)
        self._chunks = None

    def _read(self, lines: Sequence[str]) -> list[Spillable]:
        operations: list[Spillable] = []
        for line in lines:
            try:
                operations.append(from_line(line))
            except UnreadableLine:
                self._quarantine(line.rstrip("\n"))
        return operations

    def _rewrite(self, operations: Sequence[Spillable]) -> None:
        if not operations:
            return
        try:
            self._commit(operations)
        except LedgerUnavailable:
            raise
        except Exception as error:  # noqa: BLE001  # as in write
            if len(operations) > 1:
                for item in operations:
                    self._rewrite([item])
            else:
                self._reject(operations[0], error)
            return
        self._events.ledger_written(len(operations))

    def _reject(self, operation: Operation, error: Exception) -> Answer:
        # Only the kinds of error are logged: the values may hold text of users.
        cause = error.orig if isinstance(error, exc.DBAPIError) else error
        kinds = type(operation).__name__, type(cause).__name__
        logger.error("ledger.rejected operation=%s error=%s", *kinds)
        if isinstance(operation, Open):
            return _unavailable()
        self._quarantine(self._line_of(operation) or repr(operation))
        self._close_reduced(without_reported_values(operation))
        return None

    def _close_reduced(self, operation: Spillable) -> None:
        """Close a call or an exit whose own values the database rejects."""
        try:
            self._commit([operation])
        except LedgerUnavailable as error:
            self._went_down(error)
            self._postpone([operation])
        except Exception as error:  # noqa: BLE001  # as in write
            kinds = type(operation).__name__, type(error).__name__
            logger.error("ledger.row_not_closed operation=%s error=%s", *kinds)  # noqa: TRY400

    def _line_of(self, operation: Spillable) -> str | None:
        try:
            return to_line(operation)
        except (TypeError, ValueError) as error:
            logger.error("ledger.row_lost error=%s", type(error).__name__)  # noqa: TRY400
            return None

    def _quarantine(self, line: str) -> None:
        """Keep a line that cannot be written for a person to inspect."""
        self._events.ledger_rejected(1)
        try:
            self._deps.spill.reject([line])
        except OSError as error:
            logger.error("ledger.row_lost error=%s", error.strerror)  # noqa: TRY400


def _unavailable() -> LedgerUnavailable:
    return LedgerUnavailable(
        "the call was not made because the ledger cannot record it now",
        fix="retry later; check that the ledger's database runs",
        retry_after_s=5,
    )
