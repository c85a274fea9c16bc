"""Rows and costs that requests leave in the ledger."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import SecretStr

from serving.contracts.answer import Usage
from serving.contracts.deadline import Deadline
from serving.contracts.errors import DeadlineExceeded, InvalidSettings, LedgerUnusable
from serving.contracts.exits import Exit
from serving.contracts.ledger import CallEnd, Caller
from serving.contracts.ledger_settings import LedgerSettings
from serving.ledger.build import build_ledger
from serving.ledger.reports.reconcile import reconcile
from serving.ledger.rows import is_escalated
from serving.ledger.schema import calls, exits, prices

from .ledger_kit import (
    CALLER,
    COST,
    LOCAL,
    MODEL,
    USAGE,
    WORST,
    FixedPrices,
    Noted,
    Reader,
    ended,
    entry_of,
    in_time,
    left,
    left_locally,
    new_ledger,
    running,
    set_aside,
)
from .patience import until


@pytest.fixture
def reader(ledger_url: SecretStr | None, state: Path) -> Iterator[Reader]:
    found = Reader(ledger_url, state)
    yield found
    found.check()
    assert reconcile(found.database) == []
    found.close()


async def test_a_paid_answer(reader: Reader, ledger_url: SecretStr | None, state: Path) -> None:
    noted = Noted()
    async with running(ledger_url, state, noted) as ledger:
        entry = entry_of(ledger)
        call = await entry.open_call(MODEL, WORST, in_time())
        (row,), (exit_row,) = reader.rows(calls), reader.rows(exits)
        assert (row["state"], row["cost_usd"], row["held_usd"]) == ("open", None, WORST)
        assert (exit_row["state"], exit_row["cost_usd"]) == ("open", None)
        assert set(reader.sums().values()) == {(Decimal(0), WORST)}
        call.close(ended())
        assert entry.close(left(service_tier="standard")) == COST
        await entry.written()
    (row,), (exit_row,) = reader.rows(calls), reader.rows(exits)
    assert (row["state"], row["outcome"], row["cost_usd"], row["held_usd"]) == (
        "closed", "ok", COST, 0,
    )  # fmt: skip
    assert (row["kind"], row["model"], row["output_tokens"]) == ("frontier", MODEL, 100)
    assert row["price_id"] == reader.rows(prices)[0]["id"]
    assert (exit_row["state"], exit_row["outcome"], exit_row["cost_usd"], exit_row["held_usd"]) == (
        "closed", "answered", COST, 0,
    )  # fmt: skip
    assert (exit_row["reference_usd"], exit_row["escalated"], exit_row["cached"]) == (
        2 * COST,
        False,
        False,
    )
    assert (exit_row["tenant"], exit_row["key_id"], exit_row["service_tier"]) == (
        "acme",
        "key1",
        "standard",
    )
    assert set(reader.sums().values()) == {(COST, Decimal(0))}
    assert reader.living() == []
    assert noted.counts == {"written": 3, "waits": 1}
    assert noted.states == ["down", "up"]


async def test_a_local_answer(reader: Reader, ledger_url: SecretStr | None, state: Path) -> None:
    async with running(ledger_url, state) as ledger:
        entry = ledger.entry(CALLER, "r", "task", "sentiment", 3)
        cost = entry.close(left_locally(task="sentiment"))
        await entry.written()
    (row,), (exit_row,) = reader.rows(calls), reader.rows(exits)
    assert cost == Decimal("0.000001") == row["cost_usd"] == exit_row["cost_usd"]
    assert (row["kind"], row["model"], row["replica_us"], row["outcome"]) == (
        "local", LOCAL, 1000, "ok",
    )  # fmt: skip
    assert (exit_row["input_index"], exit_row["task"], exit_row["route"]) == (
        3,
        "sentiment",
        "local",
    )
    assert exit_row["elapsed_us"] == 500_000
    assert reader.sums() == {}


async def test_an_answer_after_a_local_attempt_is_charged_with_both(
    reader: Reader, ledger_url: SecretStr | None, state: Path
) -> None:
    async with running(ledger_url, state) as ledger:
        entry = entry_of(ledger)
        first = await entry.open_call(MODEL, WORST, in_time())
        first.close(ended(None, "reported", "frontier_unavailable"))
        second = await entry.open_call(MODEL, WORST, in_time())
        second.close(ended())
        tried = (set_aside(), set_aside(None))
        cost = entry.close(left(reason="below_threshold", attempts=tried))
        await entry.written()
    assert cost == COST + Decimal("0.000002")
    (exit_row,) = reader.rows(exits)
    assert (exit_row["escalated"], exit_row["cost_usd"]) == (True, cost)
    assert sorted((row["kind"], row["outcome"], row["cost_usd"]) for row in reader.rows(calls)) == [
        ("frontier", "frontier_unavailable", 0),
        ("frontier", "ok", COST),
        ("local", "below_threshold", Decimal("0.000002")),
    ]


async def test_a_call_of_unknown_usage_stays_charged_at_its_worst_case(
    reader: Reader, ledger_url: SecretStr | None, state: Path
) -> None:
    async with running(ledger_url, state) as ledger:
        entry = entry_of(ledger)
        lost = await entry.open_call(MODEL, WORST, in_time())
        lost.close(ended(None, "unknown", "frontier_timeout"))
        estimated = await entry.open_call(MODEL, WORST, in_time())
        estimated.close(ended(source="estimated", outcome="frontier_stream_broken"))
        assert entry.close(left(route="none", error="frontier_stream_broken", valid=False)) is None
        await entry.written()
    (exit_row,) = reader.rows(exits)
    assert (exit_row["cost_usd"], exit_row["held_usd"], exit_row["reference_usd"]) == (
        COST,
        WORST,
        None,
    )
    by_state = {row["state"]: row for row in reader.rows(calls)}
    assert (by_state["unknown"]["cost_usd"], by_state["unknown"]["held_usd"]) == (None, WORST)
    assert set(reader.sums().values()) == {(COST, WORST)}


async def test_a_call_that_ends_after_its_exit_is_added_to_it(
    reader: Reader, ledger_url: SecretStr | None, state: Path
) -> None:
    async with running(ledger_url, state) as ledger:
        entry = entry_of(ledger)
        late = await entry.open_call(MODEL, WORST, in_time())
        assert entry.close(left()) is None
        await entry.written()
        assert reader.rows(exits)[0]["held_usd"] == WORST
        late.close(ended(outcome="hedge_lost"))
    (exit_row,) = reader.rows(exits)
    assert (exit_row["cost_usd"], exit_row["held_usd"]) == (COST, 0)


async def test_a_model_that_lost_its_price_stays_charged_at_its_worst_case(
    reader: Reader, ledger_url: SecretStr | None, state: Path
) -> None:
    async with running(ledger_url, state) as ledger:
        entry = entry_of(ledger)
        call = await entry.open_call("free/model", WORST, in_time())
        call.close(ended())
        assert entry.close(left(model="free/model")) is None
        await entry.written()
    assert reader.rows(calls)[0]["state"] == "unknown"


@pytest.mark.parametrize(
    "usage",
    [
        Usage(uncached_input_tokens=10**25, output_tokens=1),
        Usage(uncached_input_tokens=1, output_tokens=5 * 10**9),
        Usage(uncached_input_tokens=1, output_tokens=1, reasoning_tokens=10**25),
    ],
)
async def test_a_usage_that_is_not_credible_is_unknown_and_leaves_no_row_open(
    reader: Reader, ledger_url: SecretStr | None, state: Path, usage: Usage
) -> None:
    noted = Noted()
    async with running(ledger_url, state, noted) as ledger:
        entry = entry_of(ledger)
        call = await entry.open_call(MODEL, WORST, in_time())
        call.close(ended(usage))
        assert entry.close(left()) is None
        await entry.written()
    assert [(row["state"], row["held_usd"]) for row in reader.rows(calls)] == [("unknown", WORST)]
    assert [row["state"] for row in reader.rows(exits)] == ["closed"]
    assert noted.counts["rejected"] == 0


@pytest.mark.parametrize("elapsed_s", [float("nan"), float("inf"), -1.0])
async def test_any_text_and_any_time_can_be_stored(
    reader: Reader, ledger_url: SecretStr | None, state: Path, elapsed_s: float
) -> None:
    hostile = "a\x00\udcff" + "b" * 1000
    async with running(ledger_url, state) as ledger:
        entry = entry_of(ledger, request_id=hostile)
        call = await entry.open_call(MODEL, WORST, in_time())
        call.close(CallEnd("ok", USAGE, "reported", elapsed_s, hostile))
        entry.close(left(service_tier=hostile, elapsed_s=elapsed_s))
        await entry.written()
    (call_row,), (row,) = reader.rows(calls), reader.rows(exits)
    assert (call_row["state"], row["state"]) == ("closed", "closed")
    assert call_row["service_tier"] == row["service_tier"] == row["request_id"]
    assert row["request_id"] == "a?" + "b" * 254


async def test_an_exit_from_the_cache_costs_nothing(
    reader: Reader, ledger_url: SecretStr | None, state: Path
) -> None:
    async with running(ledger_url, state) as ledger:
        entry = entry_of(ledger)
        assert entry.close(left(route="cache", reason="narrow")) == 0
        await entry.written()
    (exit_row,) = reader.rows(exits)
    assert (exit_row["cached"], exit_row["reference_usd"]) == (True, 2 * COST)
    assert reader.rows(calls) == []


async def test_an_input_that_failed_before_anything_was_tried(
    reader: Reader, ledger_url: SecretStr | None, state: Path
) -> None:
    async with running(ledger_url, state) as ledger:
        entry = entry_of(ledger, request_id="\x00ü" * 500)
        exit_ = left(route="none", reason=None, model=None, usage=None, error="queue_full")
        assert entry.close(exit_) == 0
        await entry.written()
    (exit_row,) = reader.rows(exits)
    assert (exit_row["outcome"], exit_row["escalated"]) == ("queue_full", False)
    assert exit_row["request_id"] == "ü" * 256


async def test_a_worst_case_finer_than_the_unit_is_held_rounded_up(
    reader: Reader, ledger_url: SecretStr | None, state: Path
) -> None:
    async with running(ledger_url, state) as ledger:
        entry = entry_of(ledger)
        call = await entry.open_call(MODEL, Decimal("1e-13"), in_time())
        assert reader.rows(calls)[0]["held_usd"] == Decimal("1e-12")
        call.close(ended())
        entry.close(left())


async def test_a_request_without_time_opens_nothing(
    reader: Reader, ledger_url: SecretStr | None, state: Path
) -> None:
    async with running(ledger_url, state) as ledger:
        with pytest.raises(DeadlineExceeded):
            await entry_of(ledger).open_call(MODEL, WORST, Deadline.after(0))
    assert reader.rows(calls) == []


async def test_a_caller_who_gives_up_holds_nothing(
    reader: Reader, ledger_url: SecretStr | None, state: Path
) -> None:
    async with running(ledger_url, state) as ledger:
        for turns in range(12):
            entry = entry_of(ledger)
            opening = asyncio.create_task(entry.open_call(MODEL, WORST, in_time()))
            for _ in range(turns):
                await asyncio.sleep(0.0005)
            opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                (await opening).close(ended(None, "reported", "cancelled"))
            entry.close(left(route="none", error="client_closed"))
    assert set(reader.sums().values()) <= {(Decimal(0), Decimal(0))}
    assert len(reader.rows(exits)) == 12


async def test_an_end_takes_everything_along(
    reader: Reader, ledger_url: SecretStr | None, state: Path
) -> None:
    ledger = new_ledger(ledger_url, state, Noted())
    await ledger.start()
    entries = [entry_of(ledger) for _ in range(700)]
    late = await entries[0].open_call(MODEL, WORST, in_time())
    for entry in entries[1:]:
        entry.close(left_locally())
    await ledger.aclose()
    assert len([row for row in reader.rows(exits) if row["state"] == "closed"]) == 699
    assert [row["outcome"] for row in reader.rows(calls) if row["state"] == "unknown"] == [
        "gateway_lost"
    ]
    late.close(ended())
    assert entries[0].close(left()) == COST
    await entries[0].written()
    spilled = state / "ledger" / "spill"
    async with running(ledger_url, state):
        await until(lambda: list(spilled.iterdir()) == [])
    assert {row["state"] for row in reader.rows(exits)} == {"closed"}
    assert {row["state"] for row in reader.rows(calls)} == {"closed"}


async def test_tenants_are_apart(reader: Reader, ledger_url: SecretStr | None, state: Path) -> None:
    async with running(ledger_url, state) as ledger:
        for name in ("b", "a", "b"):
            entry = entry_of(ledger, Caller(name))
            (await entry.open_call(MODEL, WORST, in_time())).close(ended())
            entry.close(left())
    spent = {key.split("/")[0]: sums[0] for key, sums in reader.sums().items()}
    assert spent == {"a": COST, "b": 2 * COST}


async def test_a_file_that_is_not_a_ledger_stops_the_start(state: Path) -> None:
    (state / "ledger").mkdir(parents=True)
    (state / "ledger" / "ledger.db").write_bytes(b"no database at all" * 200)
    with pytest.raises(LedgerUnusable):
        await new_ledger(None, state, Noted()).start()


def test_another_kind_of_database_is_refused(state: Path) -> None:
    wanted = LedgerSettings(url=SecretStr("mysql://a/b"))
    with pytest.raises(InvalidSettings):
        build_ledger(wanted, state, FixedPrices(), Noted(), Decimal(0))


@pytest.mark.parametrize(
    ("exit_", "paid", "expected"),
    [
        (left(), True, False),
        (left(reason="requested"), True, False),
        (left(reason="overload"), True, True),
        (left(reason="below_threshold", attempts=(set_aside(),)), True, True),
        (left(attempts=(set_aside(),)), True, True),
        (left(route="none", reason="invalid_output", error="frontier_timeout"), True, True),
        (left(route="none", reason="local_failure", error="engine_failure"), False, False),
        (left_locally(), False, False),
        (left(route="cache", reason="below_threshold"), False, False),
    ],
)
def test_escalated_is_what_a_local_model_was_to_answer(
    exit_: Exit, paid: bool, expected: bool
) -> None:
    assert is_escalated(exit_, paid=paid) is expected


async def test_an_exit_begins_when_its_request_arrived_and_includes_the_queue(
    reader: Reader, ledger_url: SecretStr | None, state: Path
) -> None:
    arrived = datetime.now(UTC) - timedelta(seconds=30)
    async with running(ledger_url, state) as ledger:
        entry = ledger.entry(CALLER, "r", "chat", None, 0, arrived)
        entry.close(left_locally(elapsed_s=0.5))
        direct = entry_of(ledger, request_id="direct")
        direct.close(left_locally(elapsed_s=7.5))
    rows = {row["request_id"]: row for row in reader.rows(exits)}
    assert rows["r"]["opened_at"] == arrived
    assert rows["r"]["elapsed_us"] >= 30_000_000
    assert rows["direct"]["opened_at"] > arrived
    assert rows["direct"]["elapsed_us"] == 7_500_000


async def test_a_clock_that_is_set_meanwhile_is_no_latency(
    reader: Reader, ledger_url: SecretStr | None, state: Path
) -> None:
    now = [datetime.now(UTC)]
    async with running(ledger_url, state) as ledger:
        ledger._deps = replace(ledger._deps, clock=lambda: now[0])
        entry = entry_of(ledger)
        now[0] += timedelta(hours=1)
        entry.close(left_locally(elapsed_s=7.5))
    assert [row["elapsed_us"] for row in reader.rows(exits)] == [7_500_000]


@pytest.mark.parametrize("guaranteed", [True, False, None])
async def test_an_exit_records_whether_its_answer_is_guaranteed(
    reader: Reader, ledger_url: SecretStr | None, state: Path, *, guaranteed: bool | None
) -> None:
    async with running(ledger_url, state) as ledger:
        entry_of(ledger).close(left_locally(guaranteed=guaranteed))
    assert [row["guaranteed"] for row in reader.rows(exits)] == [guaranteed]
