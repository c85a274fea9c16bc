"""Which way a request goes and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, Protocol, get_args

from serving.contracts.answer import TaskRequest
from serving.contracts.frontier import Tier

RoutePreference = Literal["local_only", "auto", "frontier_only"]

Reason = Literal[
    "narrow",  # a whitelisted task, answered within its bound
    "requested",  # the client named the model or the route
    "out_of_scope",  # no whitelisted task
    "below_threshold",  # answered locally, outside the certified bound
    "invalid_output",  # answered locally, unreadable
    "not_attested",  # the local model has no proof for the task
    "overload",  # no room in the local queue
    "local_failure",  # the local model failed or is not there
    "deadline_at_risk",  # the local model was too slow to leave time for anything else
]
REASONS: tuple[Reason, ...] = get_args(Reason)


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What a client may ask besides the answer."""

    route: RoutePreference = "auto"
    max_cost_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What the router thinks of a free-form request.

    task: the narrow task it is, input included, or None. certainty: probability of that task, or
    of none. complexity: in [0, 1]; None where nothing was scored. tier: where it goes if not
    answered locally. because: the rule or the scores, for logs. labels: of a task with labels or
    entity types, those that the client named, each with the client's own word for it; None where
    it named none. An answer outside them is not what was asked and must escalate; entities of
    other types are left out.
    """

    task: TaskRequest | None
    certainty: float
    complexity: float | None
    tier: Tier
    because: str
    labels: Mapping[str, str] | None = None


class Router(Protocol):
    """Decides before the call; serving.routing implements it."""

    async def decide(self, body: Mapping[str, Any]) -> Decision:
        """Return the way of a chat request. body: fields of OpenAI's chat completions."""
        ...


class DecisionLog(Protocol):
    """Keeps what went to a frontier model, for people to label and the router to learn from."""

    def record(self, row: Mapping[str, Any]) -> None:
        """Take a row to be written; never blocks and never raises."""
        ...

    def close(self) -> None:
        """Write what waits. Blocking."""
        ...
