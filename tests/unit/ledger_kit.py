"""A ledger to test with: fixed prices, noted events, and the database beneath it."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from sqlalchemy import Table, select, text

from serving.contracts.answer import Usage
from serving.contracts.deadline import Deadline
from serving.contracts.errors import UnpricedModel
from serving.contracts.exits import Attempt, Exit
from serving.contracts.ledger import CallEnd, Caller
from serving.contracts.ledger_settings import LedgerSettings
from serving.contracts.prices import TokenPrices
from serving.ledger.build import build_ledger
from serving.ledger.database import DEFAULT_TIMEOUTS, Database, Timeouts, database_url
from serving.ledger.ledger import DatabaseEntry, DatabaseLedger
from serving.ledger.pricing.cost import Price, Priced, replica_cost_usd, replica_us
from serving.ledger.schema import calls, exits, instances, spending

MODEL = "anthropic/claude-test"
LOCAL = "small-local"
CALLER = Caller("acme", "key1")
WORST = Decimal("0.5")
USAGE = Usage(uncached_input_tokens=1000, output_tokens=100)
COST = Decimal("0.0025")
"""Of USAGE at MODEL."""

QUICK = Timeouts(busy_s=0.2, statement_s=1.0, silence_s=1.5, probe_s=0.1, watch_s=0.1)
"""Bounds for tests that wait for them to pass."""

PROBING = Timeouts(busy_s=20.0, statement_s=20.0, silence_s=40.0, probe_s=0.1, watch_s=0.1)
"""Bounds for tests whose database refuses at once: no statement that is only slow passes them."""

_TOKENS = TokenPrices(*(Decimal(n) / 10**6 for n in ("1", "0.1", "1.25", "2", "15")))
_HOUR = Decimal("3.6")


class FixedPrices:
    """One price for every provider's model and one for local ones; `free/...` has none."""

    def frontier(
        self, model: str, usage: Usage, service_tier: str | None, at: datetime | None = None
    ) -> Priced:
        if model.startswith("free/"):
            raise UnpricedModel("no price")
        return Priced(_TOKENS.cost(usage), Price(model, "test", service_tier, 0, _TOKENS))

    def local(self, model: str, replica_s: float) -> Priced:
        price = Price(model, "test", None, 0, replica_hour_usd=_HOUR)
        return Priced(replica_cost_usd(_HOUR, replica_us(replica_s)), price)

    def reference(self, usage: Usage, at: datetime | None = None) -> Decimal:
        return _TOKENS.cost(usage) * 2


class Noted:
    """Implements LedgerEvents by counting."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.states: list[str] = []

    def ledger_written(self, rows: int) -> None:
        self.counts["written"] += rows

    def ledger_spilled(self, rows: int) -> None:
        self.counts["spilled"] += rows

    def ledger_rejected(self, rows: int) -> None:
        self.counts["rejected"] += rows

    def ledger_changed(self, state: str) -> None:
        self.states.append(state)

    def ledger_waited(self, seconds: float) -> None:
        self.counts["waits"] += 1

    def budget_refused(self, tenant: str) -> None:
        self.counts["refused"] += 1


def new_ledger(
    url: SecretStr | None,
    state: Path,
    events: Noted,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
    **settings: Any,
) -> DatabaseLedger:
    """Return a ledger that is not started."""
    wanted = LedgerSettings(url=url, **{"call_wait_s": 10.0, "commit_wait_s": 10.0, **settings})
    return build_ledger(wanted, state, FixedPrices(), events, Decimal(1), timeouts)


@asynccontextmanager
async def running(
    url: SecretStr | None,
    state: Path,
    events: Noted | None = None,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
    **settings: Any,
) -> AsyncIterator[DatabaseLedger]:
    """Yield a started ledger, and close it."""
    ledger = new_ledger(url, state, events or Noted(), timeouts, **settings)
    await ledger.start()
    try:
        yield ledger
    finally:
        await ledger.aclose()


def entry_of(
    ledger: DatabaseLedger, caller: Caller = CALLER, request_id: str = "r"
) -> DatabaseEntry:
    return ledger.entry(caller, request_id, "chat", None, 0)


def in_time(seconds: float = 30.0) -> Deadline:
    return Deadline.after(seconds)


def ended(usage: Usage | None = USAGE, source: Any = "reported", outcome: str = "ok") -> CallEnd:
    return CallEnd(outcome, usage, source, 0.25)


def left(**changes: Any) -> Exit:
    """Return an exit that a provider answered; what is named differs."""
    fields: dict[str, Any] = {
        "request_id": "r", "endpoint": "chat", "task": None, "route": "frontier",
        "reason": "out_of_scope", "model": MODEL, "usage": USAGE, "elapsed_s": 0.5,
    }  # fmt: skip
    return Exit(**{**fields, **changes})


def left_locally(**changes: Any) -> Exit:
    return left(route="local", reason="narrow", model=LOCAL, replica_s=0.001, **changes)


def set_aside(replica_s: float | None = 0.002) -> Attempt:
    return Attempt(LOCAL, "below_threshold", 0.1, USAGE, replica_s)


class Reader:
    """Reads a ledger's database from outside."""

    def __init__(self, url: SecretStr | None, state: Path) -> None:
        self.database = Database(database_url(url, state))

    def rows(self, table: Table) -> list[dict[str, Any]]:
        with self.database.read() as connection:
            return [row._asdict() for row in connection.execute(select(table))]

    def sums(self) -> dict[str, tuple[Decimal, Decimal]]:
        """Return spent and held by period; they must agree with the calls."""
        found = {
            f"{row['tenant']}/{row['period']}/{row['start']}": (row["spent_usd"], row["held_usd"])
            for row in self.rows(spending)
        }
        expected: dict[str, tuple[Decimal, Decimal]] = {}
        for call in self.rows(calls):
            if call["kind"] != "frontier":
                continue
            for period in ("day", "month"):
                key = f"{call['tenant']}/{period}/{call[period]}"
                spent, held = expected.get(key, (Decimal(0), Decimal(0)))
                expected[key] = (spent + (call["cost_usd"] or 0), held + call["held_usd"])
        moved = {key: sums for key, sums in found.items() if sums != (0, 0)}
        assert moved == {key: sums for key, sums in expected.items() if sums != (0, 0)}
        return found

    def check(self) -> None:
        """Assert that every total is the sum of its rows."""
        self.sums()
        recorded = self.rows(calls)
        for row in self.rows(exits):
            own = [call for call in recorded if call["exit_id"] == row["id"]]
            if row["state"] != "open":
                assert row["cost_usd"] == sum((call["cost_usd"] or 0) for call in own)
                assert row["held_usd"] == sum(call["held_usd"] for call in own)
        known = {row["id"] for row in self.rows(exits)}
        assert all(call["exit_id"] in known for call in recorded)

    def living(self) -> list[dict[str, Any]]:
        return [row for row in self.rows(instances) if row["ended_at"] is None]

    def waiting(self) -> int:
        """Return how many connections to this database of PostgreSQL wait for a lock."""
        query = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        with self.database.read() as connection:
            return int(connection.execute(text(query)).scalar_one())

    def close(self) -> None:
        self.database.close()
