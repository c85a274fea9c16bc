"""The fake provider keeps to both vendors' batch APIs: their SDKs read it strictly."""

import json
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from ..provider.billing import CLASSES, billed_classes, billed_usd, classes_of
from ..provider.script import BatchPlan, Fault, Reply, rate_limited
from ..provider.server import ProviderServer
from .frontier_kit import KEY

PRICES = {name: Decimal(n) / 1_000_000 for n, name in enumerate(CLASSES, start=2)}


@pytest.fixture(name="oai")
async def openai_fixture(provider: ProviderServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        api_key=KEY, base_url=f"{provider.url}/v1", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture(name="ant")
async def anthropic_fixture(provider: ProviderServer) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        api_key=KEY, base_url=provider.url, max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


def chat(number: int, **more: Any) -> dict[str, Any]:
    message = {"role": "user", "content": f"What is {number}?"}
    return {"model": "gpt-4.1", "messages": [message], "max_tokens": 64, **more}


def jsonl(*bodies: dict[str, Any]) -> bytes:
    lines = [
        {"custom_id": f"k{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}
        for n, body in enumerate(bodies)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


async def created(client: openai.AsyncOpenAI, data: bytes) -> Any:
    file = await client.files.create(file=("lines.jsonl", data), purpose="batch")
    return await client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"run": "1"},
    )


async def ended(client: openai.AsyncOpenAI, batch_id: str) -> Any:
    for _ in range(5):
        batch = await client.batches.retrieve(batch_id)
        if batch.status in ("completed", "failed", "expired", "cancelled"):
            return batch
    raise AssertionError(batch.status)


async def lines_of(client: openai.AsyncOpenAI, file_id: str | None) -> list[Any]:
    if file_id is None:
        return []
    content = await client.files.content(file_id)
    return [json.loads(line) for line in content.text.splitlines()]


def requests(count: int) -> Any:
    return [
        {
            "custom_id": f"k{n}",
            "params": {**chat(n), "model": "claude-sonnet-5-5"},
        }
        for n in range(count)
    ]


async def results_of(client: anthropic.AsyncAnthropic, batch_id: str) -> list[Any]:
    return [line async for line in await client.messages.batches.results(batch_id)]


async def ended_messages(client: anthropic.AsyncAnthropic, batch_id: str) -> Any:
    for _ in range(5):
        batch = await client.messages.batches.retrieve(batch_id)
        if batch.processing_status == "ended":
            return batch
    raise AssertionError(batch.processing_status)


async def test_openais_round_trip_and_its_bill(
    provider: ProviderServer, oai: openai.AsyncOpenAI
) -> None:
    provider.script.answer = lambda seen: Reply(f"Yes, {seen.custom_id}.", reasoning_tokens=5)
    provider.script.line_fault = lambda seen: (
        Fault("status", 400, "bad", "no") if seen.custom_id == "k2" else None
    )
    batch = await created(oai, jsonl(*map(chat, range(20))))
    assert (batch.status, batch.request_counts.total) == ("validating", 0)
    running = await oai.batches.retrieve(batch.id)
    assert (running.status, running.request_counts.total) == ("in_progress", 20)
    assert provider.script.seen == []
    done = await ended(oai, batch.id)
    assert (done.status, done.metadata, done.model) == ("completed", {"run": "1"}, "gpt-4.1")
    assert done.request_counts.to_dict() == {"total": 20, "completed": 19, "failed": 1}
    output = await lines_of(oai, done.output_file_id)
    ids = [line["custom_id"] for line in output]
    assert sorted(ids) == sorted({f"k{n}" for n in range(20)} - {"k2"})
    assert ids != sorted(ids, key=lambda name: int(name[1:])), "in no order"
    errors = await lines_of(oai, done.error_file_id)
    assert [(e["custom_id"], e["response"]["status_code"]) for e in errors] == [("k2", 400)]
    by_id = {seen.custom_id: seen for seen in provider.script.seen}
    for line in output:
        body = line["response"]["body"]
        assert body["choices"][0]["message"]["content"] == f"Yes, {line['custom_id']}."
        seen = by_id[line["custom_id"]]
        assert billed_classes(seen) == classes_of("openai", body["usage"])
        full = sum(count * PRICES[name] for name, count in billed_classes(seen).items())
        assert billed_usd(seen, PRICES) * 2 == full > 0
    assert billed_usd(by_id["k2"], PRICES) == 0
    total = sum(line["response"]["body"]["usage"]["total_tokens"] for line in output)
    assert done.usage is not None
    assert done.usage.total_tokens == total
    await ended(oai, batch.id)
    assert len(provider.script.seen) == 20, "asking again does no work"


async def test_openais_files_and_lists_have_pages(oai: openai.AsyncOpenAI) -> None:
    ids = [(await created(oai, jsonl(chat(n)))).id for n in range(5)]
    pages = [batch.id async for batch in oai.batches.list(limit=2)]
    assert pages == ids[::-1]
    files = [file.id async for file in oai.files.list(purpose="batch")]
    assert len(files) == 5
    file = await oai.files.retrieve(files[0])
    assert (file.filename, file.purpose) == ("lines.jsonl", "batch")
    assert (await oai.files.content(file.id)).content == jsonl(chat(4))
    assert (await oai.files.delete(file.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await oai.files.retrieve(file.id)


def test_keys_have_batches_of_their_own() -> None:
    with ProviderServer() as server:
        first, second = (
            openai.OpenAI(api_key=key, base_url=f"{server.url}/v1", max_retries=0)
            for key in ("sk-1", "sk-2")
        )
        with first, second:
            file = first.files.create(file=("lines.jsonl", jsonl(chat(1))), purpose="batch")
            batch = first.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            assert [found.id for found in first.batches.list()] == [batch.id]
            assert list(second.batches.list()) == []
            with pytest.raises(openai.NotFoundError):
                second.batches.retrieve(batch.id)


@pytest.mark.parametrize(
    ("data", "code", "number"),
    [
        (jsonl(chat(1)) + jsonl(chat(2)), "duplicate_custom_id", 2),
        (jsonl(chat(1)) + b"{oops\n", "invalid_json_line", 2),
        (jsonl(chat(1), chat(2, model="gpt-4o")), "mismatched_model", None),
        (jsonl(chat(1, stream=True)), "invalid_request", 1),
        (b"", "empty_file", None),
    ],
)
async def test_openai_refuses_a_whole_file(
    provider: ProviderServer,
    oai: openai.AsyncOpenAI,
    data: bytes,
    code: str,
    number: int | None,
) -> None:
    failed = await ended(oai, (await created(oai, data)).id)
    assert failed.status == "failed"
    assert failed.output_file_id is None
    assert [(error.code, error.line) for error in failed.errors.data] == [(code, number)]
    assert provider.script.seen == []


async def test_openais_other_ends(provider: ProviderServer, oai: openai.AsyncOpenAI) -> None:
    data = jsonl(*map(chat, range(4)))
    full = BatchPlan("failed", "token_limit_exceeded", "Enqueued token limit reached")
    provider.script.next_batch(full, BatchPlan("expired", answered=0.5))
    failed = await ended(oai, (await created(oai, data)).id)
    assert [error.code for error in failed.errors.data] == ["token_limit_exceeded"]
    expired = await ended(oai, (await created(oai, data)).id)
    assert expired.status == "expired"
    assert expired.expired_at is not None
    assert len(await lines_of(oai, expired.output_file_id)) == 2
    errors = await lines_of(oai, expired.error_file_id)
    assert [(e["response"], e["error"]["code"]) for e in errors] == [(None, "batch_expired")] * 2
    assert len(provider.script.seen) == 2, "only what was answered is billed"


async def test_openai_cancels_within_some_time(
    provider: ProviderServer, oai: openai.AsyncOpenAI
) -> None:
    provider.script.next_batch(BatchPlan(polls=99, answered=0.25))
    batch = await created(oai, jsonl(*map(chat, range(4))))
    assert (await oai.batches.cancel(batch.id)).status == "cancelling"
    assert (await oai.batches.cancel(batch.id)).status == "cancelling"
    assert (await oai.batches.retrieve(batch.id)).status == "cancelling"
    done = await ended(oai, batch.id)
    assert done.status == "cancelled"
    assert [line["custom_id"] for line in await lines_of(oai, done.output_file_id)] == ["k0"]
    errors = await lines_of(oai, done.error_file_id)
    assert {error["error"]["code"] for error in errors} == {"batch_cancelled"}
    with pytest.raises(openai.ConflictError):
        await oai.batches.cancel(batch.id)


async def test_anthropics_round_trip_and_its_bill(
    provider: ProviderServer, ant: anthropic.AsyncAnthropic
) -> None:
    provider.script.answer = lambda seen: Reply(f"Yes, {seen.custom_id}.")
    provider.script.line_fault = lambda seen: (
        Fault("status", 400, "", "no") if seen.custom_id == "k2" else None
    )
    batch = await ant.messages.batches.create(requests=requests(20))
    assert (batch.processing_status, batch.results_url) == ("in_progress", None)
    assert batch.request_counts.processing == 20
    done = await ended_messages(ant, batch.id)
    counts = done.request_counts
    assert (counts.succeeded, counts.errored, counts.processing) == (19, 1, 0)
    lines = await results_of(ant, batch.id)
    ids = [line.custom_id for line in lines]
    assert sorted(ids) == sorted(f"k{n}" for n in range(20))
    assert ids != sorted(ids, key=lambda name: int(name[1:])), "in no order"
    by_id = {seen.custom_id: seen for seen in provider.script.seen}
    for line in lines:
        seen = by_id[line.custom_id]
        if line.custom_id == "k2":
            assert line.result.type == "errored"
            assert line.result.error.error.type == "invalid_request_error"
            assert billed_usd(seen, PRICES) == 0
            continue
        message = line.result.message
        assert message.content[0].text == f"Yes, {line.custom_id}."
        assert message.usage.service_tier == "batch"
        assert billed_classes(seen) == classes_of("anthropic", message.usage.to_dict())
        full = sum(count * PRICES[name] for name, count in billed_classes(seen).items())
        assert billed_usd(seen, PRICES) * 2 == full > 0


async def test_anthropics_list_has_pages_and_batches_are_deleted(
    ant: anthropic.AsyncAnthropic,
) -> None:
    ids = [(await ant.messages.batches.create(requests=requests(1))).id for _ in range(5)]
    assert [batch.id async for batch in ant.messages.batches.list(limit=2)] == ids[::-1]
    before = await ant.messages.batches.list(limit=2, before_id=ids[1])
    assert [batch.id for batch in before.data] == [ids[3], ids[2]]
    with pytest.raises(anthropic.BadRequestError):
        await ant.messages.batches.delete(ids[0])
    await ended_messages(ant, ids[0])
    assert (await ant.messages.batches.delete(ids[0])).id == ids[0]
    with pytest.raises(anthropic.NotFoundError):
        await ant.messages.batches.retrieve(ids[0])


@pytest.mark.parametrize("custom_id", ["", "a" * 65, "a b", "ä", "k1"])
async def test_anthropic_refuses_custom_ids_at_once(
    provider: ProviderServer, ant: anthropic.AsyncAnthropic, custom_id: str
) -> None:
    lines = [*requests(2), {**requests(1)[0], "custom_id": custom_id}]
    with pytest.raises(anthropic.BadRequestError, match=r"requests\.2\.custom_id"):
        await ant.messages.batches.create(requests=lines)
    with pytest.raises(anthropic.BadRequestError, match="metadata"):
        await ant.messages.batches.create(requests=requests(1), extra_body={"metadata": {}})
    assert provider.script.batch_requests == []


async def test_anthropics_other_ends(
    provider: ProviderServer, ant: anthropic.AsyncAnthropic
) -> None:
    provider.script.next_batch(
        BatchPlan("expired", answered=0.5), BatchPlan(polls=99, answered=0.25)
    )
    expired = await ant.messages.batches.create(requests=requests(4))
    done = await ended_messages(ant, expired.id)
    assert (done.request_counts.succeeded, done.request_counts.expired) == (2, 2)
    batch = await ant.messages.batches.create(requests=requests(4))
    asked = await ant.messages.batches.cancel(batch.id)
    assert asked.processing_status == "canceling"
    assert asked.cancel_initiated_at is not None
    done = await ended_messages(ant, batch.id)
    assert (done.request_counts.succeeded, done.request_counts.canceled) == (1, 3)
    kinds = sorted(line.result.type for line in await results_of(ant, batch.id))
    assert kinds == ["canceled"] * 3 + ["succeeded"]
    assert len(provider.script.seen) == 3


async def test_faults_of_the_connection(
    provider: ProviderServer, oai: openai.AsyncOpenAI, ant: anthropic.AsyncAnthropic
) -> None:
    script = provider.script
    script.on_batch("create", rate_limited("7"), Fault("hang_up", worked=True))
    with pytest.raises(anthropic.RateLimitError) as limited:
        await ant.messages.batches.create(requests=requests(2))
    assert limited.value.response.headers["retry-after"] == "7"
    assert script.batch_requests == []
    script.next_batch(BatchPlan(unlisted=1, lost=2, duplicated=1, strangers=1))
    with pytest.raises(anthropic.APIConnectionError):
        await ant.messages.batches.create(requests=requests(2))
    assert [batch async for batch in ant.messages.batches.list()] == [], "the list lags"
    [found] = [batch async for batch in ant.messages.batches.list()]
    for _ in range(2):
        with pytest.raises(anthropic.NotFoundError):
            await ant.messages.batches.retrieve(found.id)
    await ended_messages(ant, found.id)
    lines = await results_of(ant, found.id)
    assert sorted(line.custom_id for line in lines) in (
        ["k0", "k0", "k1", "stranger-0"],
        ["k0", "k1", "k1", "stranger-0"],
    )
    script.on_batch("results", Fault("cut"), Fault("truncated"))
    with pytest.raises(httpx2.RemoteProtocolError):
        await results_of(ant, found.id)
    with pytest.raises(ValueError, match=r"Unterminated|Expecting"):
        await results_of(ant, found.id)
    assert len(await results_of(ant, found.id)) == 4
    assert [name for name, _ in script.batch_requests].count("create") == 1


async def test_a_batch_may_take_time(provider: ProviderServer, oai: openai.AsyncOpenAI) -> None:
    provider.script.batch_plan = BatchPlan(polls=0, seconds=3600)
    batch = await created(oai, jsonl(chat(1)))
    for _ in range(4):
        assert (await oai.batches.retrieve(batch.id)).status == "in_progress"
