"""The unmodified Anthropic SDK does all that it can with Message Batches."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types.messages import MessageBatch
from pydantic import SecretStr

from serving.contracts.answer import Usage
from serving.gateway.messages_result import message_of
from serving.ledger.pricing.book import PriceBook

from ..provider.billing import billed_classes
from ..provider.script import Fault, Reply, ToolCall
from ..provider.server import ProviderServer
from .batch_gateway import KEY_VALUE, KEY_VARIABLE, MODEL, Running, running

LIMIT_S = 60.0


@pytest.fixture
async def gateway(
    provider: ProviderServer,
    state: Path,
    ledger_url: SecretStr | None,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Running]:
    monkeypatch.setenv(KEY_VARIABLE, KEY_VALUE)
    async with running(provider, state, ledger_url) as found:
        yield found


@asynccontextmanager
async def claude(gateway: Running, tenant: str = "acme") -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        api_key=gateway.clients[tenant].api_key,
        base_url=gateway.url,
        max_retries=0,
        _strict_response_validation=True,
    ) as client:
        yield client


def request(name: str, **more: Any) -> Any:
    messages = [{"role": "user", "content": f"question {name}"}]
    params = {"model": MODEL, "max_tokens": 64, "messages": messages, **more}
    return {"custom_id": name, "params": params}


async def ended(client: anthropic.AsyncAnthropic, batch: MessageBatch) -> MessageBatch:
    async with asyncio.timeout(LIMIT_S):
        while batch.processing_status != "ended":
            await asyncio.sleep(0.05)
            batch = await client.messages.batches.retrieve(batch.id)
    return batch


async def results(client: anthropic.AsyncAnthropic, batch_id: str) -> dict[str, Any]:
    found = [line async for line in await client.messages.batches.results(batch_id)]
    assert len({line.custom_id for line in found}) == len(found)
    return {line.custom_id: line.result for line in found}


async def test_a_whole_round_trip(gateway: Running, provider: ProviderServer) -> None:
    provider.script.answer = lambda seen: (
        Reply(calls=(ToolCall("weather", {"place": "Oslo"}),), finish="tool_calls")
        if seen.body.get("tools")
        else Reply(f"answer to {seen.body['messages'][-1]['content']}", reasoning_tokens=3)
    )
    tool = {"name": "weather", "input_schema": {"type": "object", "properties": {}}}
    requests = [request(f"k{n}", system="Be brief.") for n in range(19)]
    requests.append(request("tools", tools=[tool], tool_choice={"type": "any"}))
    async with claude(gateway) as client:
        batch = await client.messages.batches.create(requests=requests)
        assert batch.id.startswith("msgbatch_")
        assert batch.request_counts.processing + batch.request_counts.succeeded == 20
        batch = await ended(client, batch)
        counts = batch.request_counts
        assert (counts.succeeded, counts.errored, counts.processing) == (20, 0, 0)
        assert batch.ended_at is not None
        assert batch.created_at <= batch.ended_at <= batch.expires_at
        found = await results(client, batch.id)
    assert sorted(found) == sorted([*(f"k{n}" for n in range(19)), "tools"])
    for name, result in found.items():
        assert result.type == "succeeded"
        message = result.message
        if name == "tools":
            [block] = message.content
            assert (block.type, block.name, block.input) == (
                "tool_use", "weather", {"place": "Oslo"},
            )  # fmt: skip
            assert message.stop_reason == "tool_use"
        else:
            assert [block.text for block in message.content] == [f"answer to question {name}"]
            assert message.usage.output_tokens_details.thinking_tokens == 3
            assert message.stop_reason == "end_turn"
        assert message.model == MODEL
    assert len(provider.script.seen) == 20
    sent = provider.script.seen[0].body["messages"]
    assert "Be brief." in json.dumps(sent)


async def test_each_request_has_an_error_of_its_own(
    gateway: Running, provider: ProviderServer
) -> None:
    provider.script.next(Fault("status", 400, "invalid_value", "no such thing"))
    async with claude(gateway) as client:
        batch = await ended(client, await client.messages.batches.create(requests=[request("a")]))
        assert (batch.request_counts.succeeded, batch.request_counts.errored) == (0, 1)
        [result] = (await results(client, batch.id)).values()
    assert result.type == "errored"
    assert result.error.error.type == "invalid_request_error"
    assert "no such thing" in result.error.error.message


@pytest.mark.parametrize(
    ("requests", "text"),
    [
        ([request("a"), request("b", thinking={"type": "enabled", "budget_tokens": 1024})],
         r"requests\.1\.params\.thinking"),
        ([request("a"), request("a")], r"requests\.1\.custom_id"),
        ([request("a b")], r"requests\.0\.custom_id"),
        ([request("a"), request("b", model="nobody/none")], r"requests\.1"),
        ([request("a", messages=[{"role": "user", "content": [
            {"type": "image", "source": {"type": "url", "url": "https://example.org/a"}}]}])],
         r"requests\.0\.params\.messages\.0\.content\.0\.type"),
        ([], "requests is empty"),
    ],
)  # fmt: skip
async def test_a_bad_request_refuses_the_batch_before_anything_is_spent(
    gateway: Running, provider: ProviderServer, requests: Any, text: str
) -> None:
    async with claude(gateway) as client:
        with pytest.raises(anthropic.BadRequestError, match=text) as caught:
            await client.messages.batches.create(requests=requests)
        assert caught.value.body["type"] == "error"  # type: ignore[index]
        assert caught.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]
        assert caught.value.request_id
    assert provider.script.seen == []
    assert [file async for file in gateway.acme.files.list()] == [], "no file is left"


async def test_lists_have_pages_and_show_only_message_batches(gateway: Running) -> None:
    async with claude(gateway) as client:
        made = [await client.messages.batches.create(requests=[request("a")]) for _ in range(5)]
        ids = [batch.id for batch in made]
        line = {"custom_id": "x", "method": "POST", "url": "/v1/chat/completions",
                "body": request("x")["params"]}  # fmt: skip
        other = await gateway.submit(json.dumps(line).encode())
        for batch in made:
            await ended(client, batch)
        listed = [batch.id async for batch in client.messages.batches.list(limit=2)]
        assert listed == ids[::-1]
        before = await client.messages.batches.list(limit=2, before_id=ids[1])
        assert [batch.id for batch in before.data] == [ids[3], ids[2]]
        assert before.has_more
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.batches.retrieve(other.id.replace("batch_", "msgbatch_"))
        with pytest.raises(anthropic.BadRequestError):
            await client.messages.batches.list(limit=0)
    async with claude(gateway, "globex") as stranger:
        assert [batch async for batch in stranger.messages.batches.list()] == []
        for call in (
            stranger.messages.batches.retrieve,
            stranger.messages.batches.cancel,
            stranger.messages.batches.delete,
            stranger.messages.batches.results,
        ):
            with pytest.raises(anthropic.NotFoundError):
                await call(ids[0])


async def test_a_cancelled_batch_names_what_did_not_run(
    gateway: Running, provider: ProviderServer
) -> None:
    provider.script.on("gpt-4.1", Fault("slow", delay_s=0.5))
    async with claude(gateway) as client:
        batch = await client.messages.batches.create(
            requests=[request(f"k{n}") for n in range(200)]
        )
        with pytest.raises(anthropic.BadRequestError, match="in progress"):
            await client.messages.batches.delete(batch.id)
        cancelled = await client.messages.batches.cancel(batch.id)
        assert cancelled.cancel_initiated_at is not None
        batch = await ended(client, batch)
        counts = batch.request_counts
        found = await results(client, batch.id)
        kinds = [result.type for result in found.values()]
        assert len(found) == 200
        assert counts.canceled == kinds.count("canceled") > 0
        assert counts.succeeded == kinds.count("succeeded")
        with pytest.raises(anthropic.BadRequestError, match="has ended"):
            await client.messages.batches.cancel(batch.id)


async def test_a_batch_whose_error_file_was_deleted_stays_in_the_list(
    gateway: Running, provider: ProviderServer
) -> None:
    provider.script.on("gpt-4.1", Fault("slow", delay_s=0.5))
    async with claude(gateway) as client:
        batch = await client.messages.batches.create(requests=[request(f"k{n}") for n in range(90)])
        await client.messages.batches.cancel(batch.id)
        await ended(client, batch)
        ours = await gateway.acme.batches.retrieve(batch.id.replace("msgbatch_", "batch_"))
        assert ours.error_file_id is not None
        await gateway.acme.files.delete(ours.error_file_id)
        assert [one.id async for one in client.messages.batches.list()] == [batch.id]
        assert (await client.messages.batches.retrieve(batch.id)).processing_status == "ended"


ODD = [
    [None], {"a": 1}, "x", ["x"], 5, [{"function": "x"}], [{"function": None, "id": 5}],
    [{"id": "t", "function": {"name": 5, "arguments": "[" * 90_000}}],
    [{"id": "t", "function": {"name": "f", "arguments": "{"}}],
    [{"id": "t", "function": {"name": "f", "arguments": 1e300}}],
]  # fmt: skip


@pytest.mark.parametrize("calls", ODD)
def test_an_odd_tool_call_of_a_provider_is_read_as_far_as_it_can_be(calls: Any) -> None:
    message = {"role": "assistant", "content": "A word.", "tool_calls": calls}
    found = message_of({"choices": [{"message": message, "finish_reason": "tool_calls"}]})
    assert anthropic.types.Message.model_validate(found).content[0].type == "text"
    uses = [block for block in found["content"] if block["type"] == "tool_use"]
    assert all(isinstance(block["id"], str) and block["input"] == {} for block in uses)


@pytest.mark.parametrize(
    "completion",
    [{}, {"choices": None}, {"choices": 5}, {"choices": [None]}, {"choices": [{"message": "x"}]},
     {"choices": [{"finish_reason": ["x"]}], "id": 5, "model": None, "usage": "x"}],
)  # fmt: skip
def test_an_odd_completion_is_a_message_that_was_cut(completion: dict[str, Any]) -> None:
    found = anthropic.types.Message.model_validate(message_of(completion))
    assert (found.content, found.stop_reason) == ([], "max_tokens")


async def test_a_deleted_batch_is_gone(gateway: Running) -> None:
    async with claude(gateway) as client:
        batch = await ended(client, await client.messages.batches.create(requests=[request("a")]))
        assert (await client.messages.batches.delete(batch.id)).id == batch.id
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.batches.retrieve(batch.id)
        assert [found async for found in client.messages.batches.list()] == []
    assert [file async for file in gateway.acme.files.list()] == []


async def test_errors_before_the_endpoint_have_the_shape(gateway: Running) -> None:
    async with (
        anthropic.AsyncAnthropic(api_key="ng-wrong", base_url=gateway.url, max_retries=0) as wrong,
        httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as plain,
    ):
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await wrong.messages.batches.create(requests=[request("a")])
        assert caught.value.body["error"]["type"] == "authentication_error"  # type: ignore[index]
        headers = {"x-api-key": gateway.acme.api_key}
        for path, data, status, kind in (
            ("/v1/messages", b"{}", 404, "not_found_error"),
            ("/v1/messages/batches", b"{oops", 400, "invalid_request_error"),
        ):
            sent = {**headers, "content-type": "application/json"}
            response = await plain.post(path, content=data, headers=sent)
            assert response.status_code == status
            document = response.json()
            assert (document["type"], document["error"]["type"]) == ("error", kind)
            assert document["request_id"] == response.headers["request-id"]
        response = await plain.post("/v1/messages/batches", content=b"{}", headers=headers)
        assert response.status_code == 415
        assert response.json()["type"] == "error"
        found = await plain.get("/v1/files", headers=headers)
        assert "request-id" not in found.headers, "other endpoints keep their shape"


async def test_requests_go_into_a_providers_batch_at_half_price(
    provider: ProviderServer, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY_VALUE)
    provider.script.answer = lambda seen: f"answer to {seen.body['messages'][-1]['content']}"
    lane = {"provider_poll_s": 0.2}
    async with (
        running(provider, state, None, has_batches=True, batch=lane) as gateway,
        claude(gateway) as client,
    ):
        made = [request(f"k{n}") for n in range(8)]
        batch = await ended(client, await client.messages.batches.create(requests=made))
        assert batch.request_counts.succeeded == 8
        found = await results(client, batch.id)
        texts = {name: result.message.content[0].text for name, result in found.items()}
        assert texts == {f"k{n}": f"answer to question k{n}" for n in range(8)}
        assert {result.message.model for result in found.values()} == {MODEL}
        [shown] = [batch async for batch in gateway.acme.batches.list()]
        ours = shown.model_extra["narrowgate"]  # type: ignore[index]
    assert {seen.batch_id is not None for seen in provider.script.seen} == {True}
    assert len(provider.script.seen) == 8
    prices = PriceBook.load().of(MODEL)
    assert prices is not None
    usages = [Usage(**billed_classes(seen)) for seen in provider.script.seen]
    full = sum(prices.base.cost(usage) for usage in usages)
    assert Decimal(ours["cost_usd"]) * 2 == full > 0
    [plan] = ours["plan"]
    assert Decimal(plan["batch_usd"]) * 2 == Decimal(plan["max_usd"])
    deleted = [name for name, _ in provider.script.batch_requests if name == "file"]
    assert len(deleted) == 2, "the provider keeps neither the requests nor the answers"
