"""A request's way through the stack, readable on one screen.

Inputs of tasks: the local model, then a frontier model for those that it may not or cannot answer
within its bound. Chats: the router's choice, or the client's. Every input leaves through the books.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from serving.contracts.answer import Answer, TaskRequest
from serving.contracts.errors import NarrowgateError
from serving.contracts.ledger import Entry
from serving.contracts.routing import Reason
from serving.pipeline.chat import ChatReply, frontier_chat, local_chat
from serving.pipeline.exit_recorder import ExitRecorder, closed_on_error
from serving.pipeline.frontier_task import ask_frontier
from serving.pipeline.local_task import Outcome, try_locally
from serving.pipeline.plan import LocalPlan, TaskPlan, choose_plan, escalated, local_plan
from serving.pipeline.stack import BoundTask, RequestContext, find
from serving.pipeline.task_chat import task_chat
from serving.routing.escalation import is_among, reason_for_answer, reason_for_error


async def answer(
    requests: Sequence[TaskRequest], trip: RequestContext
) -> list[Answer | NarrowgateError]:
    """Answer the inputs of one client request, which all name the same task.

    Answers and errors are in the inputs' order; one input's error does not touch the others.
    Raises UnknownTask, TaskNotAttested, and Unavailable where the whole request cannot be taken.
    """
    task = requests[0].task
    bound = find(trip.stack, task)
    async with ExitRecorder(trip, "task", task, len(requests)) as books:
        outcomes = await _tried(bound, requests, trip)
        async with asyncio.TaskGroup() as group:
            pending = [
                group.create_task(_finished(bound, request, tried, trip, books.entry(index)))
                for index, (request, tried) in enumerate(zip(requests, outcomes, strict=True))
            ]
        return [books.settled(index, task.result()) for index, task in enumerate(pending)]


async def chat(body: dict[str, Any], trip: RequestContext) -> ChatReply:
    """Answer a chat completion, whole or as a stream that settles its books when it ends.

    Raises UnknownModel, InvalidRequest, FrontierNotConfigured and whatever its way raises.
    """
    books = ExitRecorder(trip, "chat", None)
    async with closed_on_error(books):
        way = await choose_plan(body, trip)
        if isinstance(way, TaskPlan):
            books.name_task(way.request.task)
            bound = find(trip.stack, way.request.task)
            (tried,) = await _tried(bound, [way.request], trip)
            if way.decision is not None:
                tried = _among(tried, way.decision.labels)
            if way.decision is None or not trip.escalates(tried.reason):
                done = await _finished(bound, way.request, tried, trip, books.entry(0))
                return await task_chat(body, done, way, bound, trip, books)
            # The client's own words, not the task's prompt: it may have asked for more than we saw.
            way = escalated(body, way.decision, tried, bound, trip)
        if isinstance(way, LocalPlan):
            return await local_chat("chat", body, way, trip, books)
        return await frontier_chat(body, way, trip, books)


async def complete(body: dict[str, Any], trip: RequestContext) -> ChatReply:
    """Continue a prompt with the local model that the body names. Raises as `chat`."""
    books = ExitRecorder(trip, "completions", None)
    async with closed_on_error(books):
        return await local_chat("completions", body, local_plan(body, trip), trip, books)


async def _tried(
    bound: BoundTask, requests: Sequence[TaskRequest], trip: RequestContext
) -> list[Outcome]:
    if trip.options.route == "frontier_only":
        return [Outcome(None, "requested") for _ in requests]
    deadline = trip.deadline
    if trip.escalates("deadline_at_risk"):
        deadline = trip.stack.policy.local_deadline(deadline)
    started = time.monotonic()
    try:
        async with trip.stack.local_admission.admit(len(requests), deadline):
            outcomes = await try_locally(bound, requests, trip, deadline)
    except NarrowgateError as error:
        if not trip.escalates(reason_for_error(error)):
            raise
        outcomes = [Outcome(error, None) for _ in requests]
    elapsed_s = time.monotonic() - started
    return [replace(o, reason=_reason(o.result), elapsed_s=elapsed_s) for o in outcomes]


async def _finished(
    bound: BoundTask, request: TaskRequest, tried: Outcome, trip: RequestContext, entry: Entry
) -> Outcome:
    if tried.result is not None and not trip.escalates(tried.reason):
        return tried.kept()
    tried = tried.set_aside(bound.engine.model_id)
    return await ask_frontier(bound, request, tried, trip, entry)


def _among(tried: Outcome, labels: Mapping[str, str] | None) -> Outcome:
    # A client that names some of a task's labels wants one of those.
    if isinstance(tried.result, Answer) and not is_among(tried.result.value, labels):
        return replace(tried, reason="invalid_output")
    return tried


def _reason(result: Answer | NarrowgateError | None) -> Reason | None:
    assert result is not None
    if isinstance(result, NarrowgateError):
        return reason_for_error(result)
    return reason_for_answer(result.below_threshold, valid=result.valid)
