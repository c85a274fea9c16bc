"""Chats: with a local model, with a frontier model, and tasks that are asked for as chats."""

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

from serving.contracts.answer import Answer, Route, Usage, Value
from serving.contracts.deadline import Deadline
from serving.contracts.errors import InputTooLong, InvalidRequest, NarrowgateError
from serving.contracts.frontier import CompletionStream, FrontierCall
from serving.contracts.routing import Reason, RequestOptions
from serving.stages.books import Books
from serving.stages.chat_way import FrontierWay, LocalWay, TaskWay
from serving.stages.local import Outcome
from serving.stages.openai_fields import engine_body
from serving.stages.stack import BoundTask, Stack
from serving.stages.usage_filter import UsageFilter

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A chat's answer: a body, or server-sent events as text.

    held: what stays taken until the last byte is out, or the client has gone; whoever sends the
    reply leaves it. events may raise NarrowgateError. attestation: what vouches for a task.
    """

    route: Route
    reason: Reason
    model: str
    body: dict[str, Any] | None
    events: AsyncIterator[str] | None
    held: AsyncExitStack
    attestation: str | None = None


async def local_chat(
    endpoint: str,
    body: dict[str, Any],
    way: LocalWay,
    stack: Stack,
    books: Books,
    deadline: Deadline,
    request_id: str,
) -> ChatReply:
    """Pass a chat (`chat`) or a prompt (`completions`) to a local model, as it is."""
    engine = way.engine
    usage = UsageFilter(engine_body(endpoint, body))
    async with AsyncExitStack() as held:
        held.push(books.__exit__)
        await held.enter_async_context(stack.local_room.admit(1, deadline))
        reply, events = await engine.openai(endpoint, usage.body, request_id, deadline)
        if reply.body is None:
            passed = _local_events(events, usage, books, engine.model_id)
            held.push_async_callback(_closed, events)
            held.push_async_callback(_closed, passed)
            return ChatReply(
                "local", "requested", engine.model_id, None, passed, held.pop_all()
            )  # fmt: skip
        if reply.status != 200:
            raise _refusal(reply.status, reply.body)
        found = _usage(reply.body.get("usage"))
        books.answered(0, "local", "requested", engine.model_id, found)
        return ChatReply("local", "requested", engine.model_id, reply.body, None, held.pop_all())


async def frontier_chat(
    body: dict[str, Any],
    way: FrontierWay,
    stack: Stack,
    options: RequestOptions,
    books: Books,
    deadline: Deadline,
    request_id: str,
) -> ChatReply:
    """Pass a chat to the first frontier model of its way that answers."""
    call = FrontierCall(
        body={name: value for name, value in body.items() if name not in {"model", "stream"}},
        targets=way.targets,
        bounds=stack.policy.bounds[way.tier],
        deadline=deadline,
        request_id=request_id,
        max_cost_usd=options.max_cost_usd,
    )
    async with AsyncExitStack() as held:
        held.push(books.__exit__)
        await held.enter_async_context(stack.frontier_room.admit(1, deadline))
        try:
            if body.get("stream"):
                stream = await stack.frontier.stream(call)
                events = _frontier_events(stream, body, way, books)
                # Both: a generator that was never started cleans nothing up when it is closed.
                held.push_async_callback(_closed, stream.events)
                held.push_async_callback(_closed, events)
                return ChatReply(
                    "frontier", way.reason, stream.model, None, events, held.pop_all()
                )  # fmt: skip
            completion = await stack.frontier.complete(call)
        except NarrowgateError as error:
            books.failed(0, error, way.reason, way.attempts)
            raise
        attempts = (*way.attempts, *completion.attempts)
        books.answered(0, "frontier", way.reason, completion.model, completion.usage, attempts)
        return ChatReply(
            "frontier", way.reason, completion.model, completion.body, None, held.pop_all()
        )


def within_labels(outcome: Outcome, way: TaskWay) -> Outcome:
    """Return the outcome with its reason to leave where the answer is not what was asked for.

    A client that names some of a task's labels wants one of those.
    """
    labels = way.decision.labels if way.decision is not None else None
    if (
        labels is None
        or outcome.reason is not None
        or not isinstance(outcome.result, Answer)
        or not isinstance(outcome.result.value, str)
        or outcome.result.value in labels
    ):
        return outcome
    return replace(outcome, reason="out_of_scope")


def task_chat(
    body: Mapping[str, Any],
    outcome: Outcome,
    way: TaskWay,
    bound: BoundTask,
    books: Books,
    request_id: str,
) -> ChatReply:
    """Return a task's answer as the chat that asked for it. Raises the outcome's error."""
    answer = outcome.result
    assert answer is not None
    books.settled(0, answer, outcome.reason, outcome.attempts)
    if isinstance(answer, NarrowgateError):
        raise answer
    reason: Reason = outcome.reason or "narrow"
    text = written(answer.value, way.decision.labels if way.decision is not None else None)
    events = _one_event(body, answer, text, request_id) if body.get("stream") else None
    document = None if body.get("stream") else _completion(answer, text, request_id)
    attestation = bound.grant.attestation if answer.route == "local" else None
    return ChatReply(
        answer.route, reason, answer.model, document, events, AsyncExitStack(), attestation
    )


async def _local_events(
    events: AsyncIterator[str], usage: UsageFilter, books: Books, model: str
) -> AsyncIterator[str]:
    try:
        async for event in events:
            if passed := usage.passed(event):
                yield passed
    except NarrowgateError as error:
        books.failed(0, error, "requested", ())
        raise
    books.answered(0, "local", "requested", model, _usage(usage.found))


async def _frontier_events(
    stream: CompletionStream, body: Mapping[str, Any], way: FrontierWay, books: Books
) -> AsyncIterator[str]:
    options = body.get("stream_options")
    shown = isinstance(options, dict) and bool(options.get("include_usage"))
    attempts = (*way.attempts, *stream.attempts)
    try:
        async for chunk in stream.events:
            if not shown and "usage" in chunk:
                if not chunk.get("choices"):
                    continue
                chunk = {key: value for key, value in chunk.items() if key != "usage"}
            yield f"data: {json.dumps(chunk)}\n\n"
        yield DONE
    except NarrowgateError as error:
        books.failed(0, error, way.reason, attempts, stream.usage, stream.model)
        raise
    except BaseException:
        books.abandoned(0, way.reason, attempts, stream.usage, stream.model)
        raise
    books.answered(0, "frontier", way.reason, stream.model, stream.usage, attempts)


async def _closed(events: AsyncIterator[Any]) -> None:
    # Closing is what cancels upstream; waiting for the garbage collector would let it go on.
    close = getattr(events, "aclose", None)
    if close is not None:
        await close()


def _completion(answer: Answer, text: str, request_id: str) -> dict[str, Any]:
    return {
        **_head(answer, request_id, "chat.completion"),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": openai_usage(answer.usage),
        "narrowgate": _details(answer),
    }


async def _one_event(
    body: Mapping[str, Any], answer: Answer, text: str, request_id: str
) -> AsyncIterator[str]:
    head = _head(answer, request_id, "chat.completion.chunk")
    delta = {"role": "assistant", "content": text}
    for choices in (
        [{"index": 0, "delta": delta, "finish_reason": None}],
        [{"index": 0, "delta": {}, "finish_reason": "stop"}],
    ):
        yield f"data: {json.dumps({**head, 'choices': choices})}\n\n"
    options = body.get("stream_options")
    if isinstance(options, dict) and options.get("include_usage"):
        last = {**head, "choices": [], "usage": openai_usage(answer.usage)}
        yield f"data: {json.dumps(last)}\n\n"
    yield DONE


def written(value: Value, labels: Mapping[str, str] | None = None) -> str:
    """Return a task's value as the text of a chat: a label, a JSON list, or a translation.

    labels: those that the client named, each with its own word for it; entities of other types are
    left out.
    """
    if isinstance(value, str):
        return (labels or {}).get(value, value)
    if isinstance(value, tuple):
        wanted = [item for item in value if labels is None or item.type in labels]
        return json.dumps([item.model_dump() for item in wanted], ensure_ascii=False)
    return value.text


def openai_usage(usage: Usage) -> dict[str, Any]:
    """Return a usage in the shape of OpenAI's API, where classes include one another."""
    written_tokens = usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    prompt = usage.uncached_input_tokens + usage.cache_read_tokens + written_tokens
    output = usage.output_tokens + usage.reasoning_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def _head(answer: Answer, request_id: str, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{request_id}",
        "object": kind,
        "created": int(time.time()),
        "model": answer.model,
    }


def _details(answer: Answer) -> dict[str, Any]:
    return answer.model_dump(
        mode="json",
        include={
            "task", "route", "reason", "confidence", "calibrated_confidence", "below_threshold",
            "label_probabilities", "valid", "notes",
        },
    )  # fmt: skip


def _usage(found: dict[str, Any] | None) -> Usage | None:
    if not found:
        return None
    prompt = int(found.get("prompt_tokens") or 0)
    details = found.get("prompt_tokens_details") or {}
    cached = int(details.get("cached_tokens") or 0)
    output = int(found.get("completion_tokens") or 0)
    return Usage(
        uncached_input_tokens=prompt - cached, cache_read_tokens=cached, output_tokens=output
    )


def _refusal(status: int, body: Mapping[str, Any]) -> NarrowgateError:
    error = body.get("error")
    message = str(error.get("message")) if isinstance(error, dict) else "no reason given"
    if status >= 500:
        return NarrowgateError("the engine failed on this request")
    field = error.get("param") if isinstance(error, dict) else None
    if "maximum context length" in message or "max_model_len" in message:
        return InputTooLong(message, field=field)
    return InvalidRequest(message, field=field)
