"""Brings the ledger's database to this version's tables."""

import logging
import threading
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, exc, inspect, text

from serving.contracts.errors import LedgerUnavailable, LedgerUnusable
from serving.ledger.database import Database, refuse_other_encoding

FOLDER = Path(__file__).parent / "migrations"
_VERSION_TABLE = "alembic_version"
_LOCK = 0x6E6172726F776761
"""Key of the PostgreSQL advisory lock that a migrating process holds: `narrowga` in ASCII."""

_MIGRATION_MS = 60_000

_upgrading = threading.Lock()


def migrate(database: Database, to: str = "head") -> None:
    """Create the tables, or bring those of an earlier version up to date, in one transaction.

    Of several processes that start at once, one migrates while the others wait for it. Blocking.
    to: a revision, for tests. Raises LedgerUnavailable where the database is unreachable, and
    LedgerUnusable where it belongs to a newer version or to another program, or has another
    encoding than UTF-8.
    """
    # Alembic would log every revision to wherever the root logger writes.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        with database.begin() as connection:
            if not database.is_sqlite:
                refuse_other_encoding(connection)
                _lock(connection)
            _upgrade(connection, to)
    except LedgerUnavailable as error:
        if not isinstance(error.__cause__, exc.ProgrammingError):
            raise
        # A missing right: waiting does not help.
        raise LedgerUnusable(error.message, field="ledger.url", fix=error.fix) from error
    except exc.DatabaseError as error:
        raise LedgerUnusable(
            f"the ledger's database cannot be used: {type(error.orig).__name__}",
            field="ledger.url",
            fix="check that it is a database whose tables its user may create and change",
        ) from error


def refuse_newer(connection: Connection) -> None:
    """Raise LedgerUnusable for a ledger that a later version has written."""
    version = _version(connection)
    if version is not None and version not in _revisions():
        raise _newer(version)


def _lock(connection: Connection) -> None:
    # The end of the transaction releases the lock, also where the process is killed.
    for limit in ("statement_timeout", "lock_timeout"):
        connection.execute(text(f"SET LOCAL {limit} = {_MIGRATION_MS}"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def _upgrade(connection: Connection, to: str) -> None:
    _refuse_foreign(connection)
    config = alembic_config()
    version = _version(connection)
    if version is not None and version == ScriptDirectory.from_config(config).get_current_head():
        return
    config.attributes["connection"] = connection
    try:
        # Alembic keeps the environment of a running command in a global variable.
        with _upgrading:
            command.upgrade(config, to)
    except CommandError as error:
        raise _newer(version) from error


def alembic_config() -> Config:
    """Return Alembic's configuration of the ledger's revisions."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    return config


def _revisions() -> set[str]:
    return {item.revision for item in ScriptDirectory(str(FOLDER)).walk_revisions()}


def _version(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _newer(version: str | None) -> LedgerUnusable:
    return LedgerUnusable(
        f"the ledger's database has version {version!r}, which this program does not know",
        field="ledger.url",
        fix="run the version that wrote it, or a later one",
    )


def _refuse_foreign(connection: Connection) -> None:
    tables = inspect(connection).get_table_names()
    if tables and _VERSION_TABLE not in tables:
        raise LedgerUnusable(
            f"the ledger's database belongs to another program: table {sorted(tables)[0]!r}",
            field="ledger.url",
            fix="give the ledger a database of its own",
        )
