"""What /metrics and the alerts know of batches."""

# ruff: noqa: ASYNC110  # it waits for what another thread says

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ..provider.script import BatchPlan, Fault
from ..provider.server import ProviderServer
from .batch_gateway import KEY_VALUE, KEY_VARIABLE, Running, running
from .batch_kit import chat_line, jsonl
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


async def measured(gateway: Running, name: str) -> dict[str, float]:
    """Return the samples of a metric by their only label, or under an empty name."""
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        text = (await client.get("/metrics")).text
    return {
        "".join(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


async def becomes(gateway: Running, name: str, **expected: float) -> None:
    async with asyncio.timeout(20):
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
    await gateway.acme.batches.cancel(batch.id)
    await gateway.ended(batch)
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
