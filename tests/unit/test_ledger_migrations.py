"""Every earlier version's tables come up to date with their rows; other databases are refused."""

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic import SecretStr
from sqlalchemy import Connection, MetaData, Table, inspect, text

import serving.batch.schema
import serving.cache.schema  # its tables join the ledger's
import serving.evidence.heads.schema  # noqa: F401
from serving.contracts.errors import LedgerUnavailable, LedgerUnusable
from serving.ledger import migrate as module
from serving.ledger.database import Database, database_url
from serving.ledger.migrate import migrate
from serving.ledger.schema import metadata

SCRIPT = ScriptDirectory(str(module.FOLDER))
REVISIONS = [revision.revision for revision in reversed(list(SCRIPT.walk_revisions()))]
ROWS: dict[str, dict[str, Any]] = {
    "prices": {"id": "p", "model": "a/b", "source": "test", "over_input_tokens": 0},
    "exits": {
        "id": "e", "request_id": "r", "input_index": 0, "tenant": "t", "endpoint": "chat",
        "state": "closed", "escalated": False, "cached": False, "cost_usd": 7, "opened_at": 1,
        "instance": "i",
    },
    "calls": {
        "id": "c", "exit_id": "e", "tenant": "t", "kind": "frontier", "model": "a/b",
        "state": "closed", "price_id": "p", "cost_usd": 7, "held_usd": 0, "day": "2026-02-03",
        "month": "2026-02-01", "opened_at": 1, "instance": "i",
    },
    "spending": {
        "tenant": "u", "period": "day", "start": "2026-02-03", "spent_usd": 1, "held_usd": 2,
    },
    "instances": {
        "id": "i", "host": "h", "pid": 1, "process_started_at": 1, "started_at": 1, "seen_at": 1,
        "replica_hour_usd": 0,
    },
    "tenants": {"name": "t", "created_at": 1},
    "api_keys": {
        "id": "k", "tenant": "t", "admin": False, "label": "l", "secret_sha256": "s",
        "created_at": 1,
    },
}  # fmt: skip


@pytest.fixture
def ledger_url(empty_ledger_url: SecretStr | None) -> SecretStr | None:
    return empty_ledger_url


@pytest.fixture
def database(ledger_url: SecretStr | None, state: Path) -> Any:
    found = Database(database_url(ledger_url, state))
    yield found
    found.close()


def version(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def test_the_migrated_tables_are_those_of_the_schema(database: Database) -> None:
    migrate(database)
    with database.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert version(connection) == REVISIONS[-1]


def test_a_column_that_no_revision_brings_is_noticed(database: Database) -> None:
    migrate(database)
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE exits ADD COLUMN stray TEXT"))
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) != []


@pytest.mark.parametrize("start", REVISIONS)
def test_rows_of_every_version_survive(database: Database, start: str) -> None:
    migrate(database, start)
    with database.begin() as connection:
        tables = [t for t in ROWS if t in inspect(connection).get_table_names()]
        for name in tables:
            table = Table(name, MetaData(), autoload_with=connection)
            connection.execute(table.insert(), ROWS[name])
    migrate(database)
    with database.begin() as connection:
        assert version(connection) == REVISIONS[-1]
        for name in tables:
            table = Table(name, MetaData(), autoload_with=connection)
            rows = [row._asdict() for row in connection.execute(table.select())]
            assert {**rows[0], **ROWS[name]} in rows


def test_spending_of_earlier_versions_counts(database: Database) -> None:
    migrate(database, "0001_books")
    with database.begin() as connection:
        for name in ("prices", "exits", "calls"):
            table = Table(name, MetaData(), autoload_with=connection)
            connection.execute(table.insert(), ROWS[name])
    migrate(database)
    with database.begin() as connection:
        rows = connection.execute(text("SELECT * FROM spending ORDER BY period")).all()
    assert [tuple(row) for row in rows] == [
        ("t", "day", "2026-02-03", 7, 0),
        ("t", "month", "2026-02-01", 7, 0),
    ]


def test_every_revision_follows_another() -> None:
    assert SCRIPT.get_heads() == [REVISIONS[-1]]
    assert SCRIPT.get_bases() == [REVISIONS[0]]


def test_processes_that_start_at_once_do_not_meet(
    database: Database, ledger_url: SecretStr | None, state: Path
) -> None:
    failures: list[LedgerUnusable] = []

    def start() -> None:
        own = Database(database_url(ledger_url, state))
        try:
            migrate(own)
        except LedgerUnavailable:
            # SQLite's busy time-out is 1 s: a later try finds it done.
            migrate(own)
        except LedgerUnusable as error:
            failures.append(error)
        finally:
            own.close()

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with database.begin() as connection:
        assert version(connection) == REVISIONS[-1]


def test_a_newer_version_is_refused_and_unchanged(database: Database) -> None:
    migrate(database)
    with database.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999_later'"))
    with pytest.raises(LedgerUnusable, match="9999_later"):
        migrate(database)
    with database.begin() as connection:
        row = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
    assert row == "9999_later"


def test_another_programs_tables_are_refused(database: Database) -> None:
    with database.begin() as connection:
        connection.execute(text("CREATE TABLE theirs (id INTEGER)"))
    with pytest.raises(LedgerUnusable, match="theirs"):
        migrate(database)


def test_a_file_that_is_not_a_database_is_refused(state: Path) -> None:
    (state / "ledger").mkdir(parents=True)
    (state / "ledger" / "ledger.db").write_bytes(b"this is text and no database" * 100)
    database = Database(database_url(None, state))
    with pytest.raises(LedgerUnusable):
        migrate(database)
    database.close()


def test_an_absent_server_is_unavailable(tmp_path: Path) -> None:
    url = SecretStr(f"postgresql://someone@/x?host={tmp_path}")
    with pytest.raises(LedgerUnavailable):
        migrate(Database(database_url(url, tmp_path)))


def test_migrations_log_nothing(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        migrate(database)
    assert caplog.records == []
