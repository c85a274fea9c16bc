"""Runs chats on frontier models."""

from serving.contracts.frontier import Completion, CompletionStream, Frontier, FrontierCall
from serving.contracts.requests import ChatRequest
from serving.pipeline.exit_recorder import Outcome, OutcomeStream, RequestRecord, Served
from serving.pipeline.plan import FrontierPlan


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
