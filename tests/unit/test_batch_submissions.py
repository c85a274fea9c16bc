"""Lines in a provider's batch cost half, are sent once, and are taken in once."""

# ruff: noqa: ASYNC110  # it waits for what another thread says

import asyncio
import errno
import io
import os
import resource
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, NotFoundError
from pydantic import SecretStr
from rich.console import Console
from sqlalchemy import delete, update

from serving.batch.openai_batches import OpenAIBatches
from serving.batch.schema import batch_files
from serving.batch.store import LeaseLost
from serving.batch.submission_store import SubmissionStore
from serving.contracts.batch_settings import BatchSettings
from serving.ledger.access.tenants import update_tenant
from serving.ledger.reports.build import build_report
from serving.ledger.reports.page import render_page
from serving.ledger.reports.query import Scope
from serving.ledger.reports.reconcile import reconcile
from serving.ledger.reports.text import print_report

from ..provider.script import BatchOperation, BatchPlan, Fault, Seen
from ..provider.server import ProviderServer
from .batch_gateway import KEY_VALUE, KEY_VARIABLE, Running, running
from .batch_kit import chat_line, jsonl
from .ledger_rows import UTC_ZONE
from .patience import GUARD_S
from .test_batch_scheduler import questions, settled_rows

FAST = {"provider_poll_s": 0.2}


@pytest.fixture
async def gateway(
    provider: ProviderServer, state: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Running]:
    monkeypatch.setenv(KEY_VARIABLE, KEY_VALUE)
    scripted(provider)
    async with running(provider, state, None, has_batches=True, batch=FAST) as found:
        yield found


def scripted(provider: ProviderServer) -> None:
    provider.script.answer = lambda seen: f"answer to {seen.body['messages'][-1]['content']}"


def asked(provider: ProviderServer) -> Counter[str]:
    """Return how often the provider answered each question."""
    return Counter(
        seen.body["messages"][-1]["content"]
        for seen in provider.script.seen
        if seen.billed is not None
    )


async def until_asked(provider: ProviderServer, operation: BatchOperation) -> None:
    """Return when the provider's batch API was asked for an operation."""
    async with asyncio.timeout(GUARD_S):
        while operation not in [name for name, _ in provider.script.batch_requests]:
            await asyncio.sleep(0.05)


def answers(found: dict[str, dict[str, Any]]) -> list[str]:
    return [
        line["response"]["body"]["choices"][0]["message"]["content"]
        for line in found.values()
        if line["response"] is not None and line["response"]["status_code"] == 200
    ]


async def test_lines_go_into_one_provider_batch_at_half_price(
    gateway: Running, provider: ProviderServer
) -> None:
    provider.script.next_batch(BatchPlan(duplicated=3))
    batch = await gateway.ended(await gateway.submit(questions(20)))
    assert batch.status == "completed"
    found = await gateway.results(batch)
    assert sorted(answers(found)) == sorted(f"answer to question {n}" for n in range(20))
    assert {line["response"]["body"]["model"] for line in found.values()} == {"openai/gpt-4.1"}
    # In our shape: the provider's own has other fields.
    usages = [line["response"]["body"]["usage"] for line in found.values()]
    shapes = {frozenset(usage["prompt_tokens_details"]) for usage in usages}
    assert shapes == {frozenset({"cached_tokens", "cache_write_tokens"})}
    assert set(asked(provider).values()) == {1}
    assert len({seen.batch_id for seen in provider.script.seen}) == 1
    assert [name for name, _ in provider.script.batch_requests].count("create") == 1
    rows = await settled_rows(gateway.database)
    assert len(rows) == 20
    assert {(row.lane, row.route, row.service_tier) for row in rows} == {
        ("batch", "frontier", "batch")
    }
    # The same question synchronously costs twice as much.
    await gateway.acme.chat.completions.create(
        model="openai/gpt-4.1", messages=[{"role": "user", "content": "question 7"}]
    )
    rows = await settled_rows(gateway.database)
    online = [row for row in rows if row.lane == "interactive"]
    paid = {row.paid_usd for row in rows if row.lane == "batch"}
    assert online[0].paid_usd / 2 in paid
    assert await asyncio.to_thread(reconcile, gateway.database) == []


