"""One moment of the books, read for as long as it takes while others write."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from serving.ledger.database import Database

_SQLITE_STEPS = 100_000
"""Virtual machine instructions between two looks at the clock; about a millisecond."""


@contextmanager
def snapshot(database: Database, timeout_s: float) -> Iterator[Connection]:
    """Yield a connection whose every query sees the same moment, and which cannot write.

    Blocking. Raises LedgerUnavailable, also where it takes longer than timeout_s: in all with
    SQLite, a statement with PostgreSQL.
    """
    bounded = _sqlite if database.is_sqlite else _postgres
    with database.read() as connection, bounded(connection, timeout_s):
        yield connection


@contextmanager
def _sqlite(connection: Connection, timeout_s: float) -> Iterator[None]:
    # The transaction itself is the snapshot.
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    end = time.monotonic() + timeout_s
    raw.set_progress_handler(lambda: time.monotonic() > end, _SQLITE_STEPS)
    try:
        yield
    finally:
        raw.set_progress_handler(None, 0)


@contextmanager
def _postgres(connection: Connection, timeout_s: float) -> Iterator[None]:
    # By default every statement sees another moment, and sums taken apart would not agree.
    connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {max(1, round(timeout_s * 1000))}")
    yield
