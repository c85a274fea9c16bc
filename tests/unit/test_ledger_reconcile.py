"""Reconciliation: generated ledgers agree, and no changed row goes unnoticed."""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from pydantic import SecretStr
from sqlalchemy import Table, delete, insert, select, update

from serving.ledger.database import Database, database_url
from serving.ledger.reports.reconcile import reconcile
from serving.ledger.schema import calls, exits, prices, spending

from .ledger_rows import LedgerRows, drawn_rows, frontier, local, unpaid

CENT = Decimal("0.01")
PICO = Decimal("1e-12")


@pytest.fixture
def database(ledger_url: SecretStr | None, state: Path) -> Iterator[Database]:
    found = Database(database_url(ledger_url, state))
    yield found
    found.close()


@pytest.fixture
def honest(database: Database) -> Database:
    made = LedgerRows()
    made.exit(0, [frontier(), local(1_234_567)])  # calls 0 and 1
    made.exit(1, [unpaid("unknown", CENT, "cancelled")], outcome="client_closed")
    made.exit(2, [unpaid("open", CENT)], state="open", outcome=None)
    made.exit(3, [frontier(tokens=(0, 0, 0, 0, 0, 7))], tenant="b")
    made.write(database)
    return database


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(drawn=drawn_rows())
def test_rows_that_agree_have_no_discrepancies(database: Database, drawn: LedgerRows) -> None:
    drawn.write(database)
    assert reconcile(database) == []
    assert reconcile(database, "a") == []


def change(database: Database, table: Table, key: str, **columns: Any) -> None:
    with database.begin() as connection:
        done = connection.execute(update(table).where(table.c.id == key).values(**columns))
        assert done.rowcount == 1


@pytest.mark.parametrize(
    ("table", "key", "columns", "kinds"),
    [
        (exits, "exit-0", {"cost_usd": PICO}, {"exit_cost"}),
        (exits, "exit-0", {"cost_usd": None}, {"exit_cost"}),
        (exits, "exit-1", {"held_usd": Decimal(0)}, {"exit_held"}),
        (exits, "exit-3", {"tenant": "a"}, {"call_exit"}),
        (exits, "exit-0", {"uncached_input_tokens": -1}, {"negative"}),
        (exits, "exit-0", {"reference_usd": -CENT}, {"negative"}),
        (calls, "call-0", {"cost_usd": PICO}, {"call_cost", "exit_cost", "spending"}),
        (calls, "call-0", {"output_tokens": 11}, {"call_cost"}),
        (calls, "call-0", {"cache_read_tokens": -1}, {"call_cost", "negative"}),
        (calls, "call-0", {"price_id": None}, {"call_cost"}),
        (calls, "call-0", {"price_id": "price-local"}, {"call_cost"}),
        (calls, "call-0", {"cost_usd": None}, {"call_state", "exit_cost", "spending"}),
        (calls, "call-0", {"held_usd": CENT}, {"call_state", "exit_held", "spending"}),
        (calls, "call-0", {"day": "2026-11-02"}, {"spending"}),
        (calls, "call-0", {"month": "2026-12-01"}, {"spending"}),
        (calls, "call-0", {"exit_id": "nowhere"}, {"call_exit", "exit_cost"}),
        (calls, "call-0", {"tenant": "b"}, {"call_exit", "spending"}),
        (calls, "call-0", {"kind": "local"}, {"call_cost", "spending"}),
        (calls, "call-1", {"replica_us": 1_234_568}, {"call_cost"}),
        (calls, "call-1", {"price_id": None}, {"call_cost"}),
        (calls, "call-1", {"replica_us": -5}, {"call_cost", "negative"}),
        (calls, "call-2", {"cost_usd": Decimal(0)}, {"call_state"}),
        (calls, "call-2", {"state": "closed"}, {"call_state"}),
        (calls, "call-3", {"held_usd": Decimal(0)}, {"spending"}),
        (calls, "call-4", {"reasoning_tokens": 8}, {"call_cost"}),
        (prices, "price-anthropic/sonnet-standard", {"output_usd": CENT}, {"call_cost"}),
        (prices, "price-local", {"replica_hour_usd": CENT}, {"call_cost"}),
    ],
)
def test_a_row_that_was_changed_is_found(
    honest: Database, table: Table, key: str, columns: dict[str, Any], kinds: set[str]
) -> None:
    assert reconcile(honest) == []
    change(honest, table, key, **columns)
    assert {item.kind for item in reconcile(honest)} == kinds


@pytest.mark.parametrize("column", ["spent_usd", "held_usd"])
def test_spending_that_was_changed_or_lost_is_found(honest: Database, column: str) -> None:
    with honest.begin() as connection:
        row = connection.execute(select(spending).where(spending.c.tenant == "a")).first()
        assert row is not None
        mine = (spending.c.tenant == "a") & (spending.c.period == row.period)
        value = getattr(row, column)
        connection.execute(update(spending).where(mine).values({column: value + CENT}))
    (found,) = reconcile(honest)
    assert found.kind == "spending"
    assert found.row == f"spending.{column} a {row.period} 2026-11-01"
    assert Decimal(found.stated or 0) - Decimal(found.found or 0) == CENT
    with honest.begin() as connection:
        connection.execute(delete(spending).where(mine))
    assert {item.row for item in reconcile(honest)} == {
        f"spending.{name}_usd a {row.period} 2026-11-01" for name in ("spent", "held")
    }


def test_spending_that_no_call_explains_is_found(honest: Database) -> None:
    with honest.begin() as connection:
        row = {"tenant": "c", "period": "day", "start": "2020-01-01"}
        connection.execute(insert(spending), {**row, "spent_usd": -CENT, "held_usd": Decimal(0)})
    assert {item.kind for item in reconcile(honest)} == {"spending", "negative"}


def test_a_lost_call_is_found(honest: Database) -> None:
    with honest.begin() as connection:
        connection.execute(delete(calls).where(calls.c.id == "call-0"))
    assert {item.kind for item in reconcile(honest)} == {"exit_cost", "spending"}


def test_a_tenant_sees_only_its_own_rows(honest: Database) -> None:
    change(honest, calls, "call-0", cost_usd=PICO)
    assert reconcile(honest, "b") == []
    assert {item.kind for item in reconcile(honest, "a")} == {"call_cost", "exit_cost", "spending"}


def test_money_is_told_to_the_last_digit(honest: Database) -> None:
    change(honest, exits, "exit-3", cost_usd=PICO)
    (found,) = reconcile(honest)
    assert found.row == "exits.cost_usd exit-3"
    assert found.stated == "0.000000000001"
    assert Decimal(found.found or 0) == Decimal("0.00007")
