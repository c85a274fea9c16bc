"""Where the ledger is, and what its types keep exactly."""

import asyncio
import sqlite3
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import func, insert, select, text
from sqlalchemy.dialects import sqlite

from serving.contracts.errors import InvalidSettings, LedgerUnavailable, LedgerUnusable
from serving.ledger.database import Database, database_url
from serving.ledger.instances import database_now
from serving.ledger.ledger import DatabaseLedger
from serving.ledger.migrate import migrate
from serving.ledger.reports.snapshot import snapshot
from serving.ledger.schema import Usd, UtcTime, metadata, spending

from .database import fresh_postgres
from .ledger_kit import (
    COST,
    MODEL,
    PROBING,
    WORST,
    Reader,
    ended,
    entry_of,
    in_time,
    left,
    running,
)
from .patience import GUARD_S
from .pooler import pooled

DIALECT = sqlite.dialect()  # type: ignore[no-untyped-call]


@given(st.integers(-(2**62), 2**62))
def test_money_comes_back_as_it_went(picodollars: int) -> None:
    amount = Decimal(picodollars) / 10**12
    stored = Usd().process_bind_param(amount, DIALECT)
    assert Usd().process_result_value(stored, DIALECT) == amount


def test_money_finer_than_the_unit_is_refused_rather_than_rounded() -> None:
    with pytest.raises(ValueError, match="not a whole number"):
        Usd().process_bind_param(Decimal("0.0000000000001"), DIALECT)


@given(st.datetimes(timezones=st.just(UTC)))
def test_moments_come_back_as_they_went(moment: datetime) -> None:
    stored = UtcTime().process_bind_param(moment, DIALECT)
    assert UtcTime().process_result_value(stored, DIALECT) == moment


def test_a_moment_without_a_zone_is_refused() -> None:
    with pytest.raises(TypeError):
        UtcTime().process_bind_param(datetime(2026, 1, 1), DIALECT)


