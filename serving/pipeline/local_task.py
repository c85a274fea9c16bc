"""Runs the inputs of a task on the task's local model."""

import asyncio
from collections.abc import Mapping, Sequence

from serving.contracts.answer import Answer, TaskRequest, Usage
from serving.contracts.engine import EngineOutput, EngineWork, GenerateOutput
from serving.contracts.errors import NarrowgateError
from serving.contracts.evidence import NO_GUARANTEE
from serving.contracts.requests import TaskBatch
from serving.evidence.candidates import under_standing
from serving.pipeline.exit_recorder import Outcome, RequestRecord, Served
from serving.pipeline.plan import TaskPlan
from serving.pipeline.replica_meter import ReplicaMeter
from serving.pipeline.runner import BoundTask
from serving.tasks.task import Task, must_load

# Tokenizing longer texts would block the event loop for more than about 1 ms.
_CHARS_PLANNED_INLINE = 4096


class LocalTaskRunner:
    """Implements Runner for tasks on local models. tasks: by name. meters: by model id."""

    def __init__(self, tasks: Mapping[str, BoundTask], meters: Mapping[str, ReplicaMeter]) -> None:
        self._tasks = tasks
        self._meters = meters

    async def whole(
        self, request: TaskBatch, plan: TaskPlan, record: RequestRecord
    ) -> list[Outcome]:
        """Return the inputs' answers and errors; one input's error does not affect the others.

        Raises TaskNotAttested, and Unavailable where the whole request cannot be accepted.
        """
        bound = self._tasks[request.task]
        if bound.grant.refusal is not None:
            raise bound.grant.refusal
        planned = await _planned(bound.task, request.requests)
        works = [work for work in planned if not isinstance(work, NarrowgateError)]
        entry = self._meters[bound.engine.model_id].enter(len(works))

        def served(answer: Answer | None = None) -> Served:
            model, replica_s = bound.engine.model_id, entry.leave()
            if answer is None:
                return Served("local", "narrow", model, None, replica_s=replica_s)
            return Served(
                "local", "narrow", model, answer.usage, replica_s=replica_s, valid=answer.valid,
                # Without a bound (None), nothing is guaranteed.
                guaranteed=answer.below_threshold is False,
                evidence=answer.guarantee.evidence, claim=answer.guarantee.claim,
            )  # fmt: skip

        record.resources.callback(entry.leave)
        for item, work in zip(record.inputs, planned, strict=True):
            item.serving = None if isinstance(work, NarrowgateError) else served
        try:
            outputs = iter(await bound.engine.run(works, plan.deadline) if works else [])
        except NarrowgateError:
            for item in record.inputs:
                item.serving = None
            raise
        finally:
            # Also for a cancelled run: the record reads what was served until then.
            entry.leave()
        outcomes = []
        for item, one, work in zip(record.inputs, request.requests, planned, strict=True):
            if isinstance(work, NarrowgateError):
                outcomes.append(Outcome(work))
                continue
            output = next(outputs)
            if isinstance(output, NarrowgateError):
                outcomes.append(Outcome(output, served()))
                continue
            answer = _answer(bound, one, output, record.context.request_id)
            item.local_answer = answer
            answer = under_standing(answer, plan.standing)
            outcomes.append(
                Outcome(
                    answer,
                    served(answer),
                    _finish_reason(output),
                    bound.grant.attestation,
                )
            )
        return outcomes

    async def stream(self, request: TaskBatch, plan: TaskPlan, record: RequestRecord) -> Outcome:
        """Return the answer to the only input; tasks do not stream."""
        (outcome,) = await self.whole(request, plan, record)
        return outcome


async def _planned(
    task: Task, requests: Sequence[TaskRequest]
) -> list[EngineWork | NarrowgateError]:
    def plan_all() -> list[EngineWork | NarrowgateError]:
        return [_plan(task, request) for request in requests]

    chars = sum(len(request.text) for request in requests)
    if chars > _CHARS_PLANNED_INLINE or any(must_load(task, request) for request in requests):
        return await asyncio.to_thread(plan_all)
    return plan_all()


def _plan(task: Task, request: TaskRequest) -> EngineWork | NarrowgateError:
    try:
        return task.plan(request)
    except NarrowgateError as error:
        return error


def _finish_reason(output: EngineOutput) -> str:
    return output.finish_reason if isinstance(output, GenerateOutput) else "stop"


def _answer(
    bound: BoundTask, request: TaskRequest, output: EngineOutput, request_id: str
) -> Answer:
    prediction = bound.task.read(request, output)
    below, suite = bound.grant.below_threshold(prediction), bound.grant.guarantee
    return Answer(
        task=request.task,
        value=prediction.value,
        label_probabilities=prediction.label_probabilities,
        confidence=prediction.confidence,
        calibrated_confidence=bound.grant.calibrated(prediction),
        below_threshold=below,
        guarantee=suite if suite is not None and below is False else NO_GUARANTEE,
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