@pytest.mark.parametrize("deadline", ["24h", "1h"])
async def test_the_report_has_the_cost_of_each_purpose(
    provider: ProviderServer,
    state: Path,
    ledger_url: SecretStr | None,
    monkeypatch: pytest.MonkeyPatch,
    deadline: str,
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY_VALUE)
    scripted(provider)
    began = datetime.now(UTC) - timedelta(minutes=1)
    async with running(provider, state, ledger_url, has_batches=True, batch=FAST) as gateway:
        metadata = {"deadline": deadline, "purpose": "nightly-labels"}
        named = await gateway.ended(await gateway.submit(questions(4), metadata=metadata))
        plain = await gateway.ended(
            await gateway.submit(questions(2), metadata={"deadline": deadline})
        )
        await gateway.acme.chat.completions.create(
            model="openai/gpt-4.1", messages=[{"role": "user", "content": "Now."}]
        )
        rows = await settled_rows(gateway.database)
        scope = Scope(began, datetime.now(UTC) + timedelta(minutes=1), "acme")
        report = await asyncio.to_thread(build_report, gateway.database, scope, UTC_ZONE)
    assert {seen.batch_id is None for seen in provider.script.seen[:6]} == {deadline == "1h"}
    found = {part.name: part for part in report.input_purposes}
    assert {name: part.exits for name, part in found.items()} == {
        "nightly-labels": 4, "request": 3,
    }  # fmt: skip
    cost = Decimal(named.model_extra["narrowgate"]["cost_usd"])  # type: ignore[index]
    assert found["nightly-labels"].cost_usd == cost > 0
    assert plain.metadata is not None
    assert sum(part.cost_usd for part in report.input_purposes) == sum(row.paid_usd for row in rows)
    out = io.StringIO()
    print_report(report, Console(file=out, width=200))
    assert "nightly-labels" in out.getvalue()
    assert "nightly-labels" in render_page(report)


async def test_a_lost_answer_to_the_creation_sends_nothing_twice(
    gateway: Running, provider: ProviderServer
) -> None:
    provider.script.on_batch("create", Fault("status", 502, worked=True))
    batch = await gateway.ended(await gateway.submit(questions(5)))
    assert batch.status == "completed"
    assert len(answers(await gateway.results(batch))) == 5
    assert set(asked(provider).values()) == {1}


