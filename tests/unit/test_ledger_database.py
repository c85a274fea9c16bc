"""Where the ledger is, and what its types keep exactly."""

import sqlite3
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from sqlalchemy import func, insert, select
from sqlalchemy.dialects import sqlite

from serving.contracts.errors import InvalidSettings, LedgerUnavailable
from serving.ledger.database import Database, database_url
from serving.ledger.schema import Usd, UtcTime, metadata, spending

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