@pytest.mark.parametrize("url", ["mysql://a/b", "nonsense", "sqlite:///x.db"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        database_url(SecretStr(url), Path())
    assert caught.value.field == "ledger.url"


def test_sums_are_exact_in_both_databases(ledger_url: SecretStr | None, state: Path) -> None:
    database = Database(database_url(ledger_url, state))
    amounts = [Decimal(f"{n}.{n:012d}") for n in range(1, 50)]
    with database.begin() as connection:
        metadata.create_all(connection)
        for index, amount in enumerate(amounts):
            row = {"tenant": "a", "period": "day", "start": str(index)}
            money = {"spent_usd": amount, "held_usd": Decimal(0)}
            connection.execute(insert(spending), {**row, **money})
    with database.read() as connection:
        assert connection.execute(select(func.sum(spending.c.spent_usd))).scalar() == sum(amounts)
    database.close()


def test_a_connection_that_is_in_use_at_the_close_is_closed_when_it_is_returned(
    ledger_url: SecretStr | None, state: Path
) -> None:
    database = Database(database_url(ledger_url, state))
    with database.read() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        database.close()
        assert connection.exec_driver_sql("SELECT 1").scalar_one() == 1
    if ledger_url is None:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            driver.execute("SELECT 1")
    else:
        assert driver.closed


def test_an_absent_server_is_unavailable_and_its_url_is_not_told(tmp_path: Path) -> None:
    url = SecretStr(f"postgresql://someone:secret@/x?host={tmp_path}")
    database = Database(database_url(url, tmp_path))
    with pytest.raises(LedgerUnavailable) as caught, database.begin():
        pass
    assert "secret" not in str(caught.value)
    assert "someone" not in str(caught.value)


@pytest.mark.parametrize(("is_synced", "level"), [(True, 2), (False, 1)])
def test_only_a_synced_database_waits_for_the_disk(
    tmp_path: Path, is_synced: bool, level: int
) -> None:
    database = Database(database_url(None, tmp_path), is_synced=is_synced)
    with database.begin() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == level
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
    database.close()


ODD_SESSIONS = (
    "default_transaction_isolation = 'serializable'",
    "default_transaction_isolation = 'repeatable read'",
    "datestyle = 'SQL, DMY'",
    "timezone = 'America/New_York'",
)


@pytest.mark.parametrize("setting", ODD_SESSIONS)
async def test_the_defaults_of_a_database_do_not_matter(
    postgres: str, tmp_path: Path, setting: str
) -> None:
    url = fresh_postgres(postgres, f"t{uuid4().hex}", has_tables=True)
    database = Database(database_url(url, tmp_path))
    name = database.engine.url.database
    with database.begin() as connection:
        connection.execute(text(f"ALTER DATABASE {name} SET {setting}"))
    database.engine.dispose()

    async def pay(ledger: DatabaseLedger) -> None:
        entry = entry_of(ledger)
        call = await entry.open_call(MODEL, WORST, in_time(GUARD_S))
        call.close(ended())
        entry.close(left())

    async with (
        running(url, tmp_path / "one", timeouts=PROBING, call_wait_s=GUARD_S) as one,
        running(url, tmp_path / "two", timeouts=PROBING, call_wait_s=GUARD_S) as two,
    ):
        for _ in range(20):
            # Both charge one account at once: one of them waits for the other's lock.
            await asyncio.gather(*(pay(ledger) for ledger in (one, two) for _ in range(3)))
    with database.begin() as connection:
        now = database_now(connection)
    assert now.utcoffset() == timedelta(0)
    reader = Reader(url, tmp_path)
    assert sum(spent for spent, _ in reader.sums().values()) == 2 * 120 * COST
    reader.check()
    reader.close()
    database.close()


def test_options_of_the_url_are_kept(postgres: str, tmp_path: Path) -> None:
    url = fresh_postgres(postgres, f"t{uuid4().hex}").get_secret_value()
    database = Database(database_url(SecretStr(url), tmp_path))
    with database.begin() as connection:
        connection.execute(text("CREATE SCHEMA ledger"))
    database.close()
    named = f"{url}&options=-csearch_path%3Dledger%20-cstatement_timeout%3D0"
    database = Database(database_url(SecretStr(named), tmp_path))
    migrate(database)
    with database.begin() as connection:
        schema = connection.execute(
            text("SELECT schemaname FROM pg_tables WHERE tablename = 'exits'")
        ).scalar_one()
        # The ledger's own bounds hold nevertheless.
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar_one() == "2s"
    assert schema == "ledger"
    database.close()


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_cannot_hold_every_text_is_refused(
    postgres: str, tmp_path: Path, encoding: str
) -> None:
    name = f"t{uuid4().hex}"
    admin = Database(database_url(SecretStr(postgres), tmp_path))
    with admin.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(
            text(
                f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' "
                "TEMPLATE template0"
            )
        )
    admin.close()
    url = SecretStr(postgres.replace("/postgres?", f"/{name}?"))
    database = Database(database_url(url, tmp_path))
    with pytest.raises(LedgerUnusable, match=f"encoding {encoding}") as caught:
        migrate(database)
    assert caught.value.field == "ledger.url"
    database.close()


async def test_a_transaction_pooler_may_stand_before_the_server(
    postgres: str, tmp_path: Path
) -> None:
    url = fresh_postgres(postgres, f"t{uuid4().hex}", has_tables=True).get_secret_value()
    database = Database(database_url(SecretStr(url), tmp_path))
    with database.begin() as connection:
        name = database.engine.url.database
        for setting in ODD_SESSIONS[1:]:
            connection.execute(text(f"ALTER DATABASE {name} SET {setting}"))
    database.close()

    async def pay(ledger: DatabaseLedger) -> None:
        entry = entry_of(ledger)
        call = await entry.open_call(MODEL, WORST, in_time(GUARD_S))
        call.close(ended())
        entry.close(left())

    # Each statement is run more often than the driver needs to prepare it.
    with pooled(url) as address:
        through = SecretStr(address)
        async with (
            running(through, tmp_path / "one", timeouts=PROBING, call_wait_s=GUARD_S) as one,
            running(through, tmp_path / "two", timeouts=PROBING, call_wait_s=GUARD_S) as two,
        ):
            for _ in range(20):
                await asyncio.gather(*(pay(ledger) for ledger in (one, two) for _ in range(3)))
        database = Database(database_url(through, tmp_path))
        with database.read() as connection:
            assert connection.exec_driver_sql("SHOW statement_timeout").scalar_one() == "2s"
            assert database_now(connection).utcoffset() == timedelta(0)
        with snapshot(database, 1.0) as connection:
            assert connection.exec_driver_sql("SHOW statement_timeout").scalar_one() == "1s"
        database.close()
        reader = Reader(through, tmp_path)
        assert sum(spent for spent, _ in reader.sums().values()) == 2 * 120 * COST
        reader.check()
        reader.close()


def test_a_pooler_that_refuses_the_session_settings_is_named(postgres: str, tmp_path: Path) -> None:
    url = fresh_postgres(postgres, f"t{uuid4().hex}").get_secret_value()
    with pooled(url, ignores_options=False) as address:
        database = Database(database_url(SecretStr(address), tmp_path))
        with pytest.raises(LedgerUnusable, match="refuses the parameter 'options'"):
            migrate(database)
        database.close()


@pytest.mark.parametrize("right", ["INSERT", "UPDATE", "SELECT"])
async def test_a_right_that_is_missing_is_named(
    postgres: str, tmp_path: Path, right: str, caplog: pytest.LogCaptureFixture
) -> None:
    admin, role = _with_role(postgres, tmp_path, has_tables=True)
    async with running(role, tmp_path / "one", timeouts=PROBING, call_wait_s=GUARD_S) as ledger:
        with admin.begin() as connection:
            connection.execute(text(f"REVOKE {right} ON calls FROM {_name_of(role)}"))
        entry = entry_of(ledger)

        async def pay_until_refused() -> None:
            while True:
                call = await entry.open_call(MODEL, WORST, in_time(GUARD_S))
                call.close(ended())  # the first statement that needs UPDATE

        with pytest.raises(LedgerUnavailable):
            await asyncio.wait_for(pay_until_refused(), GUARD_S)
        entry.close(left())
    lines = [record.getMessage() for record in caplog.records]
    assert any(f"right='{right} on table calls'" in line for line in lines), lines
    assert "ledger.down error=InsufficientPrivilege" in lines
    admin.close()


def test_a_role_that_may_not_create_tables_is_told_so(postgres: str, tmp_path: Path) -> None:
    admin, role = _with_role(postgres, tmp_path, has_tables=False)
    database = Database(database_url(role, tmp_path))
    with pytest.raises(LedgerUnusable, match="CREATE on schema public") as caught:
        migrate(database)
    assert "CREATE on schema public" in (caught.value.fix or "")
    database.close()
    admin.close()


def _name_of(url: SecretStr) -> str:
    return database_url(url, Path()).username or ""


def _with_role(postgres: str, folder: Path, *, has_tables: bool) -> tuple[Database, SecretStr]:
    """Return a new database as its owner, and its URL as a role that may only use the tables."""
    url = fresh_postgres(postgres, f"t{uuid4().hex}", has_tables=has_tables)
    admin, name = Database(database_url(url, folder)), f"r{uuid4().hex}"
    with admin.begin() as connection:
        connection.execute(text(f"CREATE ROLE {name} LOGIN"))
        connection.execute(text("REVOKE CREATE ON SCHEMA public FROM PUBLIC"))
        rights = "SELECT, INSERT, UPDATE, DELETE"
        connection.execute(text(f"GRANT {rights} ON ALL TABLES IN SCHEMA public TO {name}"))
    role = database_url(url, folder).set(username=name)
    return admin, SecretStr(role.render_as_string(hide_password=False))
