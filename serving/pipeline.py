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
from serving.contracts.deadline import Deadline
from serving.contracts.errors import NarrowgateError
from serving.contracts.routing import Reason, RequestOptions
from serving.routing.escalation import is_among, reason_for_answer, reason_for_error
from serving.stages.books import Books, closed_on_error
from serving.stages.chat import ChatReply, frontier_chat, local_chat
from serving.stages.chat_way import LocalWay, TaskWay, chosen_way, escalated, local_way
from serving.stages.local import Outcome, try_locally
from serving.stages.paid import ask_frontier
from serving.stages.stack import BoundTask, Stack, find
from serving.stages.task_chat import task_chat


async def answer(
    requests: Sequence[TaskRequest],
    stack: Stack,
    options: RequestOptions,
    deadline: Deadline,
    request_id: str,
) -> list[Answer | NarrowgateError]:
    """Answer the inputs of one client request, which all name the same task.

    Answers and errors are in the inputs' order; one input's error does not touch the others.
    Raises UnknownTask, TaskNotAttested, and Unavailable where the whole request cannot be taken.
    """
    bound = find(stack, requests[0].task)
    with Books(stack.exits, request_id, "task", requests[0].task, len(requests)) as books:
        outcomes = await _tried(bound, requests, stack, options, deadline, request_id)
        async with asyncio.TaskGroup() as group:
            pending = [
                group.create_task(_finished(bound, *pair, stack, options, deadline, request_id))
                for pair in zip(requests, outcomes, strict=True)
            ]
        results = []
        for index, task in enumerate(pending):
            outcome = task.result()
            assert outcome.result is not None
            books.settled(index, outcome.result, outcome.reason, outcome.attempts)
            results.append(outcome.result)
        return results


async def chat(
    body: dict[str, Any],
    stack: Stack,
    options: RequestOptions,
    deadline: Deadline,
    request_id: str,
) -> ChatReply:
    """Answer a chat completion, whole or as a stream that settles its books when it ends.

    Raises UnknownModel, InvalidRequest, FrontierNotConfigured and whatever its way raises.
    """
    books = Books(stack.exits, request_id, "chat", None)
    with closed_on_error(books):
        way = await chosen_way(body, stack, options, request_id)
        if isinstance(way, TaskWay):
            books.name_task(way.request.task)
            bound = find(stack, way.request.task)
            (tried,) = await _tried(bound, [way.request], stack, options, deadline, request_id)
            if way.decision is not None:
                tried = _among(tried, way.decision.labels)
            if way.decision is None or not stack.escalates(tried.reason, options):
                done = await _finished(
                    bound, way.request, tried, stack, options, deadline, request_id
                )
                return task_chat(body, done, way, bound, books, request_id)
            # The client's own words, not the task's prompt: it may have asked for more than we saw.
            way = escalated(body, way.decision, tried, bound, stack, request_id)
        if isinstance(way, LocalWay):
            return await local_chat("chat", body, way, stack, books, deadline, request_id)
        return await frontier_chat(body, way, stack, options, books, deadline, request_id)


async def complete(
    body: dict[str, Any],
    stack: Stack,
    options: RequestOptions,
    deadline: Deadline,
    request_id: str,
) -> ChatReply:
    """Continue a prompt with the local model that the body names. Raises as `chat`."""
    books = Books(stack.exits, request_id, "completions", None)
    with closed_on_error(books):
        way = local_way(body, stack, options)
        return await local_chat("completions", body, way, stack, books, deadline, request_id)


async def _tried(
    bound: BoundTask,
    requests: Sequence[TaskRequest],
    stack: Stack,
    options: RequestOptions,
    deadline: Deadline,
    request_id: str,
) -> list[Outcome]:
    if options.route == "frontier_only":
        return [Outcome(None, "requested") for _ in requests]
    if stack.escalates("deadline_at_risk", options):
        deadline = stack.policy.local_deadline(deadline)
    started = time.monotonic()
    results: Sequence[Answer | NarrowgateError]
    try:
        async with stack.local_room.admit(len(requests), deadline):
            results = await try_locally(bound, requests, deadline, request_id)
    except NarrowgateError as error:
        if not stack.escalates(reason_for_error(error), options):
            raise
        results = [error] * len(requests)
    elapsed_s = time.monotonic() - started
    return [Outcome(result, _reason(result), elapsed_s=elapsed_s) for result in results]


def _among(tried: Outcome, labels: Mapping[str, str] | None) -> Outcome:
    # A client that names some of a task's labels wants one of those.
    if isinstance(tried.result, Answer) and not is_among(tried.result.value, labels):
        return replace(tried, reason="invalid_output")
    return tried


def _reason(result: Answer | NarrowgateError) -> Reason | None:
    if isinstance(result, NarrowgateError):
        return reason_for_error(result)
    return reason_for_answer(result.below_threshold, valid=result.valid)


async def _finished(
    bound: BoundTask,
    request: TaskRequest,
    tried: Outcome,
    stack: Stack,
    options: RequestOptions,
    deadline: Deadline,
    request_id: str,
) -> Outcome:
    if tried.result is not None and not stack.escalates(tried.reason, options):
        return tried.kept()
    aside = tried.set_aside(bound.engine.model_id)
    return await ask_frontier(bound, request, aside, stack, options, deadline, request_id)
