"""A budget holds, however many ask at once and wherever they run."""

import asyncio
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import insert

from serving.contracts.errors import BudgetExceeded, LedgerUnavailable
from serving.contracts.ledger import Caller
from serving.ledger.ledger import DatabaseLedger
from serving.ledger.reports.reconcile import reconcile
from serving.ledger.schema import calls, spending, tenants

from .database import make_tables
from .ledger_kit import (
    CALLER,
    COST,
    MODEL,
    Noted,
    Reader,
    ended,
    entry_of,
    in_time,
    left,
    running,
)

WORST = Decimal("0.01")
ROOM = 100


@pytest.fixture
def reader(ledger_url: SecretStr | None, state: Path) -> Iterator[Reader]:
    """A database with a tenant whose budget has room for 100 calls."""
    found = Reader(ledger_url, state)
    make_tables(found.database)
    limit(found, month_usd=ROOM * WORST)
    yield found
    found.check()
    assert reconcile(found.database) == []
    found.close()


def limit(reader: Reader, tenant: str = CALLER.tenant, **limits: Decimal) -> None:
    row = {"name": tenant, "created_at": datetime.now(UTC)}
    with reader.database.begin() as connection:
        connection.execute(insert(tenants), {**row, **limits})


async def ask(ledger: DatabaseLedger, *, patiently: bool = False) -> str:
    """Open a call and leave it open; return how that went."""
    while True:
        try:
            await entry_of(ledger).open_call(MODEL, WORST, in_time(100))
        except BudgetExceeded:
            return "refused"
        except LedgerUnavailable:
            # Of four processes at one file of SQLite, one may wait longer than a second.
            if not patiently:
                raise
            await asyncio.sleep(0.1)
        else:
            return "opened"


def ask_often(url: SecretStr | None, state: Path, results: "Results") -> None:
    """Ask 50 times at once, in a process of its own."""

    async def run() -> list[str]:
        async with running(url, state, call_wait_s=60.0) as ledger:
            await asyncio.to_thread(results.ready.wait)
            return await asyncio.gather(*(ask(ledger, patiently=True) for _ in range(50)))

    results.queue.put(asyncio.run(run()))


class Results:
    """A barrier for processes and their results."""

    def __init__(self, context: multiprocessing.context.ForkServerContext, parties: int) -> None:
        self.queue: multiprocessing.Queue[list[str]] = context.Queue()
        self.ready = context.Barrier(parties)


