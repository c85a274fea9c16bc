"""Bodies that are late or too large, over a real socket and without a proxy in front."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn

from serving.contracts.task_spec import TaskSpec
from serving.gateway.http import build_http

from .patience import GUARD_S
from .scripted import Server, assert_error


@pytest.fixture
async def port(specs: dict[str, TaskSpec]) -> AsyncIterator[int]:
    async with listening(await Server(specs, body_timeout_s=0.3).ready()) as port:
        yield port


@pytest.fixture
async def large(specs: dict[str, TaskSpec]) -> AsyncIterator[int]:
    async with listening(await Server(specs, max_body_bytes=2**20).ready()) as port:
        yield port


@asynccontextmanager
async def listening(server: Server) -> AsyncIterator[int]:
    config = uvicorn.Config(
        build_http(server.context), port=0, log_level="critical", lifespan="off"
    )
    running = uvicorn.Server(config)
    task = asyncio.create_task(running.serve())
    async with asyncio.timeout(GUARD_S):
        while not running.started:  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.01)
    yield running.servers[0].sockets[0].getsockname()[1]
    running.should_exit = True
    await task


HEAD = b"POST /v1/tasks/topic HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


async def test_a_body_that_dribbles_gets_408_and_its_connection_is_closed(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEAD + b"content-length: 100\r\n\r\n")

    async def dribble() -> None:
        while True:
            writer.write(b" ")
            await asyncio.sleep(0.05)

    slowly = asyncio.create_task(dribble())
    async with asyncio.timeout(GUARD_S):
        answer = await reader.read()
    slowly.cancel()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert json.loads(body)["error"]["code"] == "request_timeout"


async def test_an_answer_may_take_longer_than_a_body(
    specs: dict[str, TaskSpec],
) -> None:
    server = await Server(specs, body_timeout_s=0.5).ready()
    server.engine.release.clear()
    asking = asyncio.create_task(server.client.post("/v1/tasks/topic", json={"input": "a text"}))
    await asyncio.sleep(0.7)
    server.engine.release.set()
    assert (await asking).status_code == 200


def chunks() -> Iterator[bytes]:
    for _ in range(64):
        yield b"x" * 2**16


@pytest.mark.parametrize("content", [b"x" * 2**22, chunks], ids=["declared", "chunked"])
async def test_a_client_that_is_still_sending_gets_its_413(
    large: int, content: bytes | Callable[[], Iterator[bytes]]
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for piece in content() if callable(content) else ():
            yield piece

    body = pieces() if callable(content) else content
    async with httpx.AsyncClient(timeout=GUARD_S) as client:
        answer = await client.post(
            f"http://127.0.0.1:{large}/v1/tasks/topic", content=body,
            headers={"content-type": "application/json"},
        )  # fmt: skip
    assert_error(answer, 413, "body_too_large")
    assert answer.headers["connection"] == "close"


async def test_a_body_that_never_ends_does_not_hold_its_413(large: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", large)
    writer.write(HEAD + b"content-length: 100000000\r\n\r\n")
    await writer.drain()
    async with asyncio.timeout(GUARD_S):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 413")
