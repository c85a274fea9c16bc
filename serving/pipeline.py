"""A request's way through the stack, readable on one screen."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from serving.contracts.answer import Answer, Prediction, TaskRequest, Usage
from serving.contracts.deadline import Deadline
from serving.contracts.engine import EngineOutput, EngineWork
from serving.contracts.errors import NarrowgateError, UnknownTask
from serving.tasks.grant import Grant
from serving.tasks.task import Task

# Above this many characters, tokenizing takes longer than the event loop may be held (about 1 ms).
_CHARS_PLANNED_INLINE = 4096


class Engine(Protocol):
    """What runs a task's work; serving.local.client implements it."""

    model_id: str

    async def run(
        self, works: Sequence[EngineWork], deadline: Deadline
    ) -> list[EngineOutput | NarrowgateError]:
        """Run works; outputs and errors are in the works' order."""
        ...


class Exits(Protocol):
    """The one seam through which every input of every request leaves."""

    def answered(self, answer: Answer, elapsed_s: float) -> None:
        """An input was answered."""
        ...

    def refused(self, task: str, error: NarrowgateError, elapsed_s: float) -> None:
        """An input ended in an error."""
        ...


@dataclass(frozen=True, slots=True)
class BoundTask:
    """A task, the engine that answers it, and what the engine's model is attested for."""

    task: Task
    engine: Engine
    grant: Grant


@dataclass(frozen=True, slots=True)
class Stack:
    """Everything a request passes through."""

    tasks: Mapping[str, BoundTask]
    exits: Exits


async def answer(
    requests: Sequence[TaskRequest], stack: Stack, deadline: Deadline, request_id: str
) -> list[Answer | NarrowgateError]:
    """Answer the inputs of one client request, which all name the same task.

    Answers and errors are in the inputs' order; one input's error does not touch the others.
    Raises UnknownTask, TaskNotAttested, and Unavailable where the whole request cannot be taken.
    """
    started = time.monotonic()
    bound = attested(stack, requests[0].task)
    plans = await _planned(bound.task, requests)
    works = [plan for plan in plans if not isinstance(plan, NarrowgateError)]
    outputs = iter(await bound.engine.run(works, deadline) if works else [])
    results: list[Answer | NarrowgateError] = []
    for request, plan in zip(requests, plans, strict=True):
        outcome = plan if isinstance(plan, NarrowgateError) else next(outputs)
        elapsed_s = time.monotonic() - started
        if isinstance(outcome, NarrowgateError):
            stack.exits.refused(request.task, outcome, elapsed_s)
            results.append(outcome)
        else:
            prediction = bound.task.read(request, outcome)
            local = _local_answer(bound, request, prediction, outcome, request_id)
            stack.exits.answered(local, elapsed_s)
            results.append(local)
    return results


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


def attested(stack: Stack, name: str) -> BoundTask:
    """Return a task that its model may serve. Raises UnknownTask, TaskNotAttested."""
    bound = find(stack, name)
    if bound.grant.refusal is not None:
        raise bound.grant.refusal
    return bound


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


def _local_answer(
    bound: BoundTask,
    request: TaskRequest,
    prediction: Prediction,
    output: EngineOutput,
    request_id: str,
) -> Answer:
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
        model=bound.engine.model_id,
        usage=Usage(
            uncached_input_tokens=output.tokens.uncached_input,
            cache_read_tokens=output.tokens.cache_read,
            output_tokens=output.tokens.output,
        ),
        request_id=request_id,
    )
