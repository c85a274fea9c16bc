"""The two databases that the ledger is tested on. Both are real."""

import json
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
from pydantic import SecretStr
from sqlalchemy import inspect, text

from serving.contracts.errors import LedgerUnavailable
from serving.ledger.database import Database, database_url
from serving.ledger.migrate import migrate

with warnings.catch_warnings():
    # It looks for a runtime folder at import and warns where there is none.
    warnings.simplefilter("ignore")
    from pgserver._commands import POSTGRES_BIN_PATH
    from pgserver.postgres_server import PostgresServer, get_server


POSTGRES_PROGRAMS = Path(POSTGRES_BIN_PATH)

MEMORY = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())  # noqa: S108
"""Where test databases live: in memory where possible, since a slow disk makes most of their time.

The tests kill processes, never the machine, so nothing depends on a real disk.
"""


@contextmanager
def postgres_server(name: str = "") -> Iterator[str]:
    """Yield the URL of a PostgreSQL server, removed when its last user has left.

    name: processes that give the same name share one server. Empty for a server of one's own.
    """
    # Short, because a Unix socket's path has at most 107 bytes.
    folder = MEMORY / f"pg-{name or uuid4().hex[:12]}"
    folder.mkdir(exist_ok=True)  # two processes may start at once
    server = get_server(folder, cleanup_mode="delete")
    try:
        yield server.get_uri()
    finally:
        remove_server(folder, server)


def remove_server(folder: Path, server: PostgresServer) -> None:
    """Give up a server; the last user ends it at once and removes its folder."""
    users = json.loads((folder / ".handle_pids.json").read_text(encoding="utf-8"))
    process_id = (folder / "postmaster.pid").read_text(encoding="ascii").split()[0]
    if users == [os.getpid()]:
        # An orderly stop writes a checkpoint of all databases, a minute on a busy machine.
        process = psutil.Process(int(process_id))
        process.send_signal(signal.SIGQUIT)
        process.wait(30)
    server.cleanup()


def make_tables(database: Database) -> None:
    """Bring a new database up to date. A SQLite file is a copy of one that was migrated before."""
    file = Path(database.engine.url.database or "")
    if database.is_sqlite and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_migrated_sqlite())
    elif database.is_sqlite or not inspect(database.engine).has_table("alembic_version"):
        migrate(database)


@cache
def _migrated_sqlite() -> bytes:
    # Ten migrations take 50 ms of processor time, in some thousand tests.
    with tempfile.TemporaryDirectory(prefix="ng-", dir=MEMORY) as folder:
        database = Database(database_url(None, Path(folder)))
        migrate(database)
        database.close()
        return Path(database.engine.url.database or "").read_bytes()


def fresh_postgres(server: str, name: str, *, has_tables: bool = False) -> SecretStr:
    """Return the URL of a new database on a server. has_tables: a copy of a migrated one."""
    template = f"TEMPLATE {_migrated_postgres(server)}" if has_tables else ""
    admin = Database(database_url(SecretStr(server), Path()))
    with admin.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        # On a busy machine these take longer than a statement of the ledger may.
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
        connection.execute(text(f"CREATE DATABASE {name} {template}"))
    admin.close()
    return SecretStr(server.replace("/postgres?", f"/{name}?"))


@cache
def _migrated_postgres(server: str) -> str:
    # The migrations take 50 ms of processor time here and 100 ms at the server. One a process:
    # a database that is copied must have no connection.
    name = f"migrated_{os.getpid()}"
    database = Database(database_url(fresh_postgres(server, name), Path()))
    migrate(database)
    database.close()
    return name


def insist(write: Callable[[], object]) -> None:
    """Write, again where SQLite let one of many writers wait for too long: nothing is written then.

    Threads that compute keep the one that has the lock from the interpreter.
    """
    for _ in range(60):
        with suppress(LedgerUnavailable):
            write()
            return
    pytest.fail("the database stays locked")
