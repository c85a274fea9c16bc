"""Chats with a local model and with a frontier model."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from serving.contracts.answer import Route, Usage
from serving.contracts.errors import InputTooLong, InvalidRequest, NarrowgateError
from serving.contracts.frontier import CompletionStream, FrontierCall
from serving.contracts.routing import Reason
from serving.stages.books import Books
from serving.stages.chat_way import FrontierWay, LocalWay
from serving.stages.openai_fields import engine_body
from serving.stages.stack import Trip
from serving.stages.usage_filter import UsageFilter, wants_usage

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
    endpoint: str, body: dict[str, Any], way: LocalWay, trip: Trip, books: Books
) -> ChatReply:
    """Pass a chat (`chat`) or a prompt (`completions`) to a local model, as it is."""
    engine = way.engine
    usage = UsageFilter(engine_body(endpoint, body))
    async with AsyncExitStack() as held:
        held.push(books.__exit__)
        await held.enter_async_context(trip.stack.local_room.admit(1, trip.deadline))
        reply, events = await engine.openai(endpoint, usage.body, trip.request_id, trip.deadline)
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
    body: dict[str, Any], way: FrontierWay, trip: Trip, books: Books
) -> ChatReply:
    """Pass a chat to the first frontier model of its way that answers."""
    stack = trip.stack
    call = FrontierCall(
        body={name: value for name, value in body.items() if name not in {"model", "stream"}},
        targets=way.targets,
        bounds=stack.policy.bounds[way.tier],
        deadline=trip.deadline,
        request_id=trip.request_id,
        max_cost_usd=trip.options.max_cost_usd,
    )
    async with AsyncExitStack() as held:
        held.push(books.__exit__)
        await held.enter_async_context(stack.frontier_room.admit(1, trip.deadline))
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


async def _local_events(
    events: AsyncIterator[str], usage: UsageFilter, books: Books, model: str
) -> AsyncIterator[str]:
    try:
        async for event in events:
            if passed := usage.passed(event):
                yield passed
    except NarrowgateError as error:
        books.failed(0, error, "requested", (), _usage(usage.found), model)
        raise
    except BaseException:
        books.abandoned(0, "requested", (), _usage(usage.found), model)
        raise
    books.answered(0, "local", "requested", model, _usage(usage.found))


async def _frontier_events(
    stream: CompletionStream, body: Mapping[str, Any], way: FrontierWay, books: Books
) -> AsyncIterator[str]:
    shown = wants_usage(body)
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
