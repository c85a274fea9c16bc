"""What /metrics and the alerts know of batches."""

# ruff: noqa: ASYNC110  # it waits for what another thread says

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.cli import run_program
from serving.commands import batch as batch_command
from serving.ledger.access.keys import create_key

from ..provider.script import BatchPlan, Fault
from ..provider.server import ProviderServer
from .batch_gateway import KEY_VALUE, KEY_VARIABLE, Running, running
from .batch_kit import chat_line, jsonl
from .patience import GUARD_S
from .test_batch_scheduler import questions


@pytest.fixture
async def gateway(
    provider: ProviderServer, state: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Running]:
    monkeypatch.setenv(KEY_VARIABLE, KEY_VALUE)
    monkeypatch.setattr("serving.batch.scheduler._HELD_EVERY_S", 0.0)
    fast = {"provider_poll_s": 0.2}
    async with running(provider, state, None, has_batches=True, batch=fast) as found:
        yield found


async def overview(gateway: Running) -> tuple[dict[str, Any], str]:
    """Return what the operator is shown of acme over HTTP, and what the command prints."""
    key = await asyncio.to_thread(create_key, gateway.database, None)
    text = key.text.get_secret_value()
    admitted = {"authorization": f"Bearer {text}"}
    path = f"{gateway.url}/v1/admin/batches"
    async with httpx.AsyncClient(timeout=GUARD_S) as client, asyncio.timeout(GUARD_S):
        while (found := await client.get(path, headers=admitted)).status_code != 200:
            await asyncio.sleep(0.1)
        refused = await client.get(path, headers={"x-api-key": gateway.acme.api_key})
        assert refused.status_code == 403
        unknown = await client.get(path, params={"tenat": "acme"}, headers=admitted)
        assert unknown.status_code == 400
    words = ["batch", "status", "--url", gateway.url]
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setenv("NARROWGATE_KEY", text)
        done = asyncio.to_thread(run_program, "narrowgate", "", {"batch": batch_command}, words)
        assert await done == 0
    (acme,) = found.json()["data"]
    return acme, out.getvalue()


async def measured(gateway: Running, name: str) -> dict[str, float]:
    """Return the samples of a metric by their only label, or under an empty name."""
    async with httpx.AsyncClient(base_url=gateway.url, timeout=GUARD_S) as client:
        text = (await client.get("/metrics")).text
    return {
        "".join(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


async def becomes(gateway: Running, name: str, **expected: float) -> None:
    async with asyncio.timeout(GUARD_S):
        while not expected.items() <= (await measured(gateway, name)).items():
            await asyncio.sleep(0.1)


async def test_lines_in_a_providers_batch_are_open_and_held_and_then_counted(
    gateway: Running, provider: ProviderServer
) -> None:
    provider.script.next_batch(BatchPlan(polls=1000))
    batch = await gateway.submit(questions(10))
    await becomes(gateway, "narrowgate_batch_lines_open", submitted=10, waiting=0)
    await becomes(gateway, "narrowgate_batches", in_progress=1)
    assert (await measured(gateway, "narrowgate_batch_held_usd"))[""] > 0
    assert (await measured(gateway, "narrowgate_batch_oldest_seconds"))[""] > 0
    acme, printed = await overview(gateway)
    assert acme["tenant"] == "acme"
    assert (acme["batches"], acme["lines"]) == ({"in_progress": 1}, {"submitted": 10})
    assert float(acme["held_usd"]) > 0
    assert acme["oldest_created_at"] == batch.created_at
    assert (acme["first_deadline"], acme["ended_last_day"]) == (batch.expires_at, {})
    assert "1 in_progress" in printed
    assert "10 submitted" in printed
    await gateway.acme.batches.cancel(batch.id)
    ended = await gateway.ended(batch)
    acme, printed = await overview(gateway)
    assert (acme["batches"], acme["lines"], acme["held_usd"]) == ({}, {}, "0")
    assert acme["ended_last_day"] == {"cancelled": 1}
    assert ended.request_counts is not None
    assert acme["unanswered_last_day"] == ended.request_counts.failed
    assert "1 cancelled" in printed
    ends = await measured(gateway, "narrowgate_batch_lines_total")
    assert ends["succeeded"] + ends["cancelled"] == 10
    assert ends["failed"] == 0
    await becomes(gateway, "narrowgate_batch_lines_open", submitted=0)
    await becomes(gateway, "narrowgate_batches", in_progress=0)


async def test_failed_lines_are_counted_in_both_lanes(
    gateway: Running, provider: ProviderServer
) -> None:
    # In a provider's batch, and asked at once because the deadline leaves no time for one.
    provider.script.line_fault = lambda seen: Fault(
        "status", 400, "invalid_request", "no such thing"
    )
    await gateway.ended(await gateway.submit(questions(4)))
    ends = await measured(gateway, "narrowgate_batch_lines_total")
    assert (ends["failed"], ends["succeeded"]) == (4, 0)
    provider.script.on("gpt-4.1", Fault("status", 400, "invalid_request", "no such thing"))
    lines = jsonl(*(chat_line(f"c{n}") for n in range(3)))
    await gateway.ended(await gateway.submit(lines, metadata={"deadline": "1h"}))
    ends = await measured(gateway, "narrowgate_batch_lines_total")
    assert (ends["failed"], ends["succeeded"]) == (7, 0)
