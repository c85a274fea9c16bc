"""Every total is the sum of its rows, whatever is done in whatever order and however often."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pydantic import SecretStr
from sqlalchemy import delete, event, insert, update

from serving.contracts.errors import BudgetExceeded
from serving.ledger.accounts import StaleRoom
from serving.ledger.instances import Instance, beat, end
from serving.ledger.operations import (
    Close,
    Open,
    Operation,
    RecordExit,
    from_line,
    to_line,
    withdrawal,
)
from serving.ledger.pricing.cost import Price, Priced
from serving.ledger.reports.reconcile import reconcile
from serving.ledger.rows import ExitHeader, periods_at
from serving.ledger.schema import calls, exits, instances, metadata, spending, tenants
from serving.ledger.store import Store

from .database import make_tables
from .ledger_kit import MODEL, USAGE, FixedPrices, Reader
from .ledger_operations import AT, closed, departed, header, opened
from .patience import GUARD_S

TENANTS = ("a", "b")
LIMIT = Decimal("1.5")
ZONES = ("UTC", "Pacific/Auckland", "America/New_York", "Asia/Kathmandu", "Pacific/Kiritimati")


@pytest.fixture
def reader(ledger_url: SecretStr | None, state: Path) -> Iterator[Reader]:
    found = Reader(ledger_url, state)
    make_tables(found.database)
    yield found
    found.check()
    found.close()


def apply(reader: Reader, *operations: Operation, store: Store | None = None) -> list[Any]:
    """Apply in a transaction, again where others spent what was left, as the worker does."""
    store = store or Store()
    try:
        with reader.database.begin() as connection:
            return list(store.apply(connection, operations))
    except StaleRoom:
        store.forget()
        return apply(reader, *operations, store=store)


def limit(reader: Reader, **limits: Decimal) -> None:
    with reader.database.begin() as connection:
        connection.execute(insert(tenants), {"name": "a", **limits, "created_at": AT})


@contextmanager
def statements(reader: Reader) -> Iterator[list[str]]:
    """Yield a list of the statements that the block executes; those on accounts as `account`."""
    found: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        verb = statement.split()[0].lower()
        found.append("account" if re.search(r"\bspending\b", statement) else verb)

    event.listen(reader.database.engine, "before_cursor_execute", note)
    yield found
    event.remove(reader.database.engine, "before_cursor_execute", note)


def test_doing_everything_twice_changes_nothing(reader: Reader) -> None:
    first = opened(header(1), Decimal(1))
    for operations in ([first], [closed(first)], [departed(header(1), paid=True)]):
        apply(reader, *operations)
        before = [reader.rows(table) for table in (calls, exits, spending)]
        assert apply(reader, *operations) == [None]
        assert [reader.rows(table) for table in (calls, exits, spending)] == before
    local = departed(header(2), paid=False)
    apply(reader, local, local)
    assert apply(reader, local) == [None]
    assert len(reader.rows(calls)) == 2


def test_a_close_whose_opening_was_lost_brings_it_along(reader: Reader) -> None:
    apply(reader, closed(opened(header(1), Decimal(1))), departed(header(1), paid=True))
    assert [row["state"] for row in reader.rows(calls)] == ["closed"]


def test_a_withdrawn_call_holds_nothing_whether_it_was_written_or_not(reader: Reader) -> None:
    written, unwritten = opened(header(1), Decimal(1)), opened(header(2), Decimal(1))
    apply(reader, written)
    apply(reader, withdrawal(written), withdrawal(unwritten), departed(header(1), paid=False))
    frontier = [row for row in reader.rows(calls) if row["kind"] == "frontier"]
    assert [(row["outcome"], row["cost_usd"]) for row in frontier] == [("not_made", 0)]
    assert all(held == 0 for _, held in reader.sums().values())


def test_an_unknown_call_whose_usage_arrives_later_is_charged_its_cost(reader: Reader) -> None:
    call = opened(header(1), Decimal(1))
    apply(reader, call)
    apply(reader, closed(call, known=False), departed(header(1), paid=True))
    assert reader.rows(exits)[0]["held_usd"] == 1
    apply(reader, closed(call), closed(call, known=False))
    assert [row["state"] for row in reader.rows(calls)] == ["closed"]
    assert reader.rows(exits)[0]["held_usd"] == 0


def test_a_refusal_does_not_affect_its_batch(reader: Reader) -> None:
    limit(reader, month_usd=LIMIT)
    asked = [opened(header(n), Decimal(1), "UTC") for n in range(3)]
    asked.append(opened(header(9, "b"), Decimal(100)))
    answers = apply(reader, *asked, departed(header(4), paid=False))
    assert [isinstance(answer, BudgetExceeded) for answer in answers] == [
        False, True, True, False, False,
    ]  # fmt: skip
    assert "$0.5" in answers[1].message
    assert {row["id"] for row in reader.rows(exits)} == {"e0000", "e0004", "e0009"}


@pytest.mark.parametrize(("day", "month"), [(1, None), (None, 1), (1, 1), (5, 1), (1, 5)])
def test_the_last_cent_may_be_spent_and_no_more(
    reader: Reader, day: int | None, month: int | None
) -> None:
    limits = {"day_usd": day, "month_usd": month}
    limit(reader, **{name: Decimal(usd) for name, usd in limits.items() if usd is not None})
    assert apply(reader, opened(header(1), Decimal("1.000000000001")))[0] is not None
    assert apply(reader, opened(header(2), Decimal(1))) == [None]
    assert apply(reader, opened(header(3), Decimal("0.000000000001")))[0] is not None
    assert apply(reader, opened(header(4), Decimal(0))) == [None]


@pytest.mark.parametrize("is_limited", [False, True])
def test_a_call_that_fits_easily_locks_its_account_after_all_other_rows(
    reader: Reader, is_limited: bool
) -> None:
    if is_limited:
        limit(reader, month_usd=LIMIT)
    store, first = Store(), opened(header(1), Decimal("0.1"))
    apply(reader, first, store=store)
    for operations in (
        [opened(header(2), Decimal("0.6"))],
        [closed(first), opened(header(3), Decimal("0.1")), departed(header(1), paid=True)],
    ):
        with statements(reader) as found:
            assert apply(reader, *operations, store=store) == [None] * len(operations)
        assert found[-2:] == ["account", "account"]
        assert "account" not in found[:-2]
    with statements(reader) as found:
        answers = apply(reader, opened(header(4), Decimal("0.8")), store=store)
    if is_limited:
        assert isinstance(answers[0], BudgetExceeded)
        assert "insert" not in found
    else:
        assert found[-2:] == ["account", "account"]


def test_what_another_gateway_spent_in_between_is_not_spent_again(reader: Reader) -> None:
    limit(reader, day_usd=LIMIT)
    here, there = Store(), Store()
    apply(reader, opened(header(1), Decimal("0.1")), store=here)
    apply(reader, opened(header(2), Decimal("1.2")), store=there)
    asked = [opened(header(3), Decimal("0.1")), opened(header(4), Decimal("0.5"))]
    with pytest.raises(StaleRoom), reader.database.begin() as connection:
        here.apply(connection, asked)
    assert len(reader.rows(calls)) == 2
    answers = apply(reader, *asked, store=here)
    assert [isinstance(answer, BudgetExceeded) for answer in answers] == [False, True]
    # What is left is known again.
    apply(reader, withdrawal(asked[0]), store=here)
    with statements(reader) as found:
        assert apply(reader, opened(header(5), Decimal("0.1")), store=here) == [None]
    assert found[-2:] == ["account", "account"]
    assert "account" not in found[:-2]


# SQLite has one transaction that writes.
@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_the_end_of_a_call_waits_for_an_opening_that_is_being_committed(reader: Reader) -> None:
    call, other = opened(header(1), Decimal(1)), opened(header(2), Decimal(1))
    apply(reader, other)
    with ThreadPoolExecutor(1) as pool:
        with reader.database.begin() as connection:
            Store().apply(connection, [call])
            ends = pool.submit(apply, reader, withdrawal(call), closed(other))
            while not reader.waiting():
                assert not ends.done()
        assert ends.result(GUARD_S) == [None, None]
    assert {row["outcome"] for row in reader.rows(calls)} == {"not_made", "ok"}
    assert all(held == 0 for _, held in reader.sums().values())


def test_a_store_forgets_what_a_rolled_back_transaction_wrote(reader: Reader) -> None:
    store, call = Store(), opened(header(1), Decimal(1))
    with reader.database.engine.connect() as connection:
        store.apply(connection, [call, closed(opened(header(2), Decimal(1)))])
        connection.rollback()
    store.forget()
    apply(reader, call, closed(opened(header(2), Decimal(1))), store=store)
    apply(reader, departed(header(2), paid=True))
    assert len(reader.rows(calls)) == 2


def test_a_dead_processs_open_rows_become_unknown_and_keep_their_holds(reader: Reader) -> None:
    own = Instance.of_this_process(Decimal(0))
    apply(reader, opened(header(1, instance=own.id), Decimal(1)))
    finished = opened(header(2, instance=own.id), Decimal(1))
    apply(reader, finished)
    apply(reader, closed(finished))
    with reader.database.begin() as connection:
        beat(connection, own, others_had_time=False)
        end(connection, own.id)
        end(connection, own.id)
    assert {row["outcome"] for row in reader.rows(exits)} == {"gateway_lost"}
    assert sorted(row["state"] for row in reader.rows(calls)) == ["closed", "unknown"]
    assert all(held == 1 for _, held in reader.sums().values())


@pytest.mark.parametrize(
    ("changes", "had_time", "dies"),
    [
        ({}, True, False),
        ({"pid": 2**22 + 1}, False, True),
        ({"process_started_at": AT}, False, True),
        ({"host": "elsewhere"}, True, False),
        ({"host": "elsewhere", "seen_at": datetime(2026, 1, 1, tzinfo=UTC)}, True, True),
        ({"host": "elsewhere", "seen_at": datetime(2026, 1, 1, tzinfo=UTC)}, False, False),
    ],
)
def test_instances_without_a_sign_of_life_are_dead(
    reader: Reader, changes: dict[str, Any], had_time: bool, dies: bool
) -> None:
    own, other = (Instance.of_this_process(Decimal(0)) for _ in range(2))
    with reader.database.begin() as connection:
        beat(connection, other, others_had_time=False)
        if changes:
            connection.execute(
                update(instances).where(instances.c.id == other.id).values(**changes)
            )
        assert beat(connection, own, others_had_time=had_time) == int(dies)
        assert beat(connection, own, others_had_time=had_time) == 0
    assert [row["id"] for row in reader.living() if row["id"] != own.id] == (
        [] if dies else [other.id]
    )


def test_a_clock_that_is_set_ends_no_running_instance(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, other = (Instance.of_this_process(Decimal(0)) for _ in range(2))
    # The kernel computes the moment of the boot from the clock: with the clock, it moves.
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: 1e9)
    with reader.database.begin() as connection:
        beat(connection, other, others_had_time=False)
        assert beat(connection, own, others_had_time=True) == 0
    assert own.process_started_at == Instance.of_this_process(Decimal(0)).process_started_at


def test_an_instance_presumed_dead_lives_again(reader: Reader) -> None:
    own = Instance.of_this_process(Decimal(0))
    with reader.database.begin() as connection:
        beat(connection, own, others_had_time=False)
        end(connection, own.id)
        beat(connection, own, others_had_time=False)
    assert [row["id"] for row in reader.living()] == [own.id]


@given(
    st.datetimes(datetime(2020, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC)),
    st.sampled_from(ZONES),
)
def test_a_moment_is_in_the_day_and_month_on_the_wall(moment: datetime, zone: str) -> None:
    found = periods_at(moment, ZoneInfo(zone))
    midnight = datetime.combine(date.fromisoformat(found.day), datetime.min.time(), ZoneInfo(zone))
    tomorrow = datetime.combine(
        midnight.date() + timedelta(days=1), datetime.min.time(), ZoneInfo(zone)
    )
    assert midnight.astimezone(UTC) <= moment < tomorrow.astimezone(UTC)
    assert found.month == f"{found.day[:8]}01"


@pytest.mark.parametrize(
    ("moment", "zone", "day", "month"),
    [
        ("2026-03-31T10:59:59+00:00", "Pacific/Auckland", "2026-03-31", "2026-03-01"),
        ("2026-03-31T11:00:00+00:00", "Pacific/Auckland", "2026-04-01", "2026-04-01"),
        ("2026-04-30T11:59:59+00:00", "Pacific/Auckland", "2026-04-30", "2026-04-01"),
        ("2026-04-30T12:00:00+00:00", "Pacific/Auckland", "2026-05-01", "2026-05-01"),
        ("2026-11-01T03:59:59+00:00", "America/New_York", "2026-10-31", "2026-10-01"),
        ("2026-11-01T05:30:00+00:00", "America/New_York", "2026-11-01", "2026-11-01"),
        ("2026-12-01T04:59:59+00:00", "America/New_York", "2026-11-30", "2026-11-01"),
        ("2026-12-01T05:00:00+00:00", "America/New_York", "2026-12-01", "2026-12-01"),
        ("2026-03-01T00:00:00+00:00", "UTC", "2026-03-01", "2026-03-01"),
    ],
)
def test_ends_of_months(moment: str, zone: str, day: str, month: str) -> None:
    found = periods_at(datetime.fromisoformat(moment), ZoneInfo(zone))
    assert (found.day, found.month) == (day, month)


@dataclass
class DrawnInput:
    """A request of the random test. pending: its calls that have not ended."""

    header: ExitHeader
    pending: list[Open] = field(default_factory=list)
    paid: bool = False
    closed: bool = False


class LedgerMachine(RuleBasedStateMachine):
    """Opens, closes, leaves, sweeps and repeats at random; the sums must hold after each step."""

    reader: Reader

    @initialize(limited=st.booleans())
    def begin(self, limited: bool) -> None:
        self.store, self.number = Store(), 0
        self.inputs: list[DrawnInput] = []
        self.done: list[Close | RecordExit] = []
        with self.reader.database.begin() as connection:
            for table in reversed(metadata.sorted_tables):
                connection.execute(delete(table))
            if limited:
                row = {"name": "a", "day_usd": LIMIT, "created_at": AT}
                connection.execute(insert(tenants), row)

    def do(self, *operations: Operation) -> list[Any]:
        self.done += [item for item in operations if not isinstance(item, Open)]
        return apply(self.reader, *operations, store=self.store)

    @rule(tenant=st.sampled_from(TENANTS), instance=st.sampled_from(("one", "two")))
    def arrive(self, tenant: str, instance: str) -> None:
        self.number += 1
        self.inputs.append(DrawnInput(header(self.number, tenant, instance)))

    @precondition(lambda self: any(not item.closed for item in self.inputs))
    @rule(data=st.data(), cents=st.integers(0, 100), zone=st.sampled_from(ZONES))
    def call(self, data: st.DataObject, cents: int, zone: str) -> None:
        some = data.draw(st.sampled_from([b for b in self.inputs if not b.closed]))
        operation = opened(some.header, Decimal(cents) / 100, zone)
        if self.do(operation) == [None]:
            some.pending.append(operation)
            some.paid = True

    @precondition(lambda self: any(item.pending for item in self.inputs))
    @rule(data=st.data(), end_kind=st.sampled_from(("known", "unknown", "withdrawn", "late")))
    def close(self, data: st.DataObject, end_kind: str) -> None:
        some = data.draw(st.sampled_from([b for b in self.inputs if b.pending]))
        operation = some.pending.pop()
        if end_kind == "withdrawn":
            self.do(withdrawal(operation))
        elif end_kind == "late":
            self.do(closed(operation, known=False))
            self.do(closed(operation))
        else:
            self.do(closed(operation, known=end_kind == "known"))

    @precondition(lambda self: any(not item.closed for item in self.inputs))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        some = data.draw(st.sampled_from([b for b in self.inputs if not b.closed]))
        some.closed = True
        self.do(departed(some.header, paid=some.paid))

    @rule(instance=st.sampled_from(("one", "two")))
    def sweep(self, instance: str) -> None:
        with self.reader.database.begin() as connection:
            end(connection, instance)

    @precondition(lambda self: bool(self.done))
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        again = data.draw(st.lists(st.sampled_from(self.done), max_size=4))
        apply(self.reader, *(from_line(to_line(item)) for item in again))

    @invariant()
    def sums_hold(self) -> None:
        if not hasattr(self, "inputs"):
            return
        self.reader.sums()
        recorded = self.reader.rows(calls)
        for row in self.reader.rows(exits):
            own = [call for call in recorded if call["exit_id"] == row["id"]]
            if row["state"] != "open":
                assert row["cost_usd"] == sum((call["cost_usd"] or 0) for call in own)
                assert row["held_usd"] == sum(call["held_usd"] for call in own)

    def teardown(self) -> None:
        if hasattr(self, "inputs"):
            assert reconcile(self.reader.database) == []


def test_totals_are_the_sums_of_their_rows_whatever_happens(reader: Reader) -> None:
    class Case(LedgerMachine):
        pass

    Case.reader = reader
    examples = 30 if reader.database.is_sqlite else 15
    Case.TestCase.settings = settings(
        max_examples=examples,
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    Case.TestCase().runTest()


def test_prices_are_kept_once(reader: Reader) -> None:
    price = Price(MODEL, "test", None, 0, FixedPrices().frontier(MODEL, USAGE, None).price.tokens)
    assert Priced(Decimal(0), price).price == FixedPrices().frontier(MODEL, USAGE, None).price
    store = Store()
    for number in range(3):
        apply(reader, closed(opened(header(number), Decimal(1))), store=store)
        apply(reader, departed(header(number), paid=True), store=store)
    apply(reader, closed(opened(header(9), Decimal(1))), departed(header(9), paid=True))
    with reader.database.read() as connection:
        assert len(connection.execute(metadata.tables["prices"].select()).all()) == 1
