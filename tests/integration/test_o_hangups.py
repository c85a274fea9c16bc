"""A client that disconnects stops the engine's work for its request only."""

import asyncio
import time

import httpx
import pytest

from .conftest import MODEL, Stack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

LONG_CHAT = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Tell me a very long story."}],
    "max_tokens": 1800,
    "ignore_eos": True,
}
LONG_NER = {"input": "Angela Merkel met Tim Cook in Berlin, and Paul went to Rome. " * 20}


def wait_idle(stack: Stack) -> None:
    """Return when the engine has no request; its gauges move only while it steps, so it is
    given a step each time."""
    deadline = time.monotonic() + 60
    running = 1.0
    while running and time.monotonic() < deadline:
        httpx.post(f"{stack.url}/v1/tasks/topic", json={"input": "A step."}, timeout=30)
        running = stack.metric("vllm:num_requests_running")
    assert running == 0
    tokens = stack.metric("vllm:generation_tokens_total")
    # An aborted request generates nothing: only elapsed time can show that the counter stays.
    time.sleep(1.5)
    assert stack.metric("vllm:generation_tokens_total") == tokens


async def hang_up(stack: Stack, path: str, body: dict, running: asyncio.Event) -> None:
    async with httpx.AsyncClient(base_url=stack.url, timeout=120) as session:
        request = asyncio.create_task(session.post(path, json=body))
        while not await asyncio.to_thread(stack.metric, "vllm:num_requests_running"):
            assert not request.done(), request.result().text
            await asyncio.sleep(0.05)
        running.set()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", LONG_CHAT),
        (
            "/v1/completions",
            {"model": MODEL, "prompt": "A", "max_tokens": 1800, "ignore_eos": True},
        ),
        ("/v1/tasks/ner", LONG_NER),
        ("/v1/tasks/ner", {"inputs": [LONG_NER["input"], LONG_NER["input"] + "!"]}),
    ],
    ids=["chat", "completion", "task", "several inputs"],
)
def test_a_hang_up_ends_the_engines_work(stack: Stack, path: str, body: dict) -> None:
    wait_idle(stack)
    running = asyncio.Event()
    asyncio.run(hang_up(stack, path, body, running))
    assert running.is_set()
    wait_idle(stack)


def test_a_stream_that_is_left_ends(stack: Stack) -> None:
    wait_idle(stack)
    with httpx.stream(
        "POST", f"{stack.url}/v1/chat/completions", json={**LONG_CHAT, "stream": True}, timeout=60
    ) as response:
        lines = response.iter_lines()
        for _ in range(8):
            next(lines)
    wait_idle(stack)


def test_neighbours_in_a_batch_do_not_notice(stack: Stack) -> None:
    async def scenario() -> list[object]:
        async with httpx.AsyncClient(base_url=stack.url, timeout=120) as session:

            async def client(number: int) -> object:
                request = session.post(
                    "/v1/tasks/sentiment", json={"input": f"Text number {number} is short."}
                )
                if number % 2:
                    return (await request).status_code
                try:
                    return (await asyncio.wait_for(request, 0.2)).status_code
                except TimeoutError:
                    return "left"

            return await asyncio.gather(*(client(number) for number in range(48)))

    outcomes = asyncio.run(scenario())
    assert outcomes[1::2] == [200] * 24
    assert "left" in outcomes[0::2], "no client was slow enough to leave"
    wait_idle(stack)
