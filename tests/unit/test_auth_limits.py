"""A tenant's requests by the minute and at once, and that every slot comes back."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contracts.errors import EngineFailure, RateLimited
from serving.contracts.ledger import Tenant
from serving.contracts.openai import OpenAIReply
from serving.contracts.task_spec import TaskSpec
from serving.gateway.http import build_http
from serving.gateway.limits import TenantLimits
from serving.ledger.database import Database

from .authenticated import BODY, TASK, KeyedServer, listening
from .patience import GUARD_S
from .scripted import MODEL, assert_error

CHAT = "/v1/chat/completions"
STREAM = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": True}


@pytest.fixture
async def keyed(specs: dict[str, TaskSpec], database: Database) -> KeyedServer:
    keyed = KeyedServer(specs, database)
    await keyed.server.ready()
    return keyed


def limit_headers(response: httpx.Response) -> list[str | None]:
    names = ("limit", "remaining")
    return [response.headers.get(f"x-ratelimit-{name}-requests") for name in names]


async def test_requests_beyond_the_minutes_limit_say_when_to_retry(keyed: KeyedServer) -> None:
    key = await keyed.tenant("acme", requests_per_minute=3)
    free = await keyed.tenant("other")
    answers = [await keyed.ask(key), await keyed.ask(key, "/nowhere"), await keyed.ask(key)]
    assert [answer.status_code for answer in answers] == [200, 404, 200]
    assert [limit_headers(answer) for answer in answers] == [["3", "2"], ["3", "1"], ["3", "0"]]
    refused = await keyed.ask(key)
    error = assert_error(refused, 429, "rate_limit_exceeded")
    assert error["type"] == "rate_limit_error"
    assert limit_headers(refused) == ["3", "0"]
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-reset-requests"] == refused.headers["retry-after"] + "s"
    assert refused.headers["x-should-retry"] == "true"
    unlimited = await keyed.ask(free)
    assert (unlimited.status_code, limit_headers(unlimited)) == (200, [None, None])
    assert keyed.access.limits.active("acme") == 0


@pytest.mark.parametrize("jump_s", [-3600.0, 0.0, 3600.0])
async def test_a_minute_later_there_is_room_again_and_not_before_whatever_the_clock_says(
    keyed: KeyedServer, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    key = await keyed.tenant("acme", requests_per_minute=1)
    assert (await keyed.ask(key)).status_code == 200
    set_s, now_s = time.time() + jump_s, time.monotonic()
    monkeypatch.setattr("time.time", lambda: set_s)
    refused = await keyed.ask(key)
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    monkeypatch.setattr(keyed.access.limits, "_clock", lambda: now_s + 61)
    assert (await keyed.ask(key)).status_code == 200


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 4)), max_size=40))
def test_no_minute_has_more_requests_than_its_limit(steps: list[tuple[int, int]]) -> None:
    now_s, granted = 0.0, list[float]()
    limits = TenantLimits(1, lambda: now_s)
    for wait_s, limit in steps:
        now_s += wait_s
        window = limits.count(Tenant("a", requests_per_minute=limit))
        assert window is not None
        recent = [at for at in granted if at > now_s - 60]
        assert window.exceeded == (len(recent) >= limit)
        granted += [] if window.exceeded else [now_s]
        assert window.remaining == max(0, limit - len(recent) - (not window.exceeded))
        if window.exceeded:
            # What the client is told to wait is enough.
            now_s += window.reset_s
            assert sum(at > now_s - 60 for at in granted) < limit


def test_a_request_whose_limit_is_lowered_counts_on() -> None:
    limits = TenantLimits(1, lambda: 0.0)
    for limit, exceeded in [(3, False), (3, False), (2, True), (1, True), (3, False)]:
        window = limits.count(Tenant("a", requests_per_minute=limit))
        assert window is not None
        assert window.exceeded == exceeded


async def test_refused_requests_do_not_use_up_the_limit(keyed: KeyedServer) -> None:
    key = await keyed.tenant("acme", requests_per_minute=2, max_concurrent_requests=1)
    keyed.server.engine.release.clear()
    first = asyncio.create_task(keyed.ask(key))
    await until_active(keyed, 1)
    refused = await keyed.ask(key)
    assert_error(refused, 429, "rate_limit_exceeded")
    assert refused.headers["retry-after"] == "1"
    keyed.server.engine.release.set()
    assert limit_headers(await first) == ["2", "1"]
    assert limit_headers(await keyed.ask(key)) == ["2", "0"]


async def test_changed_limits_count_when_they_are_read(keyed: KeyedServer) -> None:
    key = await keyed.tenant("acme")
    assert limit_headers(await keyed.ask(key)) == [None, None]
    await keyed.limit("acme", requests_per_minute=1)
    assert limit_headers(await keyed.ask(key)) == ["1", "0"]
    assert (await keyed.ask(key)).status_code == 429
    await keyed.limit("acme", requests_per_minute=None)
    assert limit_headers(await keyed.ask(key)) == [None, None]


async def test_a_limit_on_requests_at_once_counts_those_in_progress(keyed: KeyedServer) -> None:
    key = await keyed.tenant("acme")
    keyed.server.engine.release.clear()
    taken = [asyncio.create_task(keyed.ask(key)) for _ in range(2)]
    await until_active(keyed, 2)
    await keyed.limit("acme", max_concurrent_requests=2)
    error = assert_error(await keyed.ask(key), 429, "rate_limit_exceeded")
    assert "2 requests of tenant 'acme'" in error["message"]
    assert (await keyed.ask(await keyed.tenant("other"), "/v1/tasks")).status_code == 405
    keyed.server.engine.release.set()
    assert [answer.status_code for answer in await asyncio.gather(*taken)] == [200, 200]
    assert (await keyed.ask(key)).status_code == 200
    assert keyed.access.limits.active("acme") == 0


async def test_admin_keys_and_probes_are_not_counted(keyed: KeyedServer) -> None:
    await keyed.tenant("acme", requests_per_minute=1)
    admin = await keyed.key(None)
    for _ in range(3):
        counted = await keyed.get("/v1/admin/nothing", {"x-api-key": admin})
        assert (counted.status_code, limit_headers(counted)) == (404, [None, None])
        assert (await keyed.get("/healthz")).status_code == 200


async def test_each_replica_grants_its_share(
    specs: dict[str, TaskSpec], database: Database
) -> None:
    keyed = KeyedServer(specs, database, replicas=2)
    await keyed.server.ready()
    key = await keyed.tenant("acme", requests_per_minute=5, max_concurrent_requests=1)
    assert limit_headers(await keyed.ask(key)) == ["2", "1"]
    assert limit_headers(await keyed.ask(key)) == ["2", "0"]
    assert (await keyed.ask(key)).status_code == 429


@given(st.integers(1, 50), st.integers(1, 20))
def test_the_shares_of_all_replicas_stay_within_the_limit(limit: int, replicas: int) -> None:
    limits, tenant = TenantLimits(replicas), Tenant("a", max_concurrent_requests=limit)
    with ExitStack() as held:
        with suppress(RateLimited):
            while True:
                held.enter_context(limits.slot(tenant))
        assert limits.active("a") >= 1
        assert limits.active("a") * replicas <= max(limit, replicas)
    assert limits.active("a") == 0


async def until_active(keyed: KeyedServer, wanted: int) -> None:
    """Return once so many requests of the tenant hold a slot; the test's time limit ends it."""
    while keyed.access.limits.active("acme") != wanted:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_a_slot_comes_back_after_a_bug(
    keyed: KeyedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> list[object]:
        raise KeyError("x")

    monkeypatch.setattr(keyed.server.engine, "run", broken)
    key = await keyed.tenant("acme", max_concurrent_requests=1)
    for _ in range(2):
        assert_error(await keyed.ask(key), 500, "internal_error")
    assert keyed.access.limits.active("acme") == 0


async def test_a_slot_comes_back_after_a_cancelled_request(keyed: KeyedServer) -> None:
    key = await keyed.tenant("acme", max_concurrent_requests=1)
    keyed.server.engine.release.clear()
    asked = asyncio.create_task(keyed.ask(key))
    await until_active(keyed, 1)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert keyed.access.limits.active("acme") == 0
    keyed.server.engine.release.set()
    assert (await keyed.ask(key)).status_code == 200


async def test_a_slot_is_held_until_a_streams_last_byte(keyed: KeyedServer) -> None:
    key = await keyed.tenant("acme", max_concurrent_requests=1)
    keyed.server.engine.fail_after_events = EngineFailure("the engine failed: OSError")
    for _ in range(2):
        held: list[int] = []
        app = build_http(keyed.server.context)
        await app(chat_scope(key), once(json.dumps(STREAM).encode()), counting(keyed, held))
        assert set(held) == {1}
        assert len(held) >= 3
        assert keyed.access.limits.active("acme") == 0


def chat_scope(key: str) -> dict[str, Any]:
    headers = [(b"content-type", b"application/json"), (b"x-api-key", key.encode())]
    return {"type": "http", "method": "POST", "path": CHAT, "headers": headers, "root_path": "",
            "query_string": b"", "http_version": "1.1", "scheme": "http",
            "asgi": {"spec_version": "2.4"}}  # fmt: skip


def once(body: bytes) -> Any:
    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    return receive


def counting(keyed: KeyedServer, held: list[int]) -> Any:
    async def send(message: Any) -> None:
        held.append(keyed.access.limits.active("acme"))

    return send


async def test_a_hang_up_in_the_middle_of_a_stream_gives_the_slot_back(
    keyed: KeyedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    async def endless(*_: object) -> tuple[OpenAIReply, AsyncIterator[str]]:
        async def events() -> AsyncIterator[str]:
            try:
                yield 'data: {"choices": [{"delta": {"content": "hi"}}]}\n\n'
                await asyncio.Event().wait()
            finally:
                closed.append(True)

        return OpenAIReply(200, None), events()

    monkeypatch.setattr(keyed.server.engine, "openai", endless)
    key = await keyed.tenant("acme", max_concurrent_requests=1)
    headers = {"x-api-key": key}
    async with (
        listening(build_http(keyed.server.context)) as url,
        httpx.AsyncClient(base_url=url, headers=headers, timeout=GUARD_S) as client,
    ):
        for rounds in (1, 2):
            async with client.stream("POST", CHAT, json=STREAM) as stream:
                assert stream.status_code == 200
                async for _ in stream.aiter_text():
                    break
                assert keyed.access.limits.active("acme") == 1
                assert_error(await client.get("/v1/models"), 429, "rate_limit_exceeded")
            await until_active(keyed, 0)
            assert len(closed) == rounds
        assert (await client.get("/v1/models")).status_code == 200


async def test_a_connection_lives_on_after_a_refusal(keyed: KeyedServer) -> None:
    async with (
        listening(build_http(keyed.server.context)) as url,
        httpx.AsyncClient(base_url=url, timeout=GUARD_S) as client,
    ):
        # Made while the server runs: its lifespan reads the directory anew.
        key = await keyed.tenant("acme")
        ports = set()
        for headers, status in (({}, 401), ({"x-api-key": key}, 200), ({"x-api-key": "x"}, 401)):
            answer = await client.post(TASK, json=BODY, headers=headers)
            assert answer.status_code == status
            ports.add(answer.extensions["network_stream"].get_extra_info("client_addr")[1])
        assert len(ports) == 1
