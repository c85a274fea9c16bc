"""The protocol of runners, which run plans, and of the engines that they call."""

from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
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


class Where(Generic[R, P]):
    """Implements Runner: one runner for what it concerns, and another, without a detour, for the
    rest.
    """

    def __init__(
        self, concerns: Callable[[R, P], bool], runner: Runner[R, P], otherwise: Runner[R, P]
    ) -> None:
        self._concerns = concerns
        self._runner = runner
        self._otherwise = otherwise

    def whole(
        self, request: R, plan: P, record: RequestRecord
    ) -> Coroutine[Any, Any, list[Outcome]]:
        """Run the one runner or the other."""
        return self._chosen(request, plan).whole(request, plan, record)

    def stream(
        self, request: R, plan: P, record: RequestRecord
    ) -> Coroutine[Any, Any, Outcome | OutcomeStream]:
        """Run the one runner or the other."""
        return self._chosen(request, plan).stream(request, plan, record)

    def _chosen(self, request: R, plan: P) -> Runner[R, P]:
        return self._runner if self._concerns(request, plan) else self._otherwise


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
