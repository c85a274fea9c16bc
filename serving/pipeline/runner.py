"""The protocol of runners, which run plans, and the runner that applies admission."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from serving.contracts.deadline import Deadline
from serving.contracts.engine import EngineOutput, EngineWork
from serving.contracts.errors import NarrowgateError
from serving.contracts.openai import OpenAIReply
from serving.contracts.requests import Request
from serving.pipeline.exit_recorder import Outcome, OutcomeStream, RequestRecord
from serving.pipeline.plan import Plan
from serving.tasks.grant import Grant
from serving.tasks.task import Task

R = TypeVar("R", bound=Request, contravariant=True)
P = TypeVar("P", bound=Plan, contravariant=True)


class Runner(Protocol[R, P]):
    """Runs a plan for a request. Runners wrap runners; serving.app wires them.

    A model's error is raised, or is the outcome of the one input that it concerns. Cancelling a
    runner cancels its model's work.
    """

    async def whole(self, request: R, plan: P, record: RequestRecord) -> list[Outcome]:
        """Return the outcomes of the request's inputs, in their order."""
        ...

    async def stream(self, request: R, plan: P, record: RequestRecord) -> Outcome | OutcomeStream:
        """Return the answer once it has begun; whole where the model answers at once.

        What lasts until the answer's last byte is entered into `record.resources`.
        """
        ...


class Engine(Protocol):
    """Runs a local model's work; serving.local.client implements it."""

    model_id: str

    async def run(
        self, works: Sequence[EngineWork], deadline: Deadline
    ) -> list[EngineOutput | NarrowgateError]:
        """Run works; outputs and errors are in the works' order."""
        ...

    async def openai(
        self, endpoint: str, body: dict[str, Any], request_id: str, deadline: Deadline
    ) -> tuple[OpenAIReply, AsyncIterator[str]]:
        """Run a chat completion or completion; return the reply and, for streams, events."""
        ...


@dataclass(frozen=True, slots=True)
class BoundTask:
    """A task, the engine that answers it, and the attestation's grant."""

    task: Task
    engine: Engine
    grant: Grant


class AdmissionLimit(Protocol):
    """A limit on concurrent work; serving.gateway.admission implements it."""

    def admit(self, units: int, deadline: Deadline) -> AbstractAsyncContextManager[None]:
        """Hold a place for this many units. Raises QueueFull, ShuttingDown, DeadlineExceeded."""
        ...


class Admitted(Generic[R, P]):
    """Runs another runner within an admission limit. units: admission units of a request."""

    def __init__(
        self, runner: Runner[R, P], limit: AdmissionLimit, units: Callable[[R], int]
    ) -> None:
        self._runner = runner
        self._limit = limit
        self._units = units

    async def whole(self, request: R, plan: P, record: RequestRecord) -> list[Outcome]:
        """Run the other runner once there is a place; release it with the outcomes."""
        async with self._limit.admit(self._units(request), plan.deadline):
            return await self._runner.whole(request, plan, record)

    async def stream(self, request: R, plan: P, record: RequestRecord) -> Outcome | OutcomeStream:
        """Run the other runner once there is a place; release it when the reply is sent."""
        await record.resources.enter_async_context(
            self._limit.admit(self._units(request), plan.deadline)
        )
        return await self._runner.stream(request, plan, record)


def every_unit(request: Request) -> int:
    """Return the units of a request: choices, prompts or inputs."""
    return request.units


def one_call(request: Request) -> int:
    """Return 1: every call of a provider counts once."""
    return 1