def test_four_processes_pass_as_many_as_there_is_room_for(
    reader: Reader, ledger_url: SecretStr | None, state: Path
) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.unit.ledger_kit"])
    results = Results(context, 4)
    processes = [
        context.Process(target=ask_often, args=(ledger_url, state, results)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    outcomes = Counter(outcome for _ in processes for outcome in results.queue.get(timeout=90))
    for process in processes:
        process.join()
    assert outcomes == {"opened": ROOM, "refused": 100}
    assert len(reader.rows(calls)) == ROOM
    held = {row["period"]: row["held_usd"] for row in reader.rows(spending)}
    assert held["month"] == ROOM * WORST


def spend_often(url: SecretStr, state: Path, results: "Results") -> None:
    """Make calls of two tenants at once, in a process of its own; put how often each thing was."""

    async def client(ledger: DatabaseLedger, number: int) -> list[str]:
        found = []
        for turn in range(12):
            tenant = ("tight", "wide")[(number + turn) % 2]
            entry = entry_of(ledger, Caller(tenant))
            try:
                call = await entry.open_call(MODEL, WORST, in_time(100))
            except BudgetExceeded:
                found.append(f"{tenant} refused")
                continue
            # Of one call in six it is not known what it cost.
            call.close(ended() if turn % 6 else ended(None, "unknown", "frontier_timeout"))
            entry.close(left())
            found.append(f"{tenant} made")
        return found

    async def run() -> list[str]:
        noted = Noted()
        async with running(url, state, noted, call_wait_s=60.0) as ledger:
            await asyncio.to_thread(results.ready.wait)
            found = await asyncio.gather(*(client(ledger, number) for number in range(12)))
        return [each for part in found for each in part] + ["spilled"] * noted.counts["spilled"]

    results.queue.put(asyncio.run(run()))


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_three_processes_charge_two_tenants_without_a_deadlock_or_an_overspent_budget(
    reader: Reader, ledger_url: SecretStr, state: Path
) -> None:
    tight = 40 * WORST
    limit(reader, "tight", day_usd=tight)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.unit.ledger_kit"])
    results = Results(context, 3)
    processes = [
        context.Process(target=spend_often, args=(ledger_url, state / str(number), results))
        for number in range(3)
    ]
    for process in processes:
        process.start()
    # Whatever is committed at any time is within the budget.
    while results.queue.qsize() < len(processes):
        assert any(process.is_alive() for process in processes) or not results.queue.empty()
        for row in reader.rows(spending):
            assert row["tenant"] != "tight" or row["spent_usd"] + row["held_usd"] <= tight
    outcomes = Counter(outcome for _ in processes for outcome in results.queue.get(timeout=90))
    for process in processes:
        process.join()
    # A deadlock makes the ledger of one process spill, as if its database were unreachable.
    assert set(outcomes) == {"tight made", "tight refused", "wide made"}
    assert outcomes["wide made"] == 3 * 12 * 6
    assert len(reader.rows(calls)) == outcomes["tight made"] + outcomes["wide made"]


async def test_one_process_passes_as_many_as_there_is_room_for(
    reader: Reader, ledger_url: SecretStr | None, state: Path
) -> None:
    noted = Noted()
    async with running(ledger_url, state, noted) as ledger:
        outcomes = Counter(await asyncio.gather(*(ask(ledger) for _ in range(200))))
    assert outcomes == {"opened": ROOM, "refused": 100}
    assert noted.counts["refused"] == 100


async def test_the_unspent_part_of_a_hold_is_available_to_the_next_call(
    reader: Reader, ledger_url: SecretStr | None, state: Path
) -> None:
    limit(reader, "small", month_usd=10 * WORST)
    async with running(ledger_url, state) as ledger:
        made = 0
        while True:
            entry = entry_of(ledger, Caller("small"))
            try:
                call = await entry.open_call(MODEL, WORST, in_time())
            except BudgetExceeded:
                break
            made += 1
            call.close(ended())
            entry.close(left())
            await entry.written()
    spent = made * COST
    assert spent <= 10 * WORST < spent + WORST
    assert {row["spent_usd"] for row in reader.rows(spending)} == {spent}


async def test_a_days_limit_counts_by_the_calendar_of_the_time_zone(
    reader: Reader, ledger_url: SecretStr | None, state: Path
) -> None:
    async with running(ledger_url, state, time_zone="Pacific/Kiritimati") as ledger:
        await entry_of(ledger).open_call(MODEL, WORST, in_time())
    (call,) = reader.rows(calls)
    moved = (call["opened_at"].hour + 14) // 24
    shown = datetime.fromisoformat(call["day"]).date()
    assert (shown - call["opened_at"].date()).days == moved


async def test_a_clock_set_back_across_midnight_exceeds_no_days_budget(
    reader: Reader, ledger_url: SecretStr | None, state: Path
) -> None:
    limit(reader, "globex", day_usd=2 * WORST)
    midnight, caller = datetime(2026, 11, 1, tzinfo=UTC), Caller("globex", "key2")
    granted: Counter[int] = Counter()
    async with running(ledger_url, state) as ledger:
        for minutes in (10, 10, 10, -10, -10, -10, 10, 24 * 60):
            moment = midnight + timedelta(minutes=minutes)
            ledger._deps = replace(ledger._deps, clock=lambda moment=moment: moment)
            try:
                call = await entry_of(ledger, caller).open_call(MODEL, WORST, in_time())
            except BudgetExceeded:
                continue
            granted[minutes] += 1
            call.close(ended(None, "unknown"))
    # The earlier day's own budget is left, each day's holds, and the next day has its own.
    assert granted == {10: 2, -10: 2, 24 * 60: 1}


async def test_a_refusal_has_the_remaining_budget_and_the_fix(
    reader: Reader, ledger_url: SecretStr | None, state: Path
) -> None:
    async with running(ledger_url, state) as ledger:
        with pytest.raises(BudgetExceeded) as caught:
            await entry_of(ledger).open_call(MODEL, Decimal("1.5"), in_time())
    assert "'acme'" in caught.value.message
    assert "may cost $1.5 and" in caught.value.message
    assert "has $1 left" in caught.value.message
    assert caught.value.fix is not None
