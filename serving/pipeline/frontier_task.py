"""Runs one input of a task on a frontier model, in the task's own prompt and form."""

import asyncio
import time
from collections.abc import Mapping

from serving.contracts.answer import Answer, TaskRequest
from serving.contracts.errors import NarrowgateError
from serving.contracts.exits import Attempt
from serving.contracts.frontier import (
    Completion,
    Frontier,
    FrontierCall,
    OutputBounds,
    with_attempts,
)
from serving.contracts.requests import TaskBatch
from serving.contracts.routing import Reason
from serving.pipeline.exit_recorder import Outcome, RequestRecord, Served
from serving.pipeline.plan import FrontierPlan
from serving.pipeline.runner import BoundTask
from serving.tasks.frontier_answer import read_frontier
from serving.tasks.frontier_prompt import frontier_prompt
from serving.tasks.task import must_load


class FrontierTaskRunner:
    """Implements Runner for a batch of one input. tasks: by name."""

    def __init__(self, tasks: Mapping[str, BoundTask], frontier: Frontier) -> None:
        self._tasks = tasks
        self._frontier = frontier

    async def whole(
        self, request: TaskBatch, plan: FrontierPlan, record: RequestRecord
    ) -> list[Outcome]:
        """Return the frontier model's answer to the only input.

        Raises what Frontier.complete raises, and FrontierInvalidResponse for a paid answer that
        cannot be read as the task's.
        """
        (one,) = request.requests
        bound = self._tasks[request.task]
        if must_load(bound.task, one):
            prompt = await asyncio.to_thread(frontier_prompt, bound.task, one)
        else:
            prompt = frontier_prompt(bound.task, one)
        started_s = time.monotonic()
        completion = await self._frontier.complete(
            FrontierCall(
                body=prompt.body,
                targets=plan.targets,
                bounds=OutputBounds(prompt.max_tokens, thinking=False),
                deadline=plan.deadline,
                request_id=record.context.request_id,
                entry=record.inputs[0].entry,
                purpose=request.task,
                max_cost_usd=record.context.options.max_cost_usd,
            )
        )
        try:
            answer = _answer(bound, one, completion, plan.reason, record.context.request_id)
        except NarrowgateError as error:
            elapsed_s = time.monotonic() - started_s
            unread = Attempt(completion.model, error.code, elapsed_s, completion.usage)
            with_attempts(error, (*completion.attempts, unread))
            raise
        served = Served(
            "frontier", plan.reason, completion.model, completion.usage, completion.attempts,
            service_tier=completion.service_tier, valid=answer.valid,
        )  # fmt: skip
        return [Outcome(answer, served, _finish_reason(completion))]

    async def stream(
        self, request: TaskBatch, plan: FrontierPlan, record: RequestRecord
    ) -> Outcome:
        """Return the answer to the only input; tasks do not stream."""
        (outcome,) = await self.whole(request, plan, record)
        return outcome


def _finish_reason(completion: Completion) -> str:
    return str(completion.body["choices"][0].get("finish_reason"))


def _answer(
    bound: BoundTask, request: TaskRequest, completion: Completion, reason: Reason, request_id: str
) -> Answer:
    reading = read_frontier(bound.task, request, completion.text, _finish_reason(completion))
    return Answer(
        task=request.task,
        value=reading.value,
        label_probabilities=None,
        confidence=None,
        valid=reading.valid,
        notes=reading.notes,
        route="frontier",
        reason=reason,
        model=completion.model,
        usage=completion.usage,
        request_id=request_id,
    )
