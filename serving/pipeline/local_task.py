"""The local model's attempt at a task."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from serving.contracts.answer import Answer, TaskRequest, Usage
from serving.contracts.deadline import Deadline
from serving.contracts.engine import EngineOutput, EngineWork
from serving.contracts.errors import NarrowgateError
from serving.contracts.frontier import Attempt
from serving.contracts.routing import Reason
from serving.pipeline.stack import BoundTask, RequestContext
from serving.tasks.task import Task

# Above this many characters, tokenizing takes longer than the event loop may be held (about 1 ms).
_CHARS_PLANNED_INLINE = 4096


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one input so far. result: None where nothing was tried.

    reason: why it is to go elsewhere, or went; None where the local answer is within its bound.
    attempts: what was tried besides and is paid for all the same. replica_s: share of a local
    replica's time that the result took, seconds. service_tier: of a frontier model's answer.
    """

    result: Answer | NarrowgateError | None
    reason: Reason | None
    attempts: tuple[Attempt, ...] = ()
    elapsed_s: float = 0.0
    replica_s: float | None = None
    service_tier: str | None = None

    def kept(self) -> Self:
        """Return the outcome as the client gets it: an answer outside its bound says why."""
        if isinstance(self.result, Answer) and self.reason is not None:
            return replace(self, result=self.result.model_copy(update={"reason": self.reason}))
        return self

    def set_aside(self, model: str) -> Self:
        """Return the outcome of an input that goes elsewhere: the result becomes an attempt."""
        match self.result:
            case None:
                return self
            case Answer():
                usage = self.result.usage
                attempt = Attempt(
                    model, str(self.reason), self.elapsed_s, usage, self.replica_s or 0.0
                )
            case NarrowgateError():
                replica_s = self.replica_s or 0.0
                attempt = Attempt(model, self.result.code, self.elapsed_s, None, replica_s)
        return replace(self, result=None, replica_s=None, attempts=(*self.attempts, attempt))


async def try_locally(
    bound: BoundTask, requests: Sequence[TaskRequest], trip: RequestContext, deadline: Deadline
) -> list[Outcome]:
    """Answer inputs of one task; one input's error does not touch the others.

    The outcomes have no reason yet. deadline: of the attempt, at most the trip's. Raises
    TaskNotAttested, and Unavailable where the whole request cannot be taken.
    """
    if bound.grant.refusal is not None:
        raise bound.grant.refusal
    plans = await _planned(bound.task, requests)
    works = [plan for plan in plans if not isinstance(plan, NarrowgateError)]
    lap = trip.stack.meters[bound.engine.model_id].enter(len(works))
    try:
        outputs = iter(await bound.engine.run(works, deadline) if works else [])
    finally:
        replica_s = lap.leave()
    outcomes = []
    for request, plan in zip(requests, plans, strict=True):
        if isinstance(plan, NarrowgateError):
            outcomes.append(Outcome(plan, None))
            continue
        output = next(outputs)
        result = (
            output
            if isinstance(output, NarrowgateError)
            else _answer(bound, request, output, trip.request_id)
        )
        outcomes.append(Outcome(result, None, replica_s=replica_s))
    return outcomes


async def _planned(
    task: Task, requests: Sequence[TaskRequest]
) -> list[EngineWork | NarrowgateError]:
    def plan_all() -> list[EngineWork | NarrowgateError]:
        return [_plan(task, request) for request in requests]

    if sum(len(request.text) for request in requests) <= _CHARS_PLANNED_INLINE:
        return plan_all()
    return await asyncio.to_thread(plan_all)


def _plan(task: Task, request: TaskRequest) -> EngineWork | NarrowgateError:
    try:
        return task.plan(request)
    except NarrowgateError as error:
        return error


def _answer(
    bound: BoundTask, request: TaskRequest, output: EngineOutput, request_id: str
) -> Answer:
    prediction = bound.task.read(request, output)
    return Answer(
        task=request.task,
        value=prediction.value,
        label_probabilities=prediction.label_probabilities,
        confidence=prediction.confidence,
        calibrated_confidence=bound.grant.calibrated(prediction),
        below_threshold=bound.grant.below_threshold(prediction),
        valid=prediction.valid,
        notes=prediction.notes,
        route="local",
        reason="narrow",
        model=bound.engine.model_id,
        usage=Usage(
            uncached_input_tokens=output.tokens.uncached_input,
            cache_read_tokens=output.tokens.cache_read,
            output_tokens=output.tokens.output,
        ),
        request_id=request_id,
    )
