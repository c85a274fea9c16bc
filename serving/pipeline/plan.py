"""Which model answers a request, and why. Pure but for the vectors that the router compares."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from serving.contracts.context import RequestContext
from serving.contracts.deadline import Deadline
from serving.contracts.errors import (
    InputTooLong,
    InvalidRequest,
    UnknownModel,
    UnsupportedParameter,
)
from serving.contracts.frontier import OutputBounds
from serving.contracts.frontier_settings import FrontierSettings
from serving.contracts.requests import (
    AUTO,
    TASK_PREFIX,
    ChatRequest,
    CompletionRequest,
    TaskBatch,
)
from serving.contracts.routing import TIERS, Decision, Reason, Router, Tier
from serving.contracts.routing_settings import RoutingSettings
from serving.contracts.task_spec import TaskSpec
from serving.evidence.standing import Standing
from serving.pipeline.known_vectors import KnownVectors
from serving.pipeline.read import task_request
from serving.tasks.catalog import find_task


@dataclass(frozen=True, slots=True)
class LocalPlan:
    """A chat or completion with a local model. body: what its engine gets."""

    model: str
    body: Mapping[str, Any]
    deadline: Deadline
    reason: Reason = "requested"


@dataclass(frozen=True, slots=True)
class FrontierPlan:
    """A chat with a frontier model. targets: `provider/model`s in order. bounds: of the tier.

    decision: the router's, where it chose; the decision log keeps it.
    """

    targets: tuple[str, ...]
    tier: Tier
    bounds: OutputBounds
    deadline: Deadline
    reason: Reason
    decision: Decision | None = None


@dataclass(frozen=True, slots=True)
class TaskPlan:
    """Inputs of one task: the local model, then a frontier model for those that must escalate.

    local: whether the local model is tried. deadline: of that attempt. escalate_on: reasons for
    which an input goes to the fallback; empty where it may not. decision: the router's, where it
    recognised the task in a chat: its fallback answers the client's own messages, in free form.
    None where the client named the task: its fallback answers the task's prompt, in the task's
    form. standing: what the task's claim allows; None where only the attested threshold decides.
    """

    batch: TaskBatch
    local: bool
    deadline: Deadline
    escalate_on: frozenset[Reason]
    fallback: FrontierPlan
    decision: Decision | None = None
    reason: Reason | None = None
    standing: Standing | None = None


Plan = LocalPlan | FrontierPlan | TaskPlan


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that plans depend on.

    specs: tasks by name. local_models: by id, the default first, the most characters of a prompt
    that can fit the model's window. escalate_on: reasons for which a task's input goes to a
    frontier model. tiers: `provider/model`s in order. bounds: of free-form
    answers. reserve_s: time that a local attempt leaves for a frontier call. providers: those
    configured, with a key or without. configured: returns those targets whose provider has a key.
    """

    specs: Mapping[str, TaskSpec]
    local_models: Mapping[str, int]
    escalate_on: frozenset[Reason]
    task_tier: Tier
    tiers: Mapping[Tier, tuple[str, ...]]
    bounds: Mapping[Tier, OutputBounds]
    reserve_s: float
    providers: frozenset[str]
    configured: Callable[[tuple[str, ...]], tuple[str, ...]]

    @classmethod
    def of(
        cls,
        frontier: FrontierSettings,
        routing: RoutingSettings,
        specs: Mapping[str, TaskSpec],
        local_models: Mapping[str, int],
        configured: Callable[[tuple[str, ...]], tuple[str, ...]],
    ) -> Self:
        """Return the policy of the settings."""
        return cls(
            specs=specs,
            local_models=local_models,
            escalate_on=frozenset(routing.escalate_on),
            task_tier=routing.task_tier,
            tiers={tier: frontier.tiers[tier] for tier in TIERS},
            bounds=free_form_bounds(frontier),
            reserve_s=routing.frontier_reserve_s,
            providers=frozenset(frontier.providers),
            configured=configured,
        )

    def tier_of(self, model: str) -> Tier:
        """Return the cheapest tier that lists a `provider/model`; by default the most expensive."""
        return next((tier for tier, models in self.tiers.items() if model in models), "frontier")


