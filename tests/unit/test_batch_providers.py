"""Providers' batch APIs over HTTP: every state of a batch, and every fault on its way."""

import asyncio
import json
import logging
import random
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import httpx2
import pytest
from pydantic import SecretStr

from serving.batch.anthropic_batches import AnthropicBatches
from serving.batch.batch_calls import LIST_LAG
from serving.batch.openai_batches import OpenAIBatches
from serving.batch.provider_batches import (
    ProviderBatches,
    ProviderBatchState,
    ProviderLine,
    ProviderLineResult,
    Uncertain,
    checked_spent,
    may_leave_batch,
)
from serving.batch.providers import build_provider_batches
from serving.contracts.answer import Usage
from serving.contracts.errors import (
    FrontierAuthFailed,
    FrontierContextTooLong,
    FrontierError,
    FrontierInvalidResponse,
    FrontierNotConfigured,
    FrontierRateLimited,
    FrontierRejected,
    FrontierTimeout,
    FrontierUnavailable,
    UnsupportedParameter,
)
from serving.contracts.frontier_settings import FrontierSettings, ProviderSettings
from serving.contracts.prices import BATCH, ModelPrices, PriceStep
from serving.frontier.provider_api import WholeAnswer
from serving.frontier.spent import UNKNOWN, RequestFacts, Spent, spent_on
from serving.frontier.usage import TokenLimits
from serving.ledger.pricing.book import PriceBook

from ..provider.billing import billed_classes
from ..provider.script import BatchOperation, BatchPlan, Fault, Reply, ToolCall, rate_limited
from ..provider.server import ProviderServer
from .frontier_kit import (
    ANTHROPIC,
    ENVIRON,
    KEY,
    OPENAI,
    SONNET,
    FlatPrices,
    call,
    dollars_a_million,
    frontier,
    settings,
)
from .patience import GUARD_S

MODELS = {"openai": "gpt-4.1", "anthropic": "claude-sonnet-5-5"}
NOW = datetime.now(UTC)