async def test_lines_whose_submission_was_never_sent_go_back_to_the_plan_at_once(
    gateway: Running, provider: ProviderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    intend, stopped = SubmissionStore.intend, list[str]()

    def stops_once(store: SubmissionStore, holder: str, submission: str) -> None:
        if not stopped:
            stopped.append(submission)
            raise LeaseLost
        intend(store, holder, submission)

    monkeypatch.setattr(SubmissionStore, "intend", stops_once)
    batch = await gateway.ended(await gateway.submit(questions(5)))
    assert len(stopped) == 1
    assert len(answers(await gateway.results(batch))) == 5
    assert [name for name, _ in provider.script.batch_requests].count("create") == 1
    rows = await settled_rows(gateway.database)
    assert sum(row.paid_usd > 0 for row in rows) == 5
    assert sum(row.hold_usd for row in rows) == 0


async def test_a_refused_creation_is_repeated(gateway: Running, provider: ProviderServer) -> None:
    provider.script.next_batch(
        BatchPlan(ends="failed", code="invalid_request", message="not this one")
    )
    batch = await gateway.ended(await gateway.submit(questions(3)))
    assert batch.status == "completed"
    found = await gateway.results(batch)
    assert {line["response"]["status_code"] for line in found.values()} == {400}
    rows = await settled_rows(gateway.database)
    assert sum(row.paid_usd for row in rows) == 0
    assert sum(row.hold_usd for row in rows) == 0


async def test_what_a_provider_did_not_answer_goes_back_to_the_plan(
    gateway: Running, provider: ProviderServer
) -> None:
    provider.script.next_batch(BatchPlan(ends="expired", answered=0.5), BatchPlan())
    batch = await gateway.ended(await gateway.submit(questions(10)))
    assert batch.status == "completed"
    assert len(answers(await gateway.results(batch))) == 10
    assert asked(provider) == Counter(f"question {n}" for n in range(10))
    rows = await settled_rows(gateway.database)
    assert sum(row.paid_usd > 0 for row in rows) == 10
    assert sum(row.hold_usd for row in rows) == 0


async def test_lines_of_batches_that_are_cancelled_at_the_provider_are_sent_again_a_few_times(
    gateway: Running, provider: ProviderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.batch.submissions._PAUSE_S", 0.1)
    provider.script.batch_plan = BatchPlan(ends="cancelled", answered=0.0)
    batch = await gateway.ended(await gateway.submit(questions(3)))
    assert batch.status == "completed"
    found = await gateway.results(batch)
    codes = {line["response"]["body"]["error"]["code"] for line in found.values()}
    assert (len(found), codes) == (3, {"frontier_unavailable"})
    creations = [name for name, _ in provider.script.batch_requests].count("create")
    assert creations == BatchSettings().max_attempts
    rows = await settled_rows(gateway.database)
    assert sum(row.paid_usd for row in rows) == sum(row.hold_usd for row in rows) == 0


@pytest.mark.parametrize("status", [429, 500, 400])
async def test_a_line_that_the_provider_refused_is_repeated_as_one_that_runs_here(
    gateway: Running, provider: ProviderServer, status: int
) -> None:
    refused: list[str] = []

    def once(seen: Seen) -> Fault | None:
        if refused:
            return None
        refused.append(seen.text)
        return Fault("status", status, message="not now")

    provider.script.line_fault = once
    batch = await gateway.ended(await gateway.submit(questions(3)))
    found = await gateway.results(batch)
    assert len(answers(found)) == (2 if status == 400 else 3)
    assert set(asked(provider).values()) == {1}
    rows = await settled_rows(gateway.database)
    assert sum(row.hold_usd for row in rows) == 0


PAGE = Fault("raw", 200, headers={"content-type": "text/html"}, body=(b"<html>Welcome</html>",))


@pytest.mark.parametrize("late", ["files", "results"])
async def test_results_that_come_late_are_waited_for_and_not_deleted_before(
    gateway: Running, provider: ProviderServer, late: str
) -> None:
    if late == "files":
        provider.script.next_batch(BatchPlan(late_files=4))
    else:
        # A proxy answers in the provider's place, as often as one reading asks.
        provider.script.on_batch("results", PAGE, PAGE, PAGE, None)
    batch = await gateway.ended(await gateway.submit(questions(4)))
    assert len(answers(await gateway.results(batch))) == 4
    assert set(asked(provider).values()) == {1}
    rows = await settled_rows(gateway.database)
    assert sum(row.paid_usd > 0 for row in rows) == 4
    assert sum(row.hold_usd for row in rows) == 0
    assert await asyncio.to_thread(reconcile, gateway.database) == []


async def test_results_that_never_come_are_unknown_and_stay_at_the_provider(
    gateway: Running, provider: ProviderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.batch.submissions._INCOMPLETE_FOR", timedelta(seconds=0.5))
    provider.script.next_batch(BatchPlan(late_files=1000))
    batch = await gateway.ended(await gateway.submit(questions(2)))
    found = await gateway.results(batch)
    assert {line["error"]["code"] for line in found.values()} == {"outcome_unknown"}
    rows = await settled_rows(gateway.database)
    assert sum(row.hold_usd > 0 for row in rows) == 2
    # The uploaded lines too: they are forgotten with the results.
    assert "file" not in [name for name, _ in provider.script.batch_requests]


@pytest.mark.parametrize("errors", [{"data": 5}, {"data": True}, {"data": [3]}, 7, [], "no"])
async def test_an_odd_document_of_one_batch_keeps_no_other_waiting(
    gateway: Running, provider: ProviderServer, errors: Any
) -> None:
    provider.script.next_batch(BatchPlan(ends="failed", errors=errors))
    first = await gateway.submit(questions(2))
    await until_asked(provider, "create")
    second = await gateway.ended(await gateway.submit(questions(3), "globex"), "globex")
    assert len(answers(await gateway.results(second, "globex"))) == 3
    await gateway.ended(first)


async def test_a_defect_of_one_submission_keeps_no_other_waiting(
    gateway: Running, provider: ProviderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, broken = OpenAIBatches.state, list[str]()

    async def breaks(batches: OpenAIBatches, batch_id: str) -> Any:
        broken.append(batch_id)
        if batch_id == broken[0]:
            raise TypeError("a defect")
        return await state(batches, batch_id)

    monkeypatch.setattr(OpenAIBatches, "state", breaks)
    await gateway.submit(questions(2))
    async with asyncio.timeout(GUARD_S):
        while not broken:
            await asyncio.sleep(0.05)
    second = await gateway.ended(await gateway.submit(questions(3), "globex"), "globex")
    assert len(answers(await gateway.results(second, "globex"))) == 3


@pytest.mark.parametrize("lane", ["provider", "own"])
async def test_a_file_whose_time_ends_stays_as_long_as_its_batch_needs_it(
    gateway: Running, provider: ProviderServer, lane: str
) -> None:
    provider.script.next_batch(BatchPlan(seconds=2.0))
    deadline = "24h" if lane == "provider" else "1h"
    batch = await gateway.submit(questions(40), metadata={"deadline": deadline})

    def expire(file: str | None = batch.input_file_id) -> None:
        with gateway.database.begin() as connection:
            connection.execute(
                update(batch_files).where(batch_files.c.id == file)
                .values(expires_at=datetime.now(UTC) - timedelta(hours=1))
            )  # fmt: skip

    await asyncio.to_thread(expire)
    listed = [file.id async for file in gateway.acme.files.list()]
    assert batch.input_file_id in listed
    batch = await gateway.ended(batch)
    assert len(answers(await gateway.results(batch))) == 40
    with pytest.raises(NotFoundError):
        await gateway.acme.files.retrieve(batch.input_file_id)


@pytest.mark.parametrize("lane", ["provider", "own"])
async def test_a_batch_whose_file_is_gone_ends_and_keeps_no_other_waiting(
    gateway: Running, provider: ProviderServer, lane: str
) -> None:
    provider.script.next_batch(BatchPlan(seconds=1.0))
    deadline = "24h" if lane == "provider" else "1h"
    batch = await gateway.submit(questions(200), metadata={"deadline": deadline})

    def remove(file: str | None = batch.input_file_id) -> None:
        with gateway.database.begin() as connection:
            connection.execute(delete(batch_files).where(batch_files.c.id == file))

    await asyncio.to_thread(remove)
    second = await gateway.ended(await gateway.submit(questions(3), "globex"), "globex")
    assert len(answers(await gateway.results(second, "globex"))) == 3
    first = await gateway.ended(batch)
    assert first.status in ("completed", "failed")


async def test_lines_that_the_provider_counts_as_not_run_go_back_to_the_plan(
    gateway: Running, provider: ProviderServer
) -> None:
    provider.script.next_batch(
        BatchPlan(ends="expired", answered=0.5, omits_unrun=True), BatchPlan()
    )
    batch = await gateway.ended(await gateway.submit(questions(10)))
    assert len(answers(await gateway.results(batch))) == 10
    assert asked(provider) == Counter(f"question {n}" for n in range(10))
    rows = await settled_rows(gateway.database)
    assert sum(row.hold_usd for row in rows) == 0


async def test_an_upload_that_the_disk_refuses_is_a_503_and_leaves_nothing(
    gateway: Running, state: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    client = gateway.acme.with_options(max_retries=0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * 2**20, before[1]))
    try:
        with pytest.raises(APIStatusError) as caught:
            await client.files.create(file=("in.jsonl", b"x" * 5 * 2**20), purpose="batch")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (caught.value.status_code, caught.value.code) == (503, "storage_unavailable")
    assert str(state) not in str(caught.value.body)
    assert list((state / "files").rglob(".part-*")) == []
    await client.files.create(file=("in.jsonl", b"x" * 5 * 2**20), purpose="batch")


async def test_results_wait_for_a_disk_that_is_full(
    gateway: Running, provider: ProviderServer, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, state: Path,
) -> None:  # fmt: skip
    monkeypatch.setattr("serving.batch.scheduler._DEFECT_PAUSE", timedelta(seconds=0.5))
    batch = await gateway.submit(questions(3))
    refused: list[int] = []

    def full(file: int) -> None:
        refused.append(file)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("serving.batch.blobs.os.fsync", full)
        async with asyncio.timeout(GUARD_S):
            while len(refused) < 3:
                await asyncio.sleep(0.05)
    delayed = [line for line in caplog.messages if line.startswith("batch.delayed")]
    assert len(delayed) <= len(refused) <= len(delayed) + 1
    assert "No space left" in delayed[0]
    batch = await gateway.ended(batch)
    assert len(answers(await gateway.results(batch))) == 3
    assert set(asked(provider).values()) == {1}
    assert list((state / "files").rglob(".part-*")) == []


async def test_lines_of_a_provider_that_was_removed_end_as_unknown_after_its_window(
    provider: ProviderServer,
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY_VALUE)
    scripted(provider)
    provider.script.next_batch(BatchPlan(seconds=600.0))
    async with running(provider, state, None, has_batches=True, batch=FAST) as first:
        batch = await first.submit(questions(3))
        await until_asked(provider, "state")
    async with running(provider, state, None, has_batches=False, batch=FAST, again=True) as second:
        async with asyncio.timeout(GUARD_S):
            while not any("batch.provider_removed" in line for line in caplog.messages):
                await asyncio.sleep(0.05)
        assert (await second.acme.batches.retrieve(batch.id)).status == "in_progress"
        monkeypatch.setattr("serving.batch.submissions.WINDOW_S", -3600.0)
        found = await second.results(await second.ended(batch))
        rows = await settled_rows(second.database)
    assert {line["error"]["code"] for line in found.values()} == {"outcome_unknown"}
    assert sum(row.hold_usd > 0 for row in rows) == 3
    assert sum("batch.provider_removed" in line for line in caplog.messages) == 1


async def test_a_clients_own_request_id_is_no_lines(
    gateway: Running, provider: ProviderServer
) -> None:
    provider.script.next_batch(BatchPlan(seconds=3.0))
    batch = await gateway.submit(questions(1))
    await until_asked(provider, "state")
    await gateway.acme.chat.completions.create(
        model="openai/gpt-4.1",
        messages=[{"role": "user", "content": "Something else, and longer."}],
        extra_headers={"x-request-id": f"{batch.id}_1_1"},
    )
    await gateway.ended(batch)
    rows = await settled_rows(gateway.database)
    assert sorted((row.lane, row.state) for row in rows) == [
        ("batch", "closed"), ("interactive", "closed"),
    ]  # fmt: skip
    assert {row.request_id for row in rows} == {f"{batch.id}_1_1"}
    assert sum(row.hold_usd for row in rows) == 0


async def test_a_short_deadline_is_met_synchronously(
    gateway: Running, provider: ProviderServer
) -> None:
    batch = await gateway.submit(questions(3), metadata={"deadline": "1h"})
    batch = await gateway.ended(batch)
    assert len(answers(await gateway.results(batch))) == 3
    assert {seen.batch_id for seen in provider.script.seen} == {None}


async def test_cancelling_cancels_at_the_provider_and_keeps_what_was_billed(
    gateway: Running, provider: ProviderServer
) -> None:
    provider.script.next_batch(BatchPlan(answered=0.5, polls=1000))
    batch = await gateway.submit(questions(10))
    await until_asked(provider, "state")
    await gateway.acme.batches.cancel(batch.id)
    batch = await gateway.ended(batch)
    assert batch.status == "cancelled"
    found = await gateway.results(batch)
    assert len(found) == 10
    assert len(answers(found)) == len(asked(provider))
    codes = {line["error"]["code"] for line in found.values() if line["error"]}
    assert codes <= {"batch_cancelled"}
    rows = await settled_rows(gateway.database)
    assert sum(row.hold_usd for row in rows) == 0


async def test_the_budget_holds_the_worst_case_of_each_line(
    gateway: Running, provider: ProviderServer
) -> None:
    one = await gateway.ended(await gateway.submit(questions(1, max_tokens=10)))
    cost = Decimal(one.model_extra["narrowgate"]["cost_usd"])  # type: ignore[index]
    limit = round(cost * 8, 12)
    await asyncio.to_thread(update_tenant, gateway.database, "acme", {"day_usd": limit})
    batch = await gateway.ended(await gateway.submit(questions(30, max_tokens=10)))
    assert batch.status == "cancelled"
    found = await gateway.results(batch)
    assert len(found) == 30
    assert 0 < len(answers(found)) < 30
    rows = await settled_rows(gateway.database)
    assert sum(row.paid_usd for row in rows) <= limit
    assert sum(row.hold_usd for row in rows) == 0


async def test_a_batch_that_was_made_while_the_gateway_stopped_is_found_by_asking_the_provider(
    provider: ProviderServer, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY_VALUE)
    scripted(provider)
    provider.script.on_batch("create", Fault("hang", worked=True))
    async with running(provider, state, None, has_batches=True, batch=FAST) as first:
        batch = await first.submit(questions(8))
        await until_asked(provider, "create")
    async with running(provider, state, None, has_batches=True, batch=FAST, again=True) as second:
        batch = await second.ended(batch)
        assert len(answers(await second.results(batch))) == 8
        rows = await settled_rows(second.database)
        assert sum(row.hold_usd for row in rows) == 0
        assert await asyncio.to_thread(reconcile, second.database) == []
    assert set(asked(provider).values()) == {1}
    assert [name for name, _ in provider.script.batch_requests].count("create") == 1


async def test_another_gateway_takes_the_results_in(
    provider: ProviderServer, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY_VALUE)
    scripted(provider)
    provider.script.next_batch(BatchPlan(seconds=6.0))
    data = jsonl(*(chat_line(f"c{n}", f"question {n}") for n in range(8)))
    async with running(provider, state, None, has_batches=True, batch=FAST) as first:
        batch = await first.submit(data)
        await until_asked(provider, "state")
    async with running(provider, state, None, has_batches=True, batch=FAST, again=True) as second:
        batch = await second.ended(batch)
        assert len(answers(await second.results(batch))) == 8
        rows = await settled_rows(second.database)
        assert [row.state for row in rows] == ["closed"] * 8
        assert sum(row.hold_usd for row in rows) == 0
        assert await asyncio.to_thread(reconcile, second.database) == []
    assert set(asked(provider).values()) == {1}
