"""Runs a task on its local model, then on a frontier model where the plan lets it escalate."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace

from serving.contracts.answer import Answer, Value
from serving.contracts.errors import (
    DeadlineExceeded,
    EngineFailure,
    InputTooLong,
    ModelStarting,
    ModelUnavailable,
    NarrowgateError,
    QueueFull,
    TaskNotAttested,
)
from serving.contracts.exits import Attempt
from serving.contracts.requests import ChatRequest, Request, TaskBatch
from serving.contracts.routing import Reason
from serving.pipeline.exit_recorder import (
    InputRecord,
    Outcome,
    OutcomeStream,
    RequestRecord,
    Served,
)
from serving.pipeline.plan import FrontierPlan, TaskPlan
from serving.pipeline.runner import BoundTask, Runner

_REASONS: Mapping[type[NarrowgateError], Reason] = {
    QueueFull: "overload",
    ModelStarting: "local_failure",
    ModelUnavailable: "local_failure",
    EngineFailure: "local_failure",
    DeadlineExceeded: "deadline_at_risk",
    TaskNotAttested: "not_attested",
    # The request fits a model with a larger window.
    InputTooLong: "out_of_scope",
}


class Escalating:
    """Implements Runner for tasks.

    local: the task's local model. frontier_task: a frontier model that gets the task's prompt.
    frontier_model: one that gets the client's own messages, which may ask for more than the router
    recognised. tasks: by name.
    """

    def __init__(
        self,
        local: Runner[TaskBatch, TaskPlan],
        frontier_task: Runner[TaskBatch, FrontierPlan],
        frontier_model: Runner[ChatRequest, FrontierPlan],
        tasks: Mapping[str, BoundTask],
    ) -> None:
        self._local = local
        self._frontier_task = frontier_task
        self._frontier_model = frontier_model
        self._tasks = tasks

    async def whole(self, request: Request, plan: TaskPlan, record: RequestRecord) -> list[Outcome]:
        """Return the inputs' outcomes; one input's error does not affect the others.

        Raises where the whole request cannot be accepted and may not escalate.
        """
        local_result = await self._local_results(plan, record)
        async with asyncio.TaskGroup() as group:
            pending = [
                group.create_task(self._finished(request, plan, record, index, outcome))
                for index, outcome in enumerate(local_result)
            ]
        return [task.result() for task in pending]

    async def stream(
        self, request: Request, plan: TaskPlan, record: RequestRecord
    ) -> Outcome | OutcomeStream:
        """Return the outcome of the only input; a stream where it escalates in free form."""
        (local_result,) = await self._local_results(plan, record)
        (item,) = record.inputs
        if plan.decision is None or not self._escalates(item, plan, local_result):
            return await self._finished(request, plan, record, 0, local_result)
        assert isinstance(request, ChatRequest)
        fallback = self._set_aside(item, plan, local_result)
        # Its place among frontier calls is free again where the call fails.
        apart = record.apart()
        try:
            return await self._frontier_model.stream(request, fallback, apart)
        except NarrowgateError as error:
            await apart.resources.aclose()
            return Outcome(error)

    async def _local_results(self, plan: TaskPlan, record: RequestRecord) -> list["_LocalResult"]:
        """Return the local model's outcomes; record on each input the reason to escalate."""
        batch = plan.batch
        if not plan.local:
            for item in record.inputs:
                item.reason = plan.fallback.reason
            return [_LocalResult(None, 0.0) for _ in batch.requests]
        started_s = time.monotonic()
        try:
            outcomes = await self._local.whole(batch, plan, record)
        except NarrowgateError as error:
            if reason_for_error(error) not in plan.escalate_on:
                raise
            outcomes = [Outcome(error) for _ in batch.requests]
        elapsed_s = time.monotonic() - started_s
        labels = plan.decision.labels if plan.decision is not None else None
        for item, outcome in zip(record.inputs, outcomes, strict=True):
            item.reason = _reason(outcome, labels)
        return [_LocalResult(outcome, elapsed_s) for outcome in outcomes]

    def _escalates(self, item: InputRecord, plan: TaskPlan, local_result: "_LocalResult") -> bool:
        return local_result.outcome is None or item.reason in plan.escalate_on

    async def _finished(
        self,
        request: Request,
        plan: TaskPlan,
        record: RequestRecord,
        index: int,
        local_result: "_LocalResult",
    ) -> Outcome:
        one = record.only(index)
        (item,) = one.inputs
        if not self._escalates(item, plan, local_result):
            assert local_result.outcome is not None
            return _delivered(local_result.outcome, item.reason)
        fallback = self._set_aside(item, plan, local_result)
        try:
            if plan.decision is None:
                batch = TaskBatch(plan.batch.task, (plan.batch.requests[index],))
                (outcome,) = await self._frontier_task.whole(batch, fallback, one)
            else:
                assert isinstance(request, ChatRequest)
                (outcome,) = await self._frontier_model.whole(request, fallback, one)
        except NarrowgateError as error:
            return Outcome(error)
        return outcome

    def _set_aside(
        self, item: InputRecord, plan: TaskPlan, local_result: "_LocalResult"
    ) -> FrontierPlan:
        """Note the local attempt on the input; return the plan of its fallback."""
        assert item.reason is not None
        model = self._tasks[plan.batch.task].engine.model_id
        item.set_aside(local_result.attempt(model, item.reason), item.reason)
        return replace(plan.fallback, reason=item.reason)


