"""Keeps the books in the database, and in files while that is away. Blocking; for one thread."""

import logging
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import exc

from serving.contracts.errors import LedgerUnavailable, LedgerUnusable, NarrowgateError
from serving.contracts.ledger import LedgerEvents
from serving.ledger.connection_watchdog import ConnectionWatchdog
from serving.ledger.database import Database
from serving.ledger.instances import SILENT, Instance, beat, end
from serving.ledger.migrate import migrate
from serving.ledger.operations import (
    Keepable,
    Open,
    Operation,
    UnreadableLine,
    from_line,
    to_line,
    withdrawal,
)
from serving.ledger.spill import Spill, SpillFile
from serving.ledger.store import Store

logger = logging.getLogger(__name__)

BATCH = 256
"""Operations in one transaction."""

_BEAT_S = 2.0
_PROBE_S = 1.0
_UNSPILLED = 10_000
"""Lines kept in memory while neither the database nor the disk takes any."""

Answer = NarrowgateError | None
"""Why a call may not be made; None for everything that is written or will be."""


class Books(NamedTuple):
    """What the keeper works with. line: that of the database, which is the keeper's alone."""

    database: Database
    line: ConnectionWatchdog
    spill: Spill
    instance: Instance


class LedgerWorker:
    """Writes operations and tends what must happen besides: signs of life, probes, files.

    Down until the first probe succeeds. fault: why the database will never do as it is.
    """

    def __init__(self, books: Books, events: LedgerEvents) -> None:
        self._books = books
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
        """Return for how long there is nothing to tend."""
        if self.up and self._files:
            return 0.0
        return max(0.0, self._next_s - time.monotonic())

    def tend(self) -> None:
        """Do what is due. Never raises for a database that is away."""
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + (_BEAT_S if self.up else _PROBE_S)
            self._beat()
            self._retry_unspilled()
        if self.up and self._files:
            self._replay()

    def write(self, operations: Sequence[Operation]) -> list[Answer]:
        """Do operations, each or in a file, and return what became of them, in their order.

        A bad one does not touch the others.
        """
        if not self.up:
            return self._put_off(operations)
        try:
            answers = self._commit(operations)
        except LedgerUnavailable as error:
            self._went_down(error)
            return self._put_off(operations, unsure=self._reached_commit)
        except Exception as error:  # noqa: BLE001  # the thread's edge: one row, or a bug
            if len(operations) > 1:
                return [answer for item in operations for answer in self.write([item])]
            return [self._reject(operations[0], error)]
        self._events.ledger_written(sum(answer is None for answer in answers))
        return answers

    def finish(self) -> None:
        """Say that this process has ended, and let go of everything."""
        database, line, spill, instance = self._books
        if self.up:
            try:
                with line.watched(), database.begin() as connection:
                    end(connection, instance.id)
            except (LedgerUnavailable, exc.DBAPIError):
                # Another process finds out.
                logger.warning("ledger.end_unwritten instance=%s", instance.id)
        if self._unspilled:
            self._keep([])
        for file in self._files:
            file.close()
        spill.close()
        database.close()
        line.close()

    def _commit(self, operations: Sequence[Operation]) -> list[Answer]:
        self._reached_commit = False
        try:
            with self._books.line.watched(), self._books.database.begin() as connection:
                answers = self._store.apply(connection, operations)
                self._reached_commit = True
        except BaseException as error:
            self._store.forget()
            if isinstance(error, exc.DBAPIError) and not _blames_row(error):
                raise _unavailable() from error
            raise
        return list(answers)

    def _put_off(self, operations: Sequence[Operation], *, unsure: bool = False) -> list[Answer]:
        """Keep what can wait and refuse calls. unsure: they may have been written all the same."""
        kept: list[Keepable] = [item for item in operations if not isinstance(item, Open)]
        if unsure:
            kept += [withdrawal(item) for item in operations if isinstance(item, Open)]
        if kept:
            self._keep([line for item in kept if (line := self._line_of(item))])
        return [_unavailable() if isinstance(item, Open) else None for item in operations]

    def _keep(self, lines: Sequence[str]) -> None:
        lines = [*self._unspilled, *lines]
        try:
            self._books.spill.append(lines)
        except OSError as error:
            lost = max(0, len(lines) - _UNSPILLED)
            logger.error("ledger.spill_failed error=%s lost=%d", error.strerror, lost)  # noqa: TRY400
            self._unspilled = lines[-_UNSPILLED:]
            return
        self._unspilled = []
        self._events.ledger_spilled(len(lines))

    def _retry_unspilled(self) -> None:
        """Write what neither the database nor the disk took before."""
        if not self.up:
            if self._unspilled:
                self._keep([])
            return
        try:
            while self._unspilled:
                self._rewrite(self._read(self._unspilled[:BATCH]))
                del self._unspilled[:BATCH]
        except LedgerUnavailable as error:
            self._went_down(error)

    def _beat(self) -> None:
        """Say that this process lives; where the database was away, see whether it is back."""
        database, line, _, instance = self._books
        long_up = self.up and time.monotonic() - self._up_since_s > SILENT.total_seconds()
        try:
            with line.watched():
                if not self.up:
                    migrate(database)
                with database.begin() as connection:
                    dead = beat(connection, instance, others_had_time=long_up)
        except LedgerUnusable as error:
            if self.fault is None:
                logger.error("ledger.unusable %s", error.message)  # noqa: TRY400  # says it all
            self.fault = error
            self._went_down(error)
        except (LedgerUnavailable, exc.DBAPIError) as error:
            self._went_down(error)
        else:
            self._came_up(dead)

    def _came_up(self, dead: int) -> None:
        if not self.up:
            self.up, self.fault, self._up_since_s = True, None, time.monotonic()
            self._next_s = time.monotonic() + _BEAT_S
            self._events.ledger_changed("up")
            logger.info("ledger.up")
        elif not dead:
            return
        self._files += self._books.spill.take()

    def _went_down(self, error: Exception) -> None:
        if self.up:
            self.up = False
            self._chunks = None
            self._next_s = time.monotonic() + _PROBE_S
            self._events.ledger_changed("down")
            logger.warning("ledger.down error=%s", type(error.__cause__ or error).__name__)

    def _replay(self) -> None:
        """Write one transaction's worth of the first file."""
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
            # From its first line again: what is written already stays as it is.
            self._went_down(error)
        except OSError as error:
            self._next_file()
            logger.error("ledger.spill_unreadable error=%s", error.strerror)  # noqa: TRY400

    def _next_file(self) -> None:
        self._files.pop(0)
        self._chunks = None

    def _read(self, lines: Sequence[str]) -> list[Keepable]:
        operations: list[Keepable] = []
        for line in lines:
            try:
                operations.append(from_line(line))
            except UnreadableLine:
                self._put_aside(line.rstrip("\n"))
        return operations

    def _rewrite(self, operations: Sequence[Keepable]) -> None:
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
        # The values may hold what users sent; the kinds of error do not.
        cause = error.orig if isinstance(error, exc.DBAPIError) else error
        kinds = type(operation).__name__, type(cause).__name__
        logger.error("ledger.rejected operation=%s error=%s", *kinds)
        if isinstance(operation, Open):
            return _unavailable()
        self._put_aside(self._line_of(operation) or repr(operation))
        return None

    def _line_of(self, operation: Keepable) -> str | None:
        try:
            return to_line(operation)
        except (TypeError, ValueError) as error:
            logger.error("ledger.row_lost error=%s", type(error).__name__)  # noqa: TRY400
            return None

    def _put_aside(self, line: str) -> None:
        self._events.ledger_rejected(1)
        try:
            self._books.spill.reject([line])
        except OSError as error:
            logger.error("ledger.row_lost error=%s", error.strerror)  # noqa: TRY400


def _blames_row(error: exc.DBAPIError) -> bool:
    """Tell an error of one row from one of the database: rights, a missing table, read-only."""
    if isinstance(error, exc.DataError | exc.IntegrityError):
        return True
    # Those of the driver itself carry no state: a value that it cannot send.
    return getattr(error.orig, "sqlstate", None) is None


def _unavailable() -> LedgerUnavailable:
    return LedgerUnavailable(
        "the call cannot be written into the ledger now, so it was not made",
        fix="retry later; see that the ledger's database runs",
        retry_after_s=5,
    )
