"""Runs chats on frontier models."""

from collections.abc import Mapping
from typing import Any

from serving.contracts.frontier import Completion, CompletionStream, Frontier, FrontierCall
from serving.contracts.requests import ChatRequest
from serving.contracts.routing import Decision, DecisionLog
from serving.pipeline.exit_recorder import Outcome, OutcomeStream, RequestRecord, Served
from serving.pipeline.plan import FrontierPlan
from serving.pipeline.runner import Runner


class FrontierModelRunner:
    """Implements Runner for frontier models: the first of the plan's targets that answers."""

    def __init__(self, frontier: Frontier) -> None:
        self._frontier = frontier

    async def whole(
        self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord
    ) -> list[Outcome]:
        """Return the model's document. Raises what Frontier.complete raises."""
        completion = await self._frontier.complete(_call(request, plan, record))
        return [Outcome(completion.body, _served(completion, plan))]

    async def stream(
        self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord
    ) -> OutcomeStream:
        """Return the model's answer once it has begun. Raises what Frontier.stream raises."""
        stream = await self._frontier.stream(_call(request, plan, record))
        return OutcomeStream(
            "frontier", plan.reason, stream.model, stream.events, lambda: _served(stream, plan)
        )


class DecisionLogged:
    """Runs another runner and logs the requests that the router sent to it."""

    def __init__(self, runner: Runner[ChatRequest, FrontierPlan], decisions: DecisionLog) -> None:
        self._runner = runner
        self._decisions = decisions

    async def whole(
        self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord
    ) -> list[Outcome]:
        """Log the request, then run the other runner."""
        self._keep(request, plan, record)
        return await self._runner.whole(request, plan, record)

    async def stream(
        self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord
    ) -> Outcome | OutcomeStream:
        """Log the request, then run the other runner."""
        self._keep(request, plan, record)
        return await self._runner.stream(request, plan, record)

    def _keep(self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord) -> None:
        if plan.decision is not None:
            self._decisions.record(_row(request, plan, plan.decision, record.context.request_id))


def _call(request: ChatRequest, plan: FrontierPlan, record: RequestRecord) -> FrontierCall:
    context = record.context
    return FrontierCall(
        body=request.provider_body(),
        targets=plan.targets,
        bounds=plan.bounds,
        deadline=plan.deadline,
        request_id=context.request_id,
        entry=record.inputs[0].entry,
        max_cost_usd=context.options.max_cost_usd,
    )


def _served(answer: Completion | CompletionStream, plan: FrontierPlan) -> Served:
    return Served(
        "frontier", plan.reason, answer.model, answer.usage, answer.attempts,
        service_tier=answer.service_tier,
    )  # fmt: skip


def _row(
    request: ChatRequest, plan: FrontierPlan, decision: Decision, request_id: str
) -> Mapping[str, Any]:
    # Only the messages, because the router trains on nothing else.
    return {
        "request_id": request_id,
        "body": {"messages": [message.body() for message in request.messages]},
        "task": decision.task.task if decision.task else None,
        "certainty": decision.certainty,
        "complexity": decision.complexity,
        "tier": decision.tier,
        "because": decision.because,
        "reason": plan.reason,
    }
