"""Which way a chat completion goes: a task, a local model, or a frontier model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.contracts.answer import TaskRequest
from serving.contracts.errors import InvalidRequest, UnknownModel, UnsupportedParameter
from serving.contracts.frontier import Attempt, Tier
from serving.contracts.routing import Decision, Reason, RequestOptions
from serving.pipeline.local_task import Outcome
from serving.pipeline.stack import BoundTask, Engine, RequestContext, Stack, find

AUTO = "auto"
TASK_PREFIX = "task/"

# Of a chat that is a task by name: what else would be ignored is refused.
_TASK_FIELDS = frozenset({
    "model", "messages", "stream", "stream_options", "source_language", "target_language",
    "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "user", "metadata",
    "store", "service_tier", "n",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """A narrow task. decision: the router's; None where the client named the task."""

    request: TaskRequest
    decision: Decision | None


@dataclass(frozen=True, slots=True)
class LocalPlan:
    """A plain chat with a local model."""

    engine: Engine


@dataclass(frozen=True, slots=True)
class FrontierPlan:
    """A frontier model. targets: in order. attempts: what was tried before."""

    targets: tuple[str, ...]
    tier: Tier
    reason: Reason
    attempts: tuple[Attempt, ...] = ()


Plan = TaskPlan | LocalPlan | FrontierPlan


def escalated(
    body: Mapping[str, Any],
    decision: Decision,
    tried: Outcome,
    bound: BoundTask,
    trip: RequestContext,
) -> FrontierPlan:
    """Return the way of a narrow chat whose local answer will not do, and keep it in the log."""
    assert tried.reason is not None
    policy = trip.stack.policy
    tier = policy.task_tier
    trip.stack.decisions.record(_row(trip.request_id, body, decision, tried.reason))
    attempts = tried.set_aside(bound.engine.model_id).attempts
    return FrontierPlan(policy.tiers[tier], tier, tried.reason, attempts)


async def choose_plan(body: Mapping[str, Any], trip: RequestContext) -> Plan:
    """Return the way of a chat completion.

    Raises UnknownModel, UnknownTask, and InvalidRequest where the named model and the asked route
    contradict each other.
    """
    name: str = body["model"]
    stack, options = trip.stack, trip.options
    if name == AUTO:
        return await _routed(body, trip)
    if name.startswith(TASK_PREFIX):
        return TaskPlan(_task_request(body, name.removeprefix(TASK_PREFIX), stack), None)
    if name in stack.engines:
        return local_plan(body, trip)
    if name.partition("/")[0] in stack.policy.providers and "/" in name:
        if options.route == "local_only":
            raise _contradiction(name, options)
        return FrontierPlan((name,), stack.policy.tier_of(name), "requested")
    tasks = (TASK_PREFIX + task for task in sorted(stack.tasks))
    providers = (f"{provider}/MODEL" for provider in sorted(stack.policy.providers))
    raise _unknown(name, [AUTO, *stack.engines, *tasks, *providers])


def local_plan(body: Mapping[str, Any], trip: RequestContext) -> LocalPlan:
    """Return the way to a local model by name. Raises UnknownModel and InvalidRequest."""
    name: str = body["model"]
    engines = trip.stack.engines
    if name not in engines:
        raise _unknown(name, list(engines))
    if trip.options.route == "frontier_only":
        raise _contradiction(name, trip.options)
    return LocalPlan(engines[name])


def _unknown(name: str, known: Sequence[str]) -> UnknownModel:
    return UnknownModel(f"no model {name!r}", field="model", fix="use one of: " + ", ".join(known))


async def _routed(body: Mapping[str, Any], trip: RequestContext) -> Plan:
    stack, options = trip.stack, trip.options
    decision = await stack.router.decide(body)
    if decision.task is not None and options.route != "frontier_only":
        return TaskPlan(decision.task, decision)
    if options.route == "local_only":
        return LocalPlan(next(iter(stack.engines.values())))
    reason: Reason = "requested" if options.route == "frontier_only" else "out_of_scope"
    stack.decisions.record(_row(trip.request_id, body, decision, reason))
    return FrontierPlan(stack.policy.tiers[decision.tier], decision.tier, reason)


def _row(
    request_id: str, body: Mapping[str, Any], decision: Decision, reason: Reason
) -> dict[str, Any]:
    # Nothing of the body that the router does not look at.
    return {
        "request_id": request_id,
        "body": {"messages": body["messages"]},
        "task": decision.task.task if decision.task else None,
        "certainty": decision.certainty,
        "complexity": decision.complexity,
        "tier": decision.tier,
        "because": decision.because,
        "reason": reason,
    }


def _task_request(body: Mapping[str, Any], task: str, stack: Stack) -> TaskRequest:
    find(stack, task)
    unknown = sorted(set(body) - _TASK_FIELDS)
    if unknown or body.get("n") not in (None, 1):
        field = unknown[0] if unknown else "n"
        raise UnsupportedParameter(
            f"{field!r} is not supported with a task",
            field=field,
            fix="remove it, or name a model instead of a task",
        )
    turns = [message for message in body["messages"] if message.get("role") != "system"]
    text = _text(turns[0]) if len(turns) == 1 and turns[0].get("role") == "user" else None
    if text is None:
        raise InvalidRequest(
            "a task takes one user message of text: the input",
            field="messages",
            fix="send the text alone, without instructions",
        )
    return TaskRequest(task, text, _language(body, "source"), _language(body, "target"))


def _text(message: Mapping[str, Any]) -> str | None:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    return None


def _language(body: Mapping[str, Any], side: str) -> str | None:
    code = body.get(f"{side}_language")
    if code is not None and not isinstance(code, str):
        raise InvalidRequest(f"{side}_language is not a string", field=f"{side}_language")
    return code


def _contradiction(name: str, options: RequestOptions) -> InvalidRequest:
    return InvalidRequest(
        f"the model {name!r} and the route {options.route!r} contradict each other",
        field="route",
        fix="leave one of the two out",
    )
