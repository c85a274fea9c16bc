"""Bodies that come slowly, over a real socket and without a proxy in front."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import uvicorn

from serving.contracts.task_spec import TaskSpec
from serving.gateway.http import build_http

from .scripted import Server


@pytest.fixture
async def port(specs: dict[str, TaskSpec]) -> AsyncIterator[int]:
    server = await Server(specs, body_timeout_s=0.3).ready()
    config = uvicorn.Config(
        build_http(server.context), port=0, log_level="critical", lifespan="off"
    )
    running = uvicorn.Server(config)
    task = asyncio.create_task(running.serve())
    async with asyncio.timeout(20):
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
    async with asyncio.timeout(20):
        answer = await reader.read()
    slowly.cancel()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408")
    assert json.loads(body)["error"]["code"] == "request_timeout"


async def test_an_answer_may_take_longer_than_a_body(
    specs: dict[str, TaskSpec],
) -> None:
    server = await Server(specs, body_timeout_s=0.05).ready()
    server.engine.release.clear()
    asking = asyncio.create_task(server.client.post("/v1/tasks/topic", json={"input": "a text"}))
    await asyncio.sleep(0.2)
    server.engine.release.set()
    assert (await asking).status_code == 200
