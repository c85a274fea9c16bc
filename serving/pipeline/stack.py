"""Everything a request passes through."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, Self

from serving.contracts.deadline import Deadline
from serving.contracts.engine import EngineOutput, EngineWork
from serving.contracts.errors import NarrowgateError, UnknownTask
from serving.contracts.exits import ExitObserver
from serving.contracts.frontier import TIERS, Frontier, OutputBounds, Tier
from serving.contracts.frontier_settings import FrontierSettings
from serving.contracts.ledger import Caller, Ledger
from serving.contracts.openai import OpenAIReply
from serving.contracts.routing import DecisionLog, Reason, RequestOptions, Router
from serving.contracts.routing_settings import RoutingSettings
from serving.pipeline.replica_meter import ReplicaMeter
from serving.tasks.grant import Grant
from serving.tasks.task import Task


class Engine(Protocol):
    """What runs a local model's work; serving.local.client implements it."""

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


class AdmissionLimit(Protocol):
    """A bound on concurrent work; serving.gateway.admission implements it."""

    def admit(self, inputs: int, deadline: Deadline) -> AbstractAsyncContextManager[None]:
        """Hold room for so many inputs. Raises QueueFull, ShuttingDown, DeadlineExceeded."""
        ...


@dataclass(frozen=True, slots=True)
class BoundTask:
    """A task, the engine that answers it, and what the engine's model is attested for."""

    task: Task
    engine: Engine
    grant: Grant


@dataclass(frozen=True, slots=True)
class Policy:
    """What the settings say of escalation.

    tiers: `provider/model`s in order. bounds: of free-form answers. reserve_s: time that a local
    attempt leaves for a frontier call. providers: those configured, with a key or without.
    """

    escalate_on: frozenset[Reason]
    task_tier: Tier
    tiers: Mapping[Tier, tuple[str, ...]]
    bounds: Mapping[Tier, OutputBounds]
    reserve_s: float
    providers: frozenset[str]

    @classmethod
    def of(cls, frontier: FrontierSettings, routing: RoutingSettings) -> Self:
        """Return the policy of the settings."""
        bounds = frontier.bounds
        return cls(
            escalate_on=frozenset(routing.escalate_on),
            task_tier=routing.task_tier,
            tiers={tier: frontier.tiers[tier] for tier in TIERS},
            bounds={
                tier: OutputBounds(
                    bounds.max_tokens[tier],
                    bounds.stop,
                    bounds.directive
                    and bounds.directive.replace("{words}", str(_words(bounds.max_tokens[tier]))),
                )
                for tier in TIERS
            },
            reserve_s=routing.frontier_reserve_s,
            providers=frozenset(frontier.providers),
        )

    def tier_of(self, model: str) -> Tier:
        """Return the cheapest tier that lists a `provider/model`; the dearest where none does."""
        return next((tier for tier, models in self.tiers.items() if model in models), "frontier")

    def local_deadline(self, deadline: Deadline) -> Deadline:
        """Return until when a local attempt may run if a frontier call is to follow."""
        left = deadline.remaining_s()
        return Deadline.after(left - min(self.reserve_s, left / 2))


@dataclass(frozen=True, slots=True)
class Stack:
    """Everything a request passes through. engines, meters: by local model's id."""

    tasks: Mapping[str, BoundTask]
    engines: Mapping[str, Engine]
    meters: Mapping[str, ReplicaMeter]
    router: Router
    frontier: Frontier
    policy: Policy
    local_admission: AdmissionLimit
    frontier_admission: AdmissionLimit
    ledger: Ledger
    exits: ExitObserver
    decisions: DecisionLog


@dataclass(frozen=True, slots=True)
class RequestContext:
    """One client request on its way: what it passes, whose it is, what it asks, until when."""

    stack: Stack
    options: RequestOptions
    deadline: Deadline
    request_id: str
    caller: Caller

    def escalates(self, reason: Reason | None) -> bool:
        """Return whether a task leaves for a frontier model for this reason."""
        policy = self.stack.policy
        return (
            reason in policy.escalate_on
            and self.options.route == "auto"
            and bool(self.stack.frontier.configured(policy.tiers[policy.task_tier]))
        )


def _words(tokens: int) -> int:
    # English prose has about 3 words for 4 tokens; a third is left, so that answers end by
    # themselves.
    return max(1, tokens // 2)


def find(stack: Stack, name: str) -> BoundTask:
    """Return a task by name. Raises UnknownTask, which lists the tasks there are."""
    try:
        return stack.tasks[name]
    except KeyError:
        raise UnknownTask(
            f"no task {name!r}",
            field="task",
            fix="use one of: " + ", ".join(sorted(stack.tasks)),
        ) from None
