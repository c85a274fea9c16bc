"""The frontier model's answer to a task."""

import time
from dataclasses import replace

from serving.contracts.answer import Answer, TaskRequest
from serving.contracts.errors import NarrowgateError
from serving.contracts.frontier import Attempt, Completion, FrontierCall, OutputBounds
from serving.contracts.ledger import Entry
from serving.contracts.routing import Reason
from serving.pipeline.local_task import Outcome
from serving.pipeline.stack import BoundTask, RequestContext
from serving.tasks.frontier_prompt import frontier_prompt, read_frontier


async def ask_frontier(
    bound: BoundTask, request: TaskRequest, tried: Outcome, trip: RequestContext, entry: Entry
) -> Outcome:
    """Return what a frontier model makes of an input; errors are outcomes, too."""
    assert tried.reason is not None
    started = time.monotonic()
    stack, deadline = trip.stack, trip.deadline
    completion = None
    try:
        prompt = frontier_prompt(bound.task, request)
        call = FrontierCall(
            body=prompt.body,
            targets=stack.policy.tiers[stack.policy.task_tier],
            bounds=OutputBounds(prompt.max_tokens, thinking=False),
            deadline=deadline,
            request_id=trip.request_id,
            entry=entry,
            purpose=request.task,
            max_cost_usd=trip.options.max_cost_usd,
        )
        async with stack.frontier_admission.admit(1, deadline):
            completion = await stack.frontier.complete(call)
        answer = _answer(bound, request, completion, tried.reason, trip.request_id)
    except NarrowgateError as error:
        attempts = tried.attempts
        if completion is not None:
            # Paid, and of no use.
            elapsed_s = time.monotonic() - started
            useless = Attempt(completion.model, error.code, elapsed_s, completion.usage)
            attempts = (*attempts, *completion.attempts, useless)
        return Outcome(error, tried.reason, attempts)
    return replace(
        tried,
        result=answer,
        attempts=(*tried.attempts, *completion.attempts),
        service_tier=completion.service_tier,
    )


def _answer(
    bound: BoundTask, request: TaskRequest, completion: Completion, reason: Reason, request_id: str
) -> Answer:
    finish = str(completion.body["choices"][0].get("finish_reason"))
    reading = read_frontier(bound.task, request, completion.text, finish)
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
