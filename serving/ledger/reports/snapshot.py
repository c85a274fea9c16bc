"""Reads the ledger as of one moment while other processes write."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection

from serving.ledger.database import Database

_SQLITE_STEPS = 100_000
"""Virtual machine instructions between two checks of the clock; about a millisecond."""


@contextmanager
def snapshot(database: Database, timeout_s: float) -> Iterator[Connection]:
    """Yield a read-only connection whose queries all see the same moment. Blocking.

    Raises LedgerUnavailable, also after timeout_s: for the whole block with SQLite, for each
    statement with PostgreSQL.
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
    # By default every statement sees its own moment, and sums of two queries would not agree.
    connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    connection.exec_driver_sql(f"SET LOCAL statement_timeout = {max(1, round(timeout_s * 1000))}")
    yield