class Clock:
    """The time, which a test moves."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["openai", "anthropic"])
def vendor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def made(server: ProviderServer | str, vendor: str, clock: Any, **more: Any) -> ProviderBatches:
    address = server if isinstance(server, str) else server.url
    base_url = f"{address}/v1" if vendor == "openai" else address
    named: dict[str, Any] = {
        "api": vendor, "base_url": base_url, "batch": True, "connect_timeout_s": 30.0, **more,
    }  # fmt: skip
    of = OpenAIBatches if vendor == "openai" else AnthropicBatches
    rng = random.Random(1)  # noqa: S311
    return of(vendor, ProviderSettings(**named), SecretStr(KEY), rng, clock)


@pytest.fixture
async def batches(
    provider: ProviderServer, vendor: str, clock: Clock
) -> AsyncIterator[ProviderBatches]:
    one = made(provider, vendor, clock)
    yield one
    await one.aclose()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.batch.batch_calls.wait_s", lambda *_: 0.0)


def lines_of(vendor: str, *keys: str) -> list[ProviderLine]:
    return [
        ProviderLine(
            key,
            {
                "model": MODELS[vendor],
                "messages": [{"role": "user", "content": f"What is {key}?"}],
                "max_tokens": 64,
            },
        )
        for key in keys
    ]


KEYS = tuple(f"line-{n}" for n in range(8))


async def submitted(batches: ProviderBatches, vendor: str, *keys: str, name: str = "b1") -> str:
    return await batches.submit(lines_of(vendor, *(keys or KEYS)), name, MODELS[vendor])


async def final(batches: ProviderBatches, batch_id: str) -> ProviderBatchState:
    for _ in range(6):
        state = await batches.state(batch_id)
        if state.is_final:
            return state
    raise AssertionError(state)


async def results(
    batches: ProviderBatches, batch_id: str, keys: Any = None
) -> list[ProviderLineResult]:
    return [result async for result in batches.results(batch_id, keys)]


def operations(server: ProviderServer, name: BatchOperation) -> int:
    return [operation for operation, _ in server.script.batch_requests].count(name)


async def test_a_round_trip_costs_what_the_provider_bills(
    provider: ProviderServer, batches: ProviderBatches, vendor: str
) -> None:
    provider.script.answer = lambda seen: (
        Reply(calls=(ToolCall("f", {"a": 1}),), finish="tool_calls")
        if seen.custom_id == KEYS[1]
        else Reply(f"Yes, {seen.custom_id}.", reasoning_tokens=3)
    )
    batch_id = await submitted(batches, vendor)
    state = await batches.state(batch_id)
    assert (state.id, state.phase, state.ended_at) == (batch_id, "running", None)
    assert state.counts.total == 8
    state = await final(batches, batch_id)
    assert (state.phase, state.counts.total, state.counts.succeeded) == ("ended", 8, 8)
    assert state.ended_at is not None
    assert abs(state.ended_at - datetime.now(UTC)) < timedelta(minutes=30)
    found = {result.key: result for result in await results(batches, batch_id, KEYS)}
    assert sorted(found) == sorted(KEYS)
    for seen in provider.script.seen:
        result = found[str(seen.custom_id)]
        assert result.kind == "succeeded"
        assert result.document is not None
        assert result.spent.usage == Usage(**billed_classes(seen))
        assert (result.spent.source, result.spent.service_tier) == ("reported", "batch")
        message = result.document["choices"][0]["message"]
        if seen.custom_id == KEYS[1]:
            [made] = message["tool_calls"]
            assert made["function"]["name"] == "f"
        else:
            assert message["content"] == f"Yes, {seen.custom_id}."
    assert len(provider.script.seen) == 8
    assert operations(provider, "create") == 1


async def test_each_line_has_an_error_of_its_own(
    provider: ProviderServer, batches: ProviderBatches, vendor: str
) -> None:
    faults = {
        KEYS[0]: Fault("status", 400, "", "that is not allowed"),
        KEYS[1]: Fault("status", 400, "", "prompt is too long: 300000 tokens"),
        KEYS[2]: Fault("status", 500, "", "oh"),
        KEYS[3]: Fault("status", 429, "rate_limit_exceeded", "slow down"),
    }
    provider.script.line_fault = lambda seen: faults.get(str(seen.custom_id))
    batch_id = await submitted(batches, vendor)
    state = await final(batches, batch_id)
    assert (state.counts.succeeded, state.counts.errored) == (4, 4)
    found = {result.key: result for result in await results(batches, batch_id, KEYS)}
    kinds = [type(found[key].error) for key in KEYS[:4]]
    assert kinds == [
        FrontierRejected,
        FrontierContextTooLong,
        FrontierUnavailable,
        FrontierRateLimited,
    ]
    assert "that is not allowed" in str(found[KEYS[0]].error)
    for key in KEYS[:4]:
        assert (found[key].kind, found[key].document) == ("errored", None)
        assert (found[key].spent.usage, found[key].spent.source) == (None, "reported"), "unbilled"
    assert all(found[key].kind == "succeeded" for key in KEYS[4:])


@pytest.mark.parametrize(("ends", "kind"), [("expired", "expired"), ("cancelled", "cancelled")])
async def test_half_a_batch_is_kept(
    provider: ProviderServer, batches: ProviderBatches, vendor: str, ends: str, kind: str
) -> None:
    if ends == "expired":
        provider.script.next_batch(BatchPlan("expired", answered=0.5))
    else:
        provider.script.next_batch(BatchPlan(polls=99, answered=0.5))
    batch_id = await submitted(batches, vendor)
    if ends == "cancelled":
        await batches.cancel(batch_id)
        await batches.cancel(batch_id)
        assert (await batches.state(batch_id)).phase == "cancelling"
    state = await final(batches, batch_id)
    assert state.phase == kind
    found = {result.key: result for result in await results(batches, batch_id, KEYS)}
    assert [found[key].kind for key in KEYS] == ["succeeded"] * 4 + [kind] * 4
    for key in KEYS[4:]:
        assert found[key].spent.usage is None
        assert isinstance(found[key].error, FrontierUnavailable)
    assert len(provider.script.seen) == 4
    await batches.cancel(batch_id)  # has ended: nothing happens


async def test_openai_refuses_a_file_or_has_a_full_queue(
    provider: ProviderServer, clock: Clock
) -> None:
    batches = made(provider, "openai", clock)
    batch_id = await submitted(batches, "openai", "a", "a")
    state = await final(batches, batch_id)
    assert (state.phase, state.is_retryable) == ("failed", False)
    assert "custom_id was used before" in str(state.error)
    assert await results(batches, batch_id, ["a"]) == []
    full = BatchPlan("failed", "token_limit_exceeded", f"Enqueued token limit reached for {KEY}")
    provider.script.next_batch(full)
    state = await final(batches, await submitted(batches, "openai"))
    assert (state.phase, state.is_retryable) == ("failed", True)
    assert "token limit" in str(state.error)
    assert KEY not in str(state.error)
    assert provider.script.seen == []
    await batches.aclose()


@pytest.mark.parametrize(
    ("fault", "error", "leaves"),
    [
        (rate_limited("7"), FrontierRateLimited, False),
        (Fault("status", 400, "", "no"), FrontierRejected, False),
        (Fault("status", 401, "", "no"), FrontierAuthFailed, False),
        (Fault("status", 500, "", "no"), FrontierUnavailable, True),
        (Fault("status", 307, "", "no"), FrontierUnavailable, True),
        (Fault("hang_up"), FrontierInvalidResponse, True),
        (Fault("hang_up", worked=True), FrontierInvalidResponse, True),
        (Fault("truncated"), FrontierInvalidResponse, True),
        (Fault("html"), FrontierInvalidResponse, True),
        (Fault("hang"), FrontierTimeout, True),
    ],
)
async def test_a_submission_is_sent_once(
    provider: ProviderServer,
    vendor: str,
    clock: Clock,
    fault: Fault,
    error: type[FrontierError],
    leaves: bool,
) -> None:
    patience = {"first_byte_timeout_s": 0.5} if fault.kind == "hang" else {}
    batches = made(provider, vendor, clock, **patience)
    provider.script.on_batch("create", fault)
    began = clock()
    with pytest.raises(error) as caught:
        await submitted(batches, vendor)
    assert may_leave_batch(caught.value) == leaves
    assert KEY not in str(caught.value)
    created = operations(provider, "create")
    found = await batches.find("b1", began, KEYS)
    if created and vendor == "openai":
        assert isinstance(found, str)
    elif created:
        assert isinstance(found, Uncertain)
        assert len(found.candidates) == 1
    else:
        assert found == Uncertain()
    if fault.status == 429 and fault.kind == "status":
        assert caught.value.retry_after_s == 7
    # Nothing was repeated, and nothing of a definite refusal is left behind.
    assert operations(provider, "create") <= 1
    if vendor == "openai" and not leaves:
        assert operations(provider, "file") == 1, "the uploaded lines were deleted"
    await batches.aclose()


async def test_an_unreached_provider_has_no_batch(clock: Clock, vendor: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    batches = made(address, vendor, clock, max_retries=0)
    with pytest.raises(FrontierUnavailable) as caught:
        await submitted(batches, vendor)
    assert not may_leave_batch(caught.value)
    await batches.aclose()


async def test_an_upload_is_repeated(provider: ProviderServer, clock: Clock) -> None:
    batches = made(provider, "openai", clock)
    provider.script.on_batch("upload", Fault("status", 503), Fault("hang_up"))
    batch_id = await submitted(batches, "openai")
    assert (await final(batches, batch_id)).phase == "ended"
    assert operations(provider, "create") == 1
    await batches.aclose()


async def test_after_a_crash_openais_metadata_name_the_batch(
    provider: ProviderServer, clock: Clock
) -> None:
    batches = made(provider, "openai", clock)
    began = clock()
    first = await submitted(batches, "openai", name="first")
    for n in range(120):
        await submitted(batches, "openai", "a", name=f"other-{n}")
    assert await batches.find("first", began, KEYS) == first, "on the second page"
    assert await batches.find("fir", began, KEYS) == Uncertain()
    clock.ahead = LIST_LAG + timedelta(seconds=1)
    assert await batches.find("none", began, KEYS) is None
    assert await batches.find("first", began, KEYS) == first
    await batches.aclose()


async def test_a_list_that_does_not_turn_its_pages_proves_nothing_and_is_not_asked_for_ever(
    provider: ProviderServer, batches: ProviderBatches, vendor: str, clock: Clock
) -> None:
    began = clock()
    page = {
        "openai": [{"id": f"batch_{n}"} for n in range(100)],
        "anthropic": [
            {"id": f"msgbatch_{n}", "processing_status": "ended", "request_counts": {}}
            for n in range(100)
        ],
    }
    body = json.dumps({"data": page[vendor], "has_more": True}).encode()
    headers = {"content-type": "application/json"}
    same = Fault("raw", 200, headers=headers, body=(body,))
    provider.script.on_batch("list", *[same] * 200)
    clock.ahead = LIST_LAG + timedelta(seconds=1)
    with suppress(FrontierInvalidResponse):
        assert await batches.find("b1", began, KEYS) == Uncertain()
    assert 2 <= 200 - len(provider.script.batch_faults["list"]) <= 3


async def test_a_list_that_lags_does_not_prove_absence(
    provider: ProviderServer, batches: ProviderBatches, vendor: str, clock: Clock
) -> None:
    provider.script.next_batch(BatchPlan(unlisted=2))
    provider.script.on_batch("create", Fault("hang_up", worked=True))
    began = clock()
    with pytest.raises(FrontierInvalidResponse):
        await submitted(batches, vendor)
    for _ in range(2):
        assert await batches.find("b1", began, KEYS) == Uncertain()
    found = await batches.find("b1", began, KEYS)
    batch_id = found if isinstance(found, str) else str(getattr(found, "candidates", [None])[0])
    await final(batches, batch_id)
    assert await batches.find("b1", began, KEYS) == batch_id
    assert operations(provider, "create") == 1


async def test_anthropics_results_tell_whose_a_batch_is(
    provider: ProviderServer, clock: Clock
) -> None:
    batches = made(provider, "anthropic", clock)
    began = clock()
    mine = await submitted(batches, "anthropic", "a", "b")
    alike = await submitted(batches, "anthropic", "c", "d")
    await submitted(batches, "anthropic", "e")
    found = await batches.find("x", began, ["a", "b"])
    assert found == Uncertain((alike, mine))
    assert await batches.find("x", began, ["a", "b"], known=[alike]) == Uncertain((mine,))
    await final(batches, alike)
    clock.ahead = LIST_LAG + timedelta(seconds=1)
    assert await batches.find("x", began, ["a", "b"]) == Uncertain((mine,)), "it may be the one"
    await final(batches, mine)
    assert await batches.find("x", began, ["a", "b"]) == mine
    # All of that size have ended, and none has these keys.
    assert await batches.find("x", began, ["g", "h"]) is None
    clock.ahead = timedelta(hours=3)
    assert await batches.find("x", began + timedelta(hours=2), ["a", "b"]) is None
    assert await batches.find("x", began - timedelta(hours=2), ["a", "b"]) is None
    provider.script.on_batch("results", Fault("cut"))
    assert await batches.find("x", began, ["g", "h"]) in (None, Uncertain((alike,)))
    await batches.aclose()


async def test_a_batch_may_be_lost_for_a_time(
    provider: ProviderServer, batches: ProviderBatches, vendor: str
) -> None:
    provider.script.next_batch(BatchPlan(lost=2))
    batch_id = await submitted(batches, vendor)
    for _ in range(2):
        state = await batches.state(batch_id)
        assert (state.phase, state.is_final) == ("missing", False)
    await batches.cancel("batch_of_nobody")
    assert (await final(batches, batch_id)).phase == "ended"
    assert (await batches.state("batch_of_nobody")).phase == "missing"
    with pytest.raises(FrontierInvalidResponse, match=r"batch_of_nobody|not found"):
        await results(batches, "batch_of_nobody")


async def test_results_are_unordered_repeated_and_of_strangers(
    provider: ProviderServer,
    batches: ProviderBatches,
    vendor: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider.script.next_batch(BatchPlan(duplicated=3, strangers=2))
    batch_id = await submitted(batches, vendor)
    await final(batches, batch_id)
    with caplog.at_level(logging.WARNING):
        keys = [result.key for result in await results(batches, batch_id, KEYS)]
    assert sorted(keys) == sorted(KEYS), "each once"
    assert keys != list(KEYS)
    [record] = caplog.records
    assert "batch.results_unknown" in record.message
    assert "lines=2" in record.message


@pytest.mark.parametrize("fault", [Fault("cut"), Fault("truncated"), Fault("status", 503)])
async def test_results_that_break_off_are_read_again(
    provider: ProviderServer, batches: ProviderBatches, vendor: str, fault: Fault
) -> None:
    batch_id = await submitted(batches, vendor)
    await final(batches, batch_id)
    provider.script.on_batch("results", fault, fault)
    for keys in (KEYS, None):
        found = await results(batches, batch_id, keys)
        assert sorted(result.key for result in found) == sorted(KEYS)
        assert {result.kind for result in found} == {"succeeded"}
        provider.script.on_batch("results", fault)


async def test_results_that_stay_broken(
    provider: ProviderServer,
    batches: ProviderBatches,
    vendor: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    batch_id = await submitted(batches, vendor)
    await final(batches, batch_id)
    provider.script.on_batch("results", *[Fault("cut")] * 3)
    taken: list[str] = []

    async def take() -> None:
        async for result in batches.results(batch_id, KEYS):
            taken.append(result.key)

    with pytest.raises(FrontierInvalidResponse):
        await take()
    assert 0 < len(taken) < 8
    provider.script.on_batch("results", *[Fault("truncated")] * 3)
    with caplog.at_level(logging.WARNING):
        found = await results(batches, batch_id, KEYS)
    assert 0 < len(found) < 8
    assert "batch.results_incomplete" in caplog.text
    assert len(await results(batches, batch_id, KEYS)) == 8


async def test_a_reader_may_leave_early(
    provider: ProviderServer, batches: ProviderBatches, vendor: str
) -> None:
    keys = [f"line-{n}" for n in range(300)]
    batch_id = await submitted(batches, vendor, *keys)
    await final(batches, batch_id)
    reading: Any = batches.results(batch_id, keys)
    async with aclosing(reading):
        await anext(reading)
    assert len(await results(batches, batch_id, keys)) == 300


async def test_a_batch_that_was_taken_in_is_forgotten(
    provider: ProviderServer, batches: ProviderBatches, vendor: str
) -> None:
    provider.script.next_batch(BatchPlan("expired", answered=0.5))
    batch_id = await submitted(batches, vendor)
    await batches.forget(batch_id)
    await final(batches, batch_id)
    assert len(await results(batches, batch_id, KEYS)) == 8, "it was not final"
    await batches.forget(batch_id)
    with pytest.raises(FrontierInvalidResponse):
        await results(batches, batch_id, KEYS)
    if vendor == "openai":
        deleted = [id_ for name, id_ in provider.script.batch_requests if name == "file"]
        assert len(deleted) == 3
    else:
        assert (await batches.state(batch_id)).phase == "missing"
    await batches.forget(batch_id)


async def test_a_late_state_is_asked_again(
    provider: ProviderServer, batches: ProviderBatches, vendor: str
) -> None:
    batch_id = await submitted(batches, vendor)
    provider.script.on_batch("state", Fault("status", 503), Fault("hang_up"))
    assert (await batches.state(batch_id)).phase == "running"
    provider.script.on_batch("state", *[Fault("malformed")] * 3)
    with pytest.raises(FrontierInvalidResponse):
        await batches.state(batch_id)


async def test_a_redirect_is_not_followed(
    provider: ProviderServer, batches: ProviderBatches, vendor: str
) -> None:
    batch_id = await submitted(batches, vendor)
    elsewhere = {"location": f"{provider.url}/elsewhere"}
    provider.script.on_batch("state", *[Fault("status", 302, headers=elsewhere)] * 3)
    with pytest.raises(FrontierUnavailable, match="redirects are not followed"):
        await batches.state(batch_id)


async def test_text_that_no_request_can_carry(
    provider: ProviderServer, batches: ProviderBatches, vendor: str
) -> None:
    line = ProviderLine("a", {"messages": [{"role": "user", "content": "\ud800"}]})
    with pytest.raises(FrontierRejected):
        await batches.submit([line], "b1", MODELS[vendor])
    assert provider.script.batch_requests == []


async def test_many_lines_do_not_block_the_loop(
    provider: ProviderServer, batches: ProviderBatches, vendor: str
) -> None:
    lines = lines_of(vendor, *(f"line-{n}" for n in range(4000)))
    longest = 0.0

    async def tick() -> None:
        # In the loop's own processor time, which other programs do not add to.
        nonlocal longest
        while True:
            before_s = time.thread_time()
            await asyncio.sleep(0.001)
            longest = max(longest, time.thread_time() - before_s)

    ticking = asyncio.create_task(tick())
    batch_id = await batches.submit(lines, "b1", MODELS[vendor])
    await final(batches, batch_id)
    count = 0
    async for _ in batches.results(batch_id, [line.key for line in lines]):
        count += 1
    ticking.cancel()
    assert count == 4000
    assert longest < 0.5


def mangled(value: Any, rng: random.Random) -> Any:
    """Return a JSON value with some of its parts replaced or left out."""
    odd: tuple[Any, ...] = (
        None,
        "",
        -1,
        1e30,
        True,
        [],
        {},
        "x" * 50,
        [[]],
        {"type": "succeeded"},
        "\ud800",
    )
    if rng.random() < 0.06:
        return rng.choice(odd)
    if isinstance(value, dict):
        return {n: mangled(v, rng) for n, v in value.items() if rng.random() > 0.03}
    return [mangled(v, rng) for v in value] if isinstance(value, list) else value


async def raw(client: httpx2.AsyncClient, path: str) -> bytes:
    return (await client.get(path, headers={"authorization": f"Bearer {KEY}"})).content


async def test_no_answer_of_a_provider_breaks_the_reader(
    provider: ProviderServer, batches: ProviderBatches, vendor: str
) -> None:
    """Whatever arrives, only FrontierErrors are raised, and each line ends once at most."""
    provider.script.line_fault = lambda seen: (
        Fault("status", 400, "", "no") if seen.custom_id == KEYS[0] else None
    )
    provider.script.next_batch(BatchPlan("expired", answered=0.5))
    batch_id = await submitted(batches, vendor)
    await final(batches, batch_id)
    path = "/v1/batches" if vendor == "openai" else "/v1/messages/batches"
    async with httpx2.AsyncClient(base_url=provider.url, timeout=GUARD_S) as client:
        shown = json.loads(await raw(client, f"{path}/{batch_id}"))
        if vendor == "openai":
            files = [f"/v1/files/{shown[n]}/content" for n in ("output_file_id", "error_file_id")]
        else:
            files = [f"{path}/{batch_id}/results"]
        lines = b"".join([await raw(client, file) for file in files]).splitlines()
    listed = {"data": [shown], "has_more": False, "object": "list"}
    kinds: Counter[str] = Counter()
    for seed in range(150):
        rng = random.Random(seed)  # noqa: S311
        documents = [mangled(json.loads(line), rng) for line in lines]
        body = "\n".join(json.dumps(document) for document in documents).encode()
        if rng.random() < 0.3:
            place = rng.randrange(len(body))
            body = body[:place] + bytes([rng.randrange(256)]) + body[place + 1 :]
        state, page = (
            Fault("raw", 200, body=(json.dumps(mangled(document, rng)).encode(),))
            for document in (shown, listed)
        )
        script = provider.script
        script.batch_faults.clear()
        script.on_batch("state", state)
        script.on_batch("list", *[page] * 3)
        script.on_batch("results", *[Fault("raw", 200, body=(body,))] * 6)
        keys: list[str] = []

        async def read(keys: list[str] = keys) -> None:
            await batches.find("b1", NOW, KEYS)
            async for result in batches.results(batch_id, KEYS):
                keys.append(result.key)
                kinds[result.kind] += 1
                assert (result.document is not None) == (result.kind == "succeeded")
                assert (result.error is None) == (result.kind == "succeeded")

        try:
            await read()
        except FrontierError as error:
            kinds[error.code] += 1
        assert len(keys) == len(set(keys))
        assert set(keys) <= set(KEYS)
    assert min(kinds[kind] for kind in ("succeeded", "errored", "expired")) > 50, kinds


async def test_a_time_beyond_the_calendar_is_no_time(
    provider: ProviderServer, batches: ProviderBatches, vendor: str
) -> None:
    batch_id = await submitted(batches, vendor)
    await final(batches, batch_id)
    path = "/v1/batches" if vendor == "openai" else "/v1/messages/batches"
    async with httpx2.AsyncClient(base_url=provider.url, timeout=GUARD_S) as client:
        shown = json.loads(await raw(client, f"{path}/{batch_id}"))
    for odd in (1e30, -1e30, True, "9999-99-99T00:00:00Z", "soon", None):
        late = {**shown, "created_at": odd, "completed_at": odd, "ended_at": odd}
        page = {"data": [late], "has_more": False}
        provider.script.on_batch("state", Fault("raw", 200, body=(json.dumps(late).encode(),)))
        provider.script.on_batch("list", Fault("raw", 200, body=(json.dumps(page).encode(),)))
        state = await batches.state(batch_id)
        assert state.phase == "ended"
        assert state.ended_at is None or odd is True
        assert await batches.find("b1", NOW, KEYS) == batch_id


def test_only_providers_with_batches_are_built(provider: ProviderServer) -> None:
    config = FrontierSettings()
    assert sorted(build_provider_batches(config, ENVIRON)) == ["anthropic", "openai"]
    assert build_provider_batches(config, {}) == {}
    assert build_provider_batches(settings(provider), ENVIRON) == {}
    told = settings(provider, {"batch": True})
    assert sorted(build_provider_batches(told, ENVIRON)) == ["anthropic", "openai", "other"]


BATCH_PRICES = FlatPrices({ANTHROPIC: SONNET, OPENAI: dollars_a_million("2", "0.5", "2", "2", "8")})


class HalfPrices(FlatPrices):
    """Flat prices with a batch tier at half."""

    def of(self, model: str) -> ModelPrices | None:
        if model not in self:
            return None
        full = self[model]
        half = dollars_a_million(
            *(str(getattr(full, name) * 500_000) for name in full.__dataclass_fields__)
        )
        return ModelPrices(model, "test", (PriceStep(0, full),), {"batch": (PriceStep(0, half),)})


@pytest.mark.parametrize("target", [OPENAI, ANTHROPIC])
async def test_a_line_is_prepared_and_priced_as_a_call(
    provider: ProviderServer, target: str, clock: Clock
) -> None:
    vendor = target.partition("/")[0]
    prices = HalfPrices(BATCH_PRICES)
    async with frontier(settings(provider, {"batch": True}), prices=prices) as stack:
        body = {"service_tier": "auto", "temperature": 0.5}
        request = stack.batch_request(call(target, body=body))
        with pytest.raises(UnsupportedParameter, match="priority"):
            stack.batch_request(call(target, body={"service_tier": "priority"}))
        with pytest.raises(UnsupportedParameter, match="web_search"):
            stack.batch_request(call(target, body={"web_search_options": {}}))
        inside = {"messages": [{"role": "user", "content": "Hi.", "plugins": [{"id": "web"}]}]}
        with pytest.raises(UnsupportedParameter, match=r"messages\.0\.plugins"):
            stack.batch_request(call(target, body=inside))
        entry = call(target).entry
        await stack.complete(call(target, entry=entry))
        sync = entry.calls[0].worst_case_usd  # type: ignore[attr-defined]
    assert provider.script.seen.pop().body["messages"] == request.body["messages"]
    assert request.target == target
    assert request.worst_case_usd == sync / 2
    assert "service_tier" not in request.body
    batches = made(provider, vendor, clock)
    batch_id = await batches.submit([ProviderLine("k", request.body)], "b", MODELS[vendor])
    await final(batches, batch_id)
    [result] = await results(batches, batch_id, ["k"])
    [seen] = provider.script.seen
    spent = checked_spent(result, request.facts)
    assert spent == result.spent
    assert spent.usage == Usage(**billed_classes(seen))
    found = prices.of(target)
    assert found is not None
    cost = found.applied(spent.usage, spent.service_tier).step.prices.cost(spent.usage)
    assert 0 < cost <= request.worst_case_usd
    await batches.aclose()


@pytest.mark.parametrize(
    "spent",
    [Spent(Usage(uncached_input_tokens=10**9, output_tokens=5), "reported", BATCH), UNKNOWN],
)
async def test_a_usage_that_is_impossible_or_missing_is_estimated(
    provider: ProviderServer, clock: Clock, spent: Spent
) -> None:
    prices = HalfPrices(BATCH_PRICES)
    async with frontier(settings(provider, {"batch": True}), prices=prices) as stack:
        request = stack.batch_request(call(OPENAI))
    document = {"choices": [{"message": {"content": "A few words."}}]}
    spent = checked_spent(ProviderLineResult("k", "succeeded", document, spent), request.facts)
    assert (spent.source, spent.service_tier) == ("estimated", "batch")
    assert spent.usage is not None
    assert 0 < spent.usage.uncached_input_tokens < 100


@pytest.mark.parametrize("usage", [None, Usage(uncached_input_tokens=20, output_tokens=8)])
def test_an_estimate_is_never_above_what_the_request_allows(usage: Usage | None) -> None:
    facts = RequestFacts(TokenLimits(input_tokens=30, output_tokens=5), lambda: 4_000)
    body = {"choices": [{"message": {"content": "x" * 1_000_000}}]}
    spent = spent_on(WholeAnswer(body, usage, None), facts)
    most = Usage(uncached_input_tokens=30, output_tokens=5)
    assert (spent.source, spent.usage) == ("estimated", most)


async def test_without_a_batch_api_there_is_no_line(provider: ProviderServer) -> None:
    async with frontier(settings(provider)) as stack:
        assert stack.batch_targets((OPENAI, ANTHROPIC)) == ()
        with pytest.raises(FrontierNotConfigured, match="batch API"):
            stack.batch_request(call(OPENAI))


def test_batch_prices_are_known_and_half() -> None:
    book = PriceBook.load()
    for tier in FrontierSettings().tiers.values():
        for target in tier:
            prices = book.of(target)
            assert prices is not None
            assert prices.worst_case_in_batch(1000, 1000) * 2 == prices.worst_case(
                1000, 1000, "standard"
            )
            usage = Usage(uncached_input_tokens=1000, output_tokens=10)
            assert prices.applied(usage, "batch").service_tier == "batch"


def test_without_batch_prices_the_highest_counts() -> None:
    prices = FlatPrices({OPENAI: SONNET}).of(OPENAI)
    assert prices is not None
    assert prices.worst_case_in_batch(10, 10) == 10 * SONNET.highest_input + 10 * SONNET.output
    assert prices.worst_case_in_batch(10, 10) > Decimal(0)
