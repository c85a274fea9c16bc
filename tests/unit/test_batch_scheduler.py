"""Lines keep budgets, limits and deadlines, make way for clients, and are never paid for twice."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import delete, select, update

from serving.batch.check import FileCheck
from serving.batch.line_work import NotedLedger
from serving.batch.recovery import paid_attempts
from serving.batch.schema import batch_lease, batch_lines
from serving.batch.slack import Slack
from serving.batch.store import BatchStore, LeaseLost, Limits, LineEnd
from serving.contracts.batch import BatchOrder, Checked
from serving.contracts.batch_settings import BatchSettings
from serving.contracts.deadline import Deadline
from serving.contracts.errors import DeadlineExceeded, LedgerUnavailable, ShuttingDown
from serving.contracts.ledger import CallEnd, Caller, Lane
from serving.ledger.access.tenants import update_tenant
from serving.ledger.database import Database
from serving.ledger.schema import calls, exits
from serving.pipeline.admission import AdmissionQueue

from ..provider.script import Fault, rate_limited
from ..provider.server import ProviderServer
from .authenticated import opened
from .batch_gateway import KEY_VALUE, KEY_VARIABLE, Running, running
from .batch_kit import ACME, CHAT, chat_line, jsonl, line_rules
from .cache_kit import NOW
from .patience import GUARD_S

SOON = Deadline.after(1e6)


@pytest.fixture
async def gateway(
    provider: ProviderServer, state: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Running]:
    monkeypatch.setenv(KEY_VARIABLE, KEY_VALUE)
    provider.script.answer = lambda seen: f"answer to {seen.body['messages'][-1]['content']}"
    async with running(provider, state, None) as found:
        yield found


def questions(count: int, **changes: Any) -> bytes:
    return jsonl(*(chat_line(f"c{n}", f"question {n}", **changes) for n in range(count)))


def ledger_rows(database: Database) -> list[Any]:
    query = select(exits, calls.c.cost_usd.label("paid_usd"), calls.c.held_usd.label("hold_usd"))
    with database.read() as connection:
        return list(connection.execute(query.join(calls, calls.c.exit_id == exits.c.id)))


async def settled_rows(database: Database) -> list[Any]:
    """Return the calls with their inputs, once every end is written: it may follow the answer."""
    async with asyncio.timeout(GUARD_S):
        while True:
            rows = await asyncio.to_thread(ledger_rows, database)
            if all(row.state == "closed" for row in rows):
                return rows
            await asyncio.sleep(0.05)


async def test_the_ledger_has_the_lane_of_each_line(gateway: Running) -> None:
    batch = await gateway.ended(await gateway.submit(questions(3)))
    await gateway.acme.chat.completions.create(
        model="openai/gpt-4.1", messages=[{"role": "user", "content": "Now."}]
    )
    rows = await settled_rows(gateway.database)
    assert sorted(row.lane for row in rows) == ["batch"] * 3 + ["interactive"]
    paid = sum(row.paid_usd for row in rows if row.lane == "batch")
    assert Decimal(batch.model_extra["narrowgate"]["cost_usd"]) == paid  # type: ignore[index]
    assert {row.route for row in rows} == {"frontier"}


async def test_a_batch_that_no_longer_fits_the_budget_stops_with_the_rest_cancelled(
    gateway: Running, provider: ProviderServer
) -> None:
    one = await gateway.ended(await gateway.submit(questions(1)))
    cost = Decimal(one.model_extra["narrowgate"]["cost_usd"])  # type: ignore[index]
    # Each answer may have 10 tokens, of which the worst case is held while it is made.
    limit = cost * 8
    await asyncio.to_thread(update_tenant, gateway.database, "acme", {"day_usd": round(limit, 12)})
    batch = await gateway.ended(await gateway.submit(questions(30, max_tokens=10)))
    assert batch.status == "cancelled"
    assert batch.errors is not None
    assert [problem.code for problem in batch.errors.data or ()] == ["budget_exceeded"]
    found = await gateway.results(batch)
    assert len(found) == 30
    answered = [line for line in found.values() if line["response"] is not None]
    assert 0 < len(answered) < 30
    assert {line["error"]["code"] for line in found.values() if line["error"]} == {
        "budget_exceeded"
    }
    assert len(provider.script.seen) == 1 + len(answered)
    rows = await settled_rows(gateway.database)
    assert sum(row.paid_usd for row in rows) <= limit
    assert sum(row.hold_usd for row in rows) == 0


async def test_max_cost_usd_stops_a_batch(gateway: Running, provider: ProviderServer) -> None:
    one = await gateway.ended(await gateway.submit(questions(1)))
    cost = Decimal(one.model_extra["narrowgate"]["cost_usd"])  # type: ignore[index]
    limit = f"{cost * 8:f}"
    batch = await gateway.ended(
        await gateway.submit(questions(30, max_tokens=10), metadata={"max_cost_usd": limit})
    )
    assert batch.status == "cancelled"
    found = await gateway.results(batch)
    answered = [line for line in found.values() if line["response"] is not None]
    assert len(found) == 30
    assert 0 < len(answered) < 30
    spent = Decimal(batch.model_extra["narrowgate"]["cost_usd"])  # type: ignore[index]
    assert spent <= Decimal(limit)
    assert len(provider.script.seen) == 1 + len(answered)


async def test_what_is_not_answered_by_the_deadline_expires(
    gateway: Running, provider: ProviderServer
) -> None:
    provider.script.on("gpt-4.1", Fault("slow", delay_s=0.7))
    batch = await gateway.submit(questions(500), metadata={"deadline": "2s"})
    batch = await gateway.ended(batch)
    assert batch.status == "expired"
    found = await gateway.results(batch)
    assert len(found) == 500
    assert "batch_expired" in {line["error"]["code"] for line in found.values() if line["error"]}


async def test_a_refusal_that_costs_nothing_is_repeated(
    gateway: Running, provider: ProviderServer
) -> None:
    provider.script.next(rate_limited(), Fault("status", 503), None)
    batch = await gateway.ended(await gateway.submit(questions(1)))
    assert batch.status == "completed"
    (line,) = (await gateway.results(batch)).values()
    assert line["response"]["status_code"] == 200
    rows = await settled_rows(gateway.database)
    assert len({row.request_id for row in rows}) == 3
    assert sum(row.paid_usd > 0 for row in rows) == 1


async def test_a_call_that_may_have_been_billed_is_not_repeated(
    gateway: Running, provider: ProviderServer
) -> None:
    provider.script.next(Fault("malformed"))
    batch = await gateway.ended(await gateway.submit(questions(1)))
    (line,) = (await gateway.results(batch)).values()
    assert line["response"]["status_code"] == 502
    assert len(provider.script.seen) == 1


async def test_a_round_that_comes_late_does_not_check_a_file_again(
    gateway: Running, provider: ProviderServer
) -> None:
    provider.script.on("gpt-4.1", Fault("slow", delay_s=0.5))
    batch = await gateway.submit(questions(20))
    while batch.status == "validating":
        batch = await gateway.acme.batches.retrieve(batch.id)
    lane: Any = gateway.gateway._context.batches
    active = await asyncio.to_thread(lane.store.active)
    stale = [replace(one, status="validating") for one in active if one.id == batch.id]
    assert len(stale) == 1
    # It read the batch before its check had ended.
    await lane.scheduler._check(stale[0])
    assert (await asyncio.to_thread(lane.store.states, batch.id)).total() == 20
    batch = await gateway.ended(batch)
    assert batch.request_counts is not None
    assert (batch.status, batch.request_counts.completed) == ("completed", 20)
    assert len(provider.script.seen) == 20


async def test_a_check_that_the_database_breaks_off_is_made_again(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, breaks = BatchStore.add_lines, [True]

    def add_lines(self: BatchStore, batch: str, lines: Any) -> bool:
        if breaks:
            breaks.pop()
            raise LedgerUnavailable("the database is unreachable")
        return whole(self, batch, lines)

    monkeypatch.setattr(BatchStore, "add_lines", add_lines)
    batch = await gateway.ended(await gateway.submit(questions(3)))
    assert batch.request_counts is not None
    assert (batch.status, batch.request_counts.completed) == ("completed", 3)


async def test_a_check_that_a_defect_breaks_off_ends_its_batch(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_lines(self: BatchStore, batch: str, lines: Any) -> bool:
        raise OverflowError("a defect")

    monkeypatch.setattr(BatchStore, "add_lines", add_lines)
    batch = await gateway.ended(await gateway.submit(questions(3)))
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert [one.code for one in batch.errors.data] == ["internal_error"]
    monkeypatch.undo()
    await gateway.acme.files.delete(batch.input_file_id)


# The database.


@pytest.fixture
def store(ledger_url: SecretStr | None, state: Path) -> Any:
    database = opened(ledger_url, state)
    yield BatchStore(database)
    database.close()


def filled(store: BatchStore, count: int, specs: Any) -> str:
    """Return a batch whose lines wait."""
    check = FileCheck(line_rules(specs), CHAT, ACME)
    lines = list(check.good_lines([questions(count)]))
    order = BatchOrder(CHAT, "file-1", "24h")
    batch = store.create(Caller("acme"), order, NOW, Limits(NOW + timedelta(days=1)))
    store.add_lines(batch, lines)
    store.checked(batch, Checked(count, (), ()), NOW, is_good=True)
    return batch


def test_one_process_runs_batches_and_another_takes_over(store: BatchStore, specs: Any) -> None:
    batch = filled(store, 4, specs)
    assert store.take_lease("one", 15.0)
    assert store.take_lease("one", 15.0)
    assert not store.take_lease("two", 15.0)
    lines = store.claim("one", batch, 2, NOW)
    assert [line.number for line in lines] == [1, 2]
    with pytest.raises(LeaseLost):
        store.claim("two", batch, 2, NOW)
    store.release_lease("one")
    assert store.take_lease("two", 15.0)
    with pytest.raises(LeaseLost):
        store.claim("one", batch, 2, NOW)
    left = store.left_running("two")
    assert [line.number for line, _, _ in left] == [1, 2]
    # What the earlier holder still has to say comes too late.
    store.end_lines("one", [LineEnd(batch, 1, "succeeded", b"{}")])
    assert store.states(batch)["succeeded"] == 0
    store.end_lines("two", [LineEnd(batch, 1, "succeeded", b"{}"), LineEnd(batch, 2, "waiting")])
    store.end_lines("two", [LineEnd(batch, 1, "failed", b"{}")])
    assert store.states(batch) == {"succeeded": 1, "waiting": 3}
    again = store.claim("two", batch, 9, NOW)
    assert [(line.number, line.attempt) for line in again] == [(2, 2), (3, 1), (4, 1)]


def test_a_lease_that_another_process_had_meanwhile_is_not_kept(store: BatchStore) -> None:
    assert store.take_lease("one", 15.0)
    store.release_lease("one")
    # Nobody took it: what this process runs is still its own.
    assert store.keep_lease("one", 15.0)
    assert not store.take_lease("two", 15.0)
    store.release_lease("one")
    assert store.take_lease("two", 15.0)
    store.release_lease("two")
    assert not store.keep_lease("one", 15.0)
    assert store.take_lease("one", 15.0)


def test_a_clock_that_was_set_back_holds_neither_lease_nor_lines(
    store: BatchStore, specs: Any
) -> None:
    batch = filled(store, 2, specs)
    later = datetime.now(UTC) + timedelta(hours=1)
    row = {"id": 1, "holder": "dead", "until": later}
    with store.database.begin() as connection:
        connection.execute(delete(batch_lease))
        connection.execute(batch_lease.insert(), [row])
    # A lease of 15 s cannot have an hour left.
    assert store.take_lease("one", 15.0)
    waits = batch_lines.c.number == 1
    for pause, free in ((timedelta(seconds=30), [2]), (timedelta(hours=1), [1])):
        with store.database.begin() as connection:
            connection.execute(update(batch_lines).where(waits).values(not_before=NOW + pause))
        assert [line.number for line in store.claim("one", batch, 9, NOW)] == free


@pytest.mark.parametrize("checks", [0, 1])
async def test_a_process_that_lost_the_lease_makes_no_paid_call(checks: int) -> None:
    opened_calls: list[str] = []
    ended: list[CallEnd] = []

    class Call:
        def close(self, end: CallEnd) -> None:
            ended.append(end)

    class Lines:
        def entry(self, *_: Any) -> Any:
            return self

        async def open_call(self, model: str, *_: Any) -> Call:
            opened_calls.append(model)
            return Call()

    left = checks

    async def fence() -> None:
        nonlocal left
        if left == 0:
            raise LeaseLost
        left -= 1

    ledger = NotedLedger(Lines())  # type: ignore[arg-type]
    ledger.fence = fence
    entry = ledger.entry(replace(ACME, lane="batch"), "batch_1_1_1", "chat", None, 0)
    with pytest.raises(LeaseLost):
        await entry.open_call("a/b", Decimal(1), SOON)
    # Lost while the call was written: it ends at once, and costs nothing.
    assert len(opened_calls) == checks
    assert [(end.usage, end.usage_source) for end in ended] == [(None, "reported")] * checks


def test_what_open_lines_may_cost_is_summed(store: BatchStore, specs: Any) -> None:
    batch = filled(store, 3, specs)
    assert store.held_usd() == 0
    assert store.take_lease("one", 15.0)
    with store.database.begin() as connection:
        connection.execute(update(batch_lines).values(worst_usd=Decimal("0.4")))
    store.claim("one", batch, 2, NOW)
    assert store.held_usd() == Decimal("0.8")
    store.end_lines("one", [LineEnd(batch, 1, "succeeded", b"{}")])
    assert store.held_usd() == Decimal("0.4")
    assert store.open_lines() == {"waiting": 1, "running": 1}
    (acme,) = store.overview(NOW)
    assert (acme.tenant, acme.statuses, acme.unanswered) == ("acme", {"in_progress": 1}, 0)
    assert acme.lines == {"succeeded": 1, "running": 1, "waiting": 1}
    assert acme.held_usd == Decimal("0.4")
    assert store.end_waiting(batch, "cancelled") == ("cancelled", 1)
    assert store.open_lines() == {"running": 1}


def test_a_stopped_batch_keeps_its_first_reason(store: BatchStore, specs: Any) -> None:
    batch = filled(store, 3, specs)
    store.stop(batch, "budget_exceeded", NOW, "no money")
    store.cancel("acme", batch, NOW)
    store.end_waiting(batch, "budget_exceeded")
    found = store.find("acme", batch)
    assert (found.status, found.counts.failed) == ("cancelling", 3)
    assert [problem.code for problem in found.problems] == ["budget_exceeded"]


def test_lines_within_the_room_are_claimed_and_one_of_unknown_cost_alone(
    store: BatchStore, specs: Any
) -> None:
    batch = filled(store, 5, specs)
    assert store.take_lease("one", 15.0)
    line = batch_lines.c
    with store.database.begin() as connection:
        connection.execute(update(batch_lines).values(worst_usd=Decimal("0.4")))
        connection.execute(update(batch_lines).where(line.number == 3).values(worst_usd=None))
    assert store.claim("one", batch, 9, NOW, Decimal("0.3")) == []
    assert [one.number for one in store.claim("one", batch, 9, NOW, Decimal("1"))] == [1, 2]
    assert [one.number for one in store.claim("one", batch, 9, NOW, Decimal("1"))] == [3]
    assert [one.number for one in store.claim("one", batch, 9, NOW, Decimal("0.5"))] == [4]


def test_the_ledger_says_which_attempts_may_have_been_billed(store: BatchStore) -> None:
    states = {
        "none": None, "open": ("open", None, 5), "unknown": ("unknown", None, 5),
        "paid": ("closed", 3, 0), "refused": ("closed", 0, 0),
    }  # fmt: skip
    with store.database.begin() as connection:
        for name, call in states.items():
            connection.execute(exits.insert(), [{
                "id": name, "request_id": name, "input_index": 0, "tenant": "acme",
                "endpoint": "chat", "lane": "batch", "state": "open", "escalated": False,
                "cached": False, "opened_at": NOW, "instance": "i",
            }])  # fmt: skip
            if call is not None:
                state, cost, held = call
                connection.execute(calls.insert(), [{
                    "id": name, "exit_id": name, "tenant": "acme", "kind": "frontier",
                    "model": "a/b", "state": state, "held_usd": Decimal(held),
                    "cost_usd": None if cost is None else Decimal(cost), "day": "2026-11-02",
                    "month": "2026-11-01", "opened_at": NOW, "instance": "i",
                }])  # fmt: skip
    found = paid_attempts(store.database, "acme", list(states), NOW)
    assert {name: one.usd for name, one in found.items()} == {"open": 5, "unknown": 5, "paid": 3}
    assert paid_attempts(store.database, "globex", list(states), NOW) == {}


# Admission.


async def test_a_line_enters_only_when_no_client_waits() -> None:
    queue, order = AdmissionQueue(1, 10), []
    hold = asyncio.Event()

    async def work(name: str, lane: Lane) -> None:
        async with queue.admit(1, SOON, lane):
            order.append(name)
            if name == "first":
                await hold.wait()

    async with asyncio.TaskGroup() as group:
        for name in ("first", "line 1", "line 2", "client 1", "client 2"):
            group.create_task(work(name, "batch" if "line" in name else "interactive"))
            await asyncio.sleep(0)
        assert (queue.active, queue.queued) == (1, 2)
        hold.set()
    assert order == ["first", "client 1", "client 2", "line 1", "line 2"]
    assert queue.active == 0


async def test_lines_are_not_counted_against_the_queue_of_clients() -> None:
    queue = AdmissionQueue(1, 1)
    async with queue.admit(1, SOON):
        lines = [asyncio.ensure_future(_enter(queue, "batch")) for _ in range(5)]
        await asyncio.sleep(0)
        client = asyncio.ensure_future(_enter(queue, "interactive"))
        await asyncio.sleep(0)
        lines[0].cancel()
    await client
    found = await asyncio.gather(*lines, return_exceptions=True)
    assert [type(one) for one in found] == [asyncio.CancelledError, *[type(None)] * 4]
    assert queue.active == 0


async def test_a_waiting_line_ends_with_its_time_and_with_the_server() -> None:
    queue = AdmissionQueue(1, 1)
    async with queue.admit(1, SOON):
        with pytest.raises(DeadlineExceeded):
            await _enter(queue, "batch", Deadline.after(0.01))
        line = asyncio.ensure_future(_enter(queue, "batch"))
        await asyncio.sleep(0)
        drained = asyncio.ensure_future(queue.drain(5.0))
        with pytest.raises(ShuttingDown):
            await line
    await drained
    assert queue.active == 0


async def test_the_lane_is_narrow_beside_clients_and_closed_while_they_wait() -> None:
    settings = BatchSettings(
        max_concurrent_lines=50, busy_concurrent_lines=8, quiet_s=0.05, max_queue_delay_s=0.01
    )
    queue, now_s = AdmissionQueue(1, 10), 0.0
    slack = Slack(settings, [queue, AdmissionQueue(1, 1)], lambda: now_s)
    assert slack.limit() == 50
    async with queue.admit(1, SOON):
        assert slack.limit() == 8
        late = asyncio.ensure_future(_enter(queue, "interactive"))
        await asyncio.sleep(0.02)
        assert slack.limit() == 0
    await late
    limits = []
    for _ in range(4):
        now_s += 1.0
        async with queue.admit(1, SOON):
            limits.append(slack.limit())
    assert limits == [4, 5, 6, 7]
    await asyncio.sleep(0.06)
    assert slack.limit() == 50


async def test_a_check_breathes_beside_clients_and_not_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("serving.batch.slack.time.sleep", slept.append)
    queue = AdmissionQueue(1, 1)
    slack = Slack(BatchSettings(), [queue])
    slack.breathe(0.002)
    assert slept == []
    async with queue.admit(1, SOON):
        slack.breathe(0.002)
        slack.breathe(1.0)
    assert slept == [0.006, 0.05]


async def _enter(queue: AdmissionQueue, lane: Lane, deadline: Deadline = SOON) -> None:
    async with queue.admit(1, deadline, lane):
        pass


async def test_a_batch_that_the_database_refuses_is_not_tried_again_at_once(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As without a right, or with a full disk: other batches and the database go on."""
    monkeypatch.setattr("serving.batch.scheduler._AFTER_FAILURE_S", 3600.0)
    checked, refused, was_refused = BatchStore.checked, [], asyncio.Event()
    loop = asyncio.get_running_loop()

    def refusing(store: BatchStore, batch: str, *arguments: Any, **more: Any) -> None:
        if not refused or batch in refused:
            refused.append(batch)
            loop.call_soon_threadsafe(was_refused.set)
            raise LedgerUnavailable("no right")
        checked(store, batch, *arguments, **more)

    monkeypatch.setattr(BatchStore, "checked", refusing)
    await gateway.submit(questions(1))
    async with asyncio.timeout(GUARD_S):
        await was_refused.wait()
    assert (await gateway.ended(await gateway.submit(questions(3)))).status == "completed"
    assert len(refused) == 1
