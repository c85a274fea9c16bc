"""Brings the ledger's database to this version's tables."""

import logging
from pathlib import Path
from typing import Any

from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, exc, inspect, text

from serving.contracts.errors import LedgerUnusable
from serving.ledger.database import Database

_FOLDER = Path(__file__).parent / "migrations"
_VERSION_TABLE = "alembic_version"
_LOCK = 0x6E6172726F776761
"""PostgreSQL's advisory lock of whoever migrates: `narrowga` in ASCII."""

_MIGRATION_MS = 60_000


def migrate(database: Database, to: str = "head") -> None:
    """Create the tables, or bring those of an earlier version up to date, in one transaction.

    Of several processes that start at once, one does it and the others find it done. Blocking.
    to: a revision, for tests. Raises LedgerUnavailable where the database is away, and
    LedgerUnusable where it is a newer version's or holds something else.
    """
    # Its lines about every revision would go to wherever the root logger writes.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        with database.begin() as connection:
            if not database.is_sqlite:
                _lock(connection)
            _upgrade(connection, to)
    except exc.DatabaseError as error:
        raise LedgerUnusable(
            f"the ledger's database cannot be used: {type(error.orig).__name__}",
            field="ledger.url",
            fix="see that it is a database, and that its user may create and change tables",
        ) from error


def _lock(connection: Connection) -> None:
    # The transaction's end gives it back, also where the process dies.
    for limit in ("statement_timeout", "lock_timeout"):
        connection.execute(text(f"SET LOCAL {limit} = {_MIGRATION_MS}"))
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def _upgrade(connection: Connection, to: str) -> None:
    _refuse_foreign(connection)
    script = ScriptDirectory(str(_FOLDER))

    def steps(revision: Any, _: MigrationContext) -> Any:
        return script._upgrade_revs(to, revision)

    context = MigrationContext.configure(
        connection, opts={"fn": steps, "version_table": _VERSION_TABLE}
    )
    try:
        if context.get_current_revision() == script.get_current_head():
            return
        with Operations.context(context):
            context.run_migrations()
    except CommandError as error:
        raise LedgerUnusable(
            f"the ledger's database is of version {context.get_current_revision()!r}, "
            "which this version does not know",
            field="ledger.url",
            fix="run the version that wrote it or a later one",
        ) from error


def _refuse_foreign(connection: Connection) -> None:
    tables = inspect(connection).get_table_names()
    if tables and _VERSION_TABLE not in tables:
        raise LedgerUnusable(
            f"the ledger's database holds something else: table {sorted(tables)[0]!r}",
            field="ledger.url",
            fix="give the ledger a database of its own",
        )