class _LocalResult:
    """The result of the local attempt on one input. outcome: None where there was no attempt."""

    def __init__(self, outcome: Outcome | None, elapsed_s: float) -> None:
        self.outcome = outcome
        self._elapsed_s = elapsed_s

    def attempt(self, model: str, reason: Reason) -> Attempt | None:
        """Return the record of the attempt, for an input that goes to another model."""
        if self.outcome is None:
            return None
        content, served = self.outcome.content, self.outcome.served
        error = content.code if isinstance(content, NarrowgateError) else reason
        usage, replica_s = (served.usage, served.replica_s) if served else (None, None)
        if served is not None:
            # A head may have answered in the local model's place.
            model = served.model
        return Attempt(model, error, self._elapsed_s, usage, replica_s or 0.0)


def _reason(outcome: Outcome, labels: Mapping[str, str] | None) -> Reason | None:
    """Return the reason to escalate an input; None where its answer is within its bound."""
    content = outcome.content
    if isinstance(content, NarrowgateError):
        return reason_for_error(content)
    assert isinstance(content, Answer)
    # A client that names some of a task's labels expects one of those.
    if not is_among(content.value, labels):
        return "invalid_output"
    return reason_for_answer(content.below_threshold, valid=content.valid)


def _delivered(outcome: Outcome, reason: Reason | None) -> Outcome:
    """Return the outcome for the client: an answer outside its bound has the reason."""
    if reason is None or not isinstance(outcome.content, Answer):
        return outcome
    assert isinstance(outcome.served, Served)
    answer = outcome.content.model_copy(update={"reason": reason})
    return replace(outcome, content=answer, served=replace(outcome.served, reason=reason))


def reason_for_error(error: NarrowgateError) -> Reason | None:
    """Return the reason to send a request to another model after an error of the local one.

    None where the request is invalid or no model would help.
    """
    return next((_REASONS[cls] for cls in type(error).__mro__ if cls in _REASONS), None)


def reason_for_answer(below_threshold: bool | None, valid: bool) -> Reason | None:
    """Return the reason to escalate a local answer; None where it is good enough.

    below_threshold: outside the certified bound; None where no bound is attested.
    """
    if not valid:
        return "invalid_output"
    return "below_threshold" if below_threshold else None


def is_among(value: Value, labels: Mapping[str, str] | None) -> bool:
    """Return whether a label is one that the client named; everything else is."""
    return labels is None or not isinstance(value, str) or value in labels
