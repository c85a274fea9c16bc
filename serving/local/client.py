"""The gateway's client of an engine deployment: deadlines, one retry, NarrowgateErrors."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from grpc.aio import AioRpcError
from ray.exceptions import RayActorError, RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    RequestCancelledError,
)
from ray.serve.handle import DeploymentHandle

from serving.contracts.deadline import Deadline, deadline_exceeded
from serving.contracts.engine import (
    EngineInfo,
    EngineOutput,
    EngineWork,
    GenerateOutput,
    GenerateWork,
    ScoreOutput,
    ScoreWork,
)
from serving.contracts.errors import (
    EngineFailure,
    ModelUnavailable,
    NarrowgateError,
    QueueFull,
)
from serving.contracts.openai import OpenAIReply
from serving.contracts.settings import ModelSettings
from serving.local.health import EngineHealth
from serving.local.microbatch import MicroBatcher

T = TypeVar("T")


class EngineEvents(Protocol):
    """The events of an engine client, for metrics."""

    def batch_sent(self, model: str, size: int) -> None:
        """A scoring batch of this many inputs was sent."""
        ...

    def call_retried(self, model: str) -> None:
        """A call is repeated because its replica was lost."""
        ...


class EngineClient:
    """One model's engine, as the pipeline and the OpenAI endpoints use it."""

    def __init__(
        self,
        model: ModelSettings,
        handle: DeploymentHandle,
        events: EngineEvents,
        attestation: str | None = None,
    ) -> None:
        self.model_id = model.id
        self._handle = handle
        self._streaming = handle.options(stream=True)
        self._events = events
        self._chunk = model.max_batch_size
        self._batcher = MicroBatcher(
            self._score,
            max_batch_size=model.max_batch_size,
            concurrent_batches=model.concurrent_batches,
            observe=lambda size: events.batch_sent(model.id, size),
        )
        self.health = EngineHealth(model.id, self._describe, attestation)

    @property
    def queue_depth(self) -> int:
        """Return how many inputs wait for a scoring batch."""
        return self._batcher.depth

    async def run(
        self, works: Sequence[EngineWork], deadline: Deadline
    ) -> list[EngineOutput | NarrowgateError]:
        """Run works of one client request; outputs and errors are in the works' order.

        Raises ModelStarting or ModelUnavailable before anything is sent.
        Cancelling the caller aborts its work in the engine.
        """
        self.health.require_ready()
        outputs: list[EngineOutput | NarrowgateError | None] = [None] * len(works)
        scoring = [i for i, work in enumerate(works) if isinstance(work, ScoreWork)]
        generating = [i for i, work in enumerate(works) if isinstance(work, GenerateWork)]
        chunks = [generating[i : i + self._chunk] for i in range(0, len(generating), self._chunk)]

        async def score(index: int) -> None:
            work = works[index]
            assert isinstance(work, ScoreWork)
            try:
                outputs[index] = await self._batcher.submit(work, deadline)
            except NarrowgateError as error:
                outputs[index] = error

        async def generate(indices: list[int]) -> None:
            chunk = [works[i] for i in indices]
            try:
                results: Sequence[EngineOutput | NarrowgateError] = await self._generate(
                    chunk, deadline
                )
            except NarrowgateError as error:
                results = [error] * len(indices)
            for i, result in zip(indices, results, strict=True):
                outputs[i] = result

        async with asyncio.TaskGroup() as group:
            for index in scoring:
                group.create_task(score(index))
            for chunk in chunks:
                group.create_task(generate(chunk))
        return [output for output in outputs if output is not None]

    async def openai(
        self, endpoint: str, body: dict[str, Any], request_id: str, deadline: Deadline
    ) -> tuple[OpenAIReply, AsyncIterator[str]]:
        """Run a chat completion (`chat`) or completion; return the reply and, for streams, events.

        A lost replica is retried only before the reply: after it, output has reached the client.
        """
        self.health.require_ready()

        async def start() -> tuple[OpenAIReply, AsyncIterator[str]]:
            stream = self._streaming.openai.remote(endpoint, body, request_id)
            reply = await self._wait(deadline, anext(stream), stream.cancel)
            return reply, self._server_sent(stream, deadline)

        return await self._retried(start)

    async def metrics(self, timeout_s: float) -> str:
        """Return one replica's engine metrics in Prometheus text format."""
        response = self._handle.metrics.remote()
        text: str = await self._wait(Deadline.after(timeout_s), response, response.cancel)
        return text

    async def _describe(self, timeout_s: float) -> EngineInfo:
        response = self._handle.describe.remote()
        try:
            # wait_for can lose a cancellation that comes together with the answer.
            async with asyncio.timeout(timeout_s):
                info: EngineInfo = await _translated(response)
        except (TimeoutError, asyncio.CancelledError):
            response.cancel()
            raise
        return info

    async def _score(
        self, works: Sequence[ScoreWork], deadline: Deadline
    ) -> Sequence[ScoreOutput | NarrowgateError]:
        async def call() -> Sequence[ScoreOutput | NarrowgateError]:
            response = self._handle.score.remote(works)
            return await self._wait(deadline, response, response.cancel)

        return await self._retried(call)

    async def _generate(
        self, works: Sequence[EngineWork], deadline: Deadline
    ) -> Sequence[GenerateOutput | NarrowgateError]:
        async def call() -> Sequence[GenerateOutput | NarrowgateError]:
            stream = self._streaming.generate.remote(works)
            return await self._wait(deadline, anext(stream), stream.cancel)

        return await self._retried(call)

    async def _retried(self, call: Callable[[], Awaitable[T]]) -> T:
        """Run a call; where its replica was lost, once more if another one is healthy."""
        try:
            return await call()
        except ModelUnavailable:
            await self.health.confirm()
            self._events.call_retried(self.model_id)
            return await call()

    async def _wait(
        self, deadline: Deadline, awaitable: Awaitable[T], cancel: Callable[[], object]
    ) -> T:
        """Await a remote result until the deadline or the loss of the last healthy replica.

        cancel: cancels the call in Ray Serve; called whenever the wait ends early.
        """
        call = asyncio.ensure_future(_translated(awaitable))
        try:
            with self.health.until_lost() as lost:
                either: set[asyncio.Future[Any]] = {call, lost}
                with suppress(TimeoutError):
                    async with deadline.timeout():
                        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                if call.done():
                    return call.result()
                raise self.health.unavailable() if lost.done() else deadline_exceeded()
        finally:
            if not call.done():
                call.cancel()
                cancel()

    async def _server_sent(self, stream: Any, deadline: Deadline) -> AsyncIterator[str]:
        try:
            while True:
                try:
                    yield await self._wait(deadline, anext(stream), stream.cancel)
                except StopAsyncIteration:
                    return
        finally:
            # Reached early when the client has disconnected: the engine's work is aborted.
            stream.cancel()


async def _translated(awaitable: Awaitable[T]) -> T:
    try:
        return await awaitable
    except (RayError, RayServeException, AioRpcError) as error:
        raise translate(error) from error


def translate(error: Exception) -> NarrowgateError:
    """Return the NarrowgateError for an error of Ray."""
    cause = error.cause if isinstance(error, RayTaskError) else None
    match error:
        case RayTaskError() if isinstance(cause, NarrowgateError):
            return cause
        case RayActorError() | DeploymentUnavailableError() | AioRpcError():
            return ModelUnavailable("the replica that ran the work was lost", retry_after_s=10)
        case BackPressureError():
            return QueueFull("every replica of the model is at its limit", retry_after_s=1)
        case RequestCancelledError() | TaskCancelledError():
            return ModelUnavailable("the replica cancelled the work", retry_after_s=10)
        case _:
            return EngineFailure(f"the engine failed: {type(cause or error).__name__}")