def directive_within(directive: str, max_tokens: int) -> str:
    """Return a directive of the settings for a limit, with its number of words.

    English prose has about 3 words for 4 tokens. The limit is half as many words as tokens, so that
    most answers end before the limit.
    """
    return directive.replace("{words}", str(max(1, max_tokens // 2)))


def free_form_bounds(frontier: FrontierSettings) -> dict[Tier, OutputBounds]:
    """Return each tier's bounds of free-form answers.

    Where a judge compares brief answers, a directive is added under its claim alone.
    """
    bounds = frontier.bounds

    def directive(tier: Tier) -> str | None:
        if bounds.directive is None or bounds.judge is not None:
            return None
        return directive_within(bounds.directive, bounds.max_tokens[tier])

    return {
        tier: OutputBounds(bounds.max_tokens[tier], bounds.stop, directive(tier)) for tier in TIERS
    }


@dataclass(frozen=True, slots=True)
class Planner:
    """Plans requests: has the router decide on chats with the model `auto`, then chooses.

    known: vectors of instructions of earlier requests.
    """

    policy: Policy
    router: Router
    known: KnownVectors

    async def plan(
        self,
        request: ChatRequest | CompletionRequest | TaskBatch,
        context: RequestContext,
        vectors: dict[str, NDArray[np.float32]],
    ) -> Plan:
        """Return the plan of a request. Raises as `choose_plan`.

        vectors: of the request's texts, by text, as far as an earlier step embedded them.
        """
        if not isinstance(request, ChatRequest) or request.model != AUTO:
            return choose_plan(request, context, self.policy)
        tenant = context.caller.tenant

        def known(text: str) -> NDArray[np.float32] | None:
            vector = vectors.get(text)
            return self.known.find(tenant, text) if vector is None else vector

        compared = await self.router.vectors(request, known)
        self.known.add(tenant, compared.by_text)
        return choose_plan(request, context, self.policy, self.router.decide(request, compared))


def choose_plan(
    request: ChatRequest | CompletionRequest | TaskBatch,
    context: RequestContext,
    policy: Policy,
    decision: Decision | None = None,
) -> Plan:
    """Return the plan of a request. decision: the router's, for a chat with the model `auto`.

    Raises UnknownModel, UnknownTask, UnsupportedParameter, and InvalidRequest where the named model
    and the requested route contradict each other.
    """
    match request:
        case TaskBatch():
            return _task_plan(request, context, policy)
        case CompletionRequest():
            return _local_plan(request, request.model, policy.local_models, context)
        case ChatRequest():
            return _chat_plan(request, context, policy, decision)


def _chat_plan(
    request: ChatRequest, context: RequestContext, policy: Policy, decision: Decision | None
) -> Plan:
    name = request.model
    if not name.startswith(TASK_PREFIX):
        _require_no_language(request)
    if decision is not None:
        return _routed_plan(request, context, policy, decision)
    if name.startswith(TASK_PREFIX):
        spec = find_task(policy.specs, name.removeprefix(TASK_PREFIX))
        one = task_request(
            spec, request.task_input(), request.source_language, request.target_language
        )
        return _task_plan(TaskBatch(spec.name, (one,)), context, policy)
    provider, slash, _ = name.partition("/")
    if name not in policy.local_models and slash and provider in policy.providers:
        if context.options.route == "local_only":
            raise _contradiction(name, context)
        return _frontier_plan((name,), policy.tier_of(name), context, policy, "requested")
    tasks = (TASK_PREFIX + task for task in sorted(policy.specs))
    providers = (f"{provider}/MODEL" for provider in sorted(policy.providers))
    return _local_plan(request, name, policy.local_models, context, (AUTO, *tasks, *providers))


def _routed_plan(
    request: ChatRequest, context: RequestContext, policy: Policy, decision: Decision
) -> Plan:
    route, models = context.options.route, policy.local_models
    if decision.task is not None and route != "frontier_only":
        batch = TaskBatch(decision.task.task, (decision.task,))
        return _task_plan(batch, context, policy, decision)
    if route == "local_only":
        if not models:
            raise InvalidRequest(
                "the route 'local_only' needs a local model, and this gateway has none",
                field="route",
                fix="leave it out",
            )
        return _local_plan(request, next(iter(models)), models, context)
    reason: Reason = "requested" if route == "frontier_only" else "out_of_scope"
    tier = decision.tier
    return _frontier_plan(policy.tiers[tier], tier, context, policy, reason, decision)


def _task_plan(
    batch: TaskBatch, context: RequestContext, policy: Policy, decision: Decision | None = None
) -> TaskPlan:
    tier, route = policy.task_tier, context.options.route
    targets = policy.tiers[tier]
    may_escalate = route == "auto" and bool(policy.configured(targets))
    escalate_on = policy.escalate_on if may_escalate else frozenset()
    deadline = context.deadline
    if "deadline_at_risk" in escalate_on:
        deadline = deadline.earlier(policy.reserve_s)
    return TaskPlan(
        batch,
        route != "frontier_only",
        deadline,
        escalate_on,
        _frontier_plan(targets, tier, context, policy, "requested", decision),
        decision,
    )


def _frontier_plan(
    targets: tuple[str, ...],
    tier: Tier,
    context: RequestContext,
    policy: Policy,
    reason: Reason,
    decision: Decision | None = None,
) -> FrontierPlan:
    return FrontierPlan(targets, tier, policy.bounds[tier], context.deadline, reason, decision)


def _local_plan(
    request: ChatRequest | CompletionRequest,
    name: str,
    models: Mapping[str, int],
    context: RequestContext,
    others: tuple[str, ...] = (),
) -> LocalPlan:
    if name not in models:
        known = ", ".join((*models, *others))
        raise UnknownModel(f"no model {name!r}", field="model", fix=f"use one of: {known}")
    if context.options.route == "frontier_only":
        raise _contradiction(name, context)
    if request.text_chars > models[name]:
        # Checked before tokenizing, which takes 1 s and 250 MB for each MiB.
        raise InputTooLong(
            f"the text is {request.text_chars} characters long, and at most {models[name]} can fit "
            f"the window of {name!r}",
            field="messages" if isinstance(request, ChatRequest) else "prompt",
            fix="shorten the text",
        )
    return LocalPlan(name, request.engine_body(name), context.deadline)


def _require_no_language(request: ChatRequest) -> None:
    codes = {
        "source_language": request.source_language,
        "target_language": request.target_language,
    }
    for name, code in codes.items():
        if code is not None:
            raise UnsupportedParameter(
                f"{name} is {code!r}, and only a named task has languages",
                field=name,
                fix=f"remove {name}, or send model: {TASK_PREFIX}NAME",
            )


def _contradiction(name: str, context: RequestContext) -> InvalidRequest:
    return InvalidRequest(
        f"the model {name!r} and the route {context.options.route!r} contradict each other",
        field="route",
        fix="leave one of the two out",
    )
