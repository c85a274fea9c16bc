"""The ledger in memory, which other tests use, keeps the same promises as the real one."""

from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from serving.contracts.errors import DeadlineExceeded

from .ledger_kit import (
    CALLER,
    LOCAL,
    MODEL,
    WORST,
    ended,
    entry_of,
    in_time,
    left,
    left_locally,
    running,
    set_aside,
)
from .memory_ledger import MemoryLedger


@pytest.fixture(params=["memory", "database"])
async def ledger(request: pytest.FixtureRequest, state: Path) -> AsyncIterator[Any]:
    """Either ledger, started."""
    if request.param == "memory":
        yield MemoryLedger()
        return
    async with running(None, state) as database:
        yield database


async def test_an_input_is_recorded_from_its_first_paid_call_on(ledger: Any) -> None:
    entry = entry_of(ledger)
    assert not entry.is_recorded
    call = await entry.open_call(MODEL, WORST, in_time())
    assert entry.is_recorded
    call.close(ended())
    cost = entry.close(left())
    assert isinstance(cost, Decimal)
    assert cost > 0
    await entry.written()


async def test_an_exit_costs_the_sum_of_its_calls_and_attempts(ledger: Any) -> None:
    costs = []
    for calls, attempts in ((1, 0), (2, 0), (0, 1), (1, 1), (2, 2)):
        entry = entry_of(ledger)
        for _ in range(calls):
            (await entry.open_call(MODEL, WORST, in_time())).close(ended())
        costs.append(entry.close(left(attempts=(set_aside(),) * attempts)))
        await entry.written()
    one, two, attempt, both, all_ = costs
    assert two == 2 * one
    assert both == one + attempt
    assert all_ == two + 2 * attempt
    assert attempt > 0


async def test_a_local_answer_costs_its_replica_time_and_nothing_without_it(ledger: Any) -> None:
    entry = ledger.entry(CALLER, "r", "task", "sentiment", 0)
    assert entry.close(left_locally()) > 0
    await entry.written()
    free = ledger.entry(CALLER, "r", "task", "sentiment", 1)
    assert (
        free.close(left(route="none", reason=None, model=LOCAL, attempts=(set_aside(None),))) == 0
    )
    await free.written()


@pytest.mark.parametrize(("source", "is_known"), [("reported", True), ("unknown", False)])
async def test_a_call_without_usage_costs_nothing_or_an_unknown_amount(
    ledger: Any, source: str, is_known: bool
) -> None:
    entry = entry_of(ledger)
    call = await entry.open_call(MODEL, WORST, in_time())
    call.close(ended(None, source, "frontier_unavailable"))
    cost = entry.close(left(route="none", error="frontier_unavailable"))
    assert cost == (Decimal(0) if is_known else None)
    await entry.written()


async def test_the_cost_of_an_exit_is_unknown_while_a_call_is_open(ledger: Any) -> None:
    entry = entry_of(ledger)
    late = await entry.open_call(MODEL, WORST, in_time())
    assert entry.close(left()) is None
    await entry.written()
    late.close(ended(outcome="hedge_lost"))


async def test_a_refused_call_is_not_recorded(ledger: Any) -> None:
    deadline, refusal = in_time(0), DeadlineExceeded
    if isinstance(ledger, MemoryLedger):
        ledger.refuse.append(refusal("no time is left"))
    entry = entry_of(ledger)
    with pytest.raises(refusal):
        await entry.open_call(MODEL, WORST, deadline)
    assert not entry.is_recorded
    assert entry.close(left(route="none", error=refusal.code)) == 0
    await entry.written()
