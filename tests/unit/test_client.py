"""The engine client: one retry on a healthy replica, deadlines, cancelled calls are cancelled."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any

import pytest
from ray.exceptions import ActorUnavailableError

from serving.contracts.deadline import Deadline
from serving.contracts.engine import (
    EngineInfo,
    GenerateOutput,
    GenerateWork,
    ScoreOutput,
    ScoreWork,
    ScoringPoint,
    TokenCounts,
)
from serving.contracts.errors import DeadlineExceeded, ModelStarting, ModelUnavailable
from serving.contracts.openai import OpenAIReply
from serving.contracts.settings import Settings
from serving.local import health as health_module
from serving.local.client import EngineClient

from .patience import GUARD_S

MODEL = Settings().models[0]
INFO = EngineInfo(MODEL.id, "vllm", "0.29.0", 2048, None, "bfloat16")
SCORE = ScoreWork((1, 2), (ScoringPoint((), (3, 4)),))
GENERATE = GenerateWork((1, 2), max_tokens=4)
SCORED = ScoreOutput(((-1.0, -2.0),), TokenCounts(2, 0, 0))
GENERATED = GenerateOutput("x", (-0.1,), "stop", TokenCounts(2, 0, 1))
LATER = 3600.0


class Call:
    """A response of a Serve handle: awaited for a value, iterated for a stream."""

    def __init__(self, answer: Callable[[], Awaitable[Any]]) -> None:
        self._answer = answer
        self.cancelled = False
        self._rest: list[Any] | None = None

    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer().__await__()

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._rest is None:
            value = await self._answer()
            self._rest = list(value) if isinstance(value, tuple) else [value]
        if not self._rest:
            raise StopAsyncIteration
        return self._rest.pop(0)

    def cancel(self) -> None:
        self.cancelled = True


class Method:
    def __init__(self, handle: "Handle", name: str) -> None:
        self._handle, self._name = handle, name

    def remote(self, *args: Any) -> Call:
        return self._handle.called(self._name, args)


class Handle:
    """A Serve handle whose replica is healthy, lost or silent, call by call."""

    def __init__(self) -> None:
        self.moods: list[str] = []
        self.pings = "well"
        self.calls: list[tuple[str, Call]] = []

    def options(self, *, stream: bool) -> "Handle":
        return self

    def __getattr__(self, name: str) -> Method:
        return Method(self, name)

    def called(self, name: str, args: tuple[Any, ...]) -> Call:
        mood = self.pings if name == "describe" else (self.moods.pop(0) if self.moods else "well")
        values = {
            "describe": INFO,
            "score": [SCORED] * len(args[0]) if args else [],
            "generate": [GENERATED] * len(args[0]) if args else [],
            "openai": (OpenAIReply(200, None), "data: 1\n\n", "data: 2\n\n"),
        }

        async def answer() -> Any:
            if mood == "silent":
                await asyncio.sleep(LATER)
            if mood == "lost":
                raise ActorUnavailableError("gone", None)
            return values[name]

        call = Call(answer)
        if name != "describe":
            self.calls.append((name, call))
        return call


class Events:
    def __init__(self) -> None:
        self.retries = 0

    def batch_sent(self, model: str, size: int) -> None:
        pass

    def call_retried(self, model: str) -> None:
        self.retries += 1


@pytest.fixture
async def setting(monkeypatch: pytest.MonkeyPatch) -> tuple[EngineClient, Handle, Events]:
    monkeypatch.setattr(health_module, "_CONFIRM_TIMEOUT_S", 0.05)
    handle, events = Handle(), Events()
    client = EngineClient(MODEL, handle, events)
    await client.health.confirm()
    return client, handle, events


Setting = tuple[EngineClient, Handle, Events]


async def test_nothing_is_sent_before_the_model_is_ready() -> None:
    handle = Handle()
    client = EngineClient(MODEL, handle, Events())
    with pytest.raises(ModelStarting):
        await client.run([SCORE], Deadline.after(LATER))
    assert handle.calls == []


async def test_outputs_are_in_the_works_order(setting: Setting) -> None:
    client, _, _ = setting
    outputs = await client.run([GENERATE, SCORE, GENERATE], Deadline.after(LATER))
    assert outputs == [GENERATED, SCORED, GENERATED]


@pytest.mark.parametrize("work", [SCORE, GENERATE])
async def test_a_lost_replicas_work_is_tried_once_more(
    setting: Setting, work: ScoreWork | GenerateWork
) -> None:
    client, handle, events = setting
    handle.moods = ["lost"]
    (output,) = await client.run([work], Deadline.after(LATER))
    assert output in (SCORED, GENERATED)
    assert events.retries == 1
    assert len(handle.calls) == 2


@pytest.mark.parametrize("work", [SCORE, GENERATE])
async def test_twice_lost_is_unavailable(setting: Setting, work: ScoreWork | GenerateWork) -> None:
    client, handle, _ = setting
    handle.moods = ["lost", "lost", "well"]
    (output,) = await client.run([work], Deadline.after(LATER))
    assert isinstance(output, ModelUnavailable)
    assert len(handle.calls) == 2


async def test_without_a_healthy_replica_nothing_is_repeated(setting: Setting) -> None:
    client, handle, events = setting
    handle.moods, handle.pings = ["lost"], "silent"
    (output,) = await client.run([GENERATE], Deadline.after(LATER))
    assert isinstance(output, ModelUnavailable)
    assert output.retry_after_s
    assert events.retries == 0
    with pytest.raises(ModelUnavailable):
        await client.run([GENERATE], Deadline.after(LATER))
    assert len(handle.calls) == 1


async def test_calls_that_hang_on_a_lost_replica_are_woken(setting: Setting) -> None:
    client, handle, _ = setting
    handle.moods = ["silent", "lost"]
    hanging = asyncio.create_task(client.run([GENERATE], Deadline.after(LATER)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    handle.pings = "silent"
    await client.run([GENERATE], Deadline.after(LATER))
    (output,) = await asyncio.wait_for(hanging, timeout=GUARD_S)
    assert isinstance(output, ModelUnavailable)
    assert handle.calls[0][1].cancelled


async def test_the_deadline_cancels_the_call(setting: Setting) -> None:
    client, handle, _ = setting
    handle.moods = ["silent"]
    (output,) = await client.run([GENERATE], Deadline.after(0.05))
    assert isinstance(output, DeadlineExceeded)
    assert handle.calls[0][1].cancelled


async def test_a_client_that_leaves_cancels_the_call(setting: Setting) -> None:
    client, handle, _ = setting
    handle.moods = ["silent"]
    request = asyncio.create_task(client.run([GENERATE], Deadline.after(LATER)))
    while not handle.calls:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert handle.calls[0][1].cancelled


async def test_a_stream_is_retried_before_its_first_item_only(setting: Setting) -> None:
    client, handle, events = setting
    handle.moods = ["lost"]
    reply, stream = await client.openai("chat", {}, "id", Deadline.after(LATER))
    assert (reply.status, events.retries) == (200, 1)
    assert [event async for event in stream] == ["data: 1\n\n", "data: 2\n\n"]
    assert len(handle.calls) == 2
