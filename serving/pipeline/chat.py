"""Chats with a local model and with a frontier model."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from serving.contracts.answer import Route
from serving.contracts.errors import InputTooLong, InvalidRequest, NarrowgateError
from serving.contracts.frontier import Completion, CompletionStream, FrontierCall
from serving.contracts.openai import usage_from_openai
from serving.contracts.routing import Reason
from serving.pipeline.exit_recorder import ExitRecorder, Served
from serving.pipeline.openai_fields import engine_body
from serving.pipeline.plan import FrontierPlan, LocalPlan
from serving.pipeline.replica_meter import Lap
from serving.pipeline.stack import RequestContext
from serving.pipeline.usage_filter import UsageFilter, wants_usage

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A chat's answer: a body, or server-sent events as text.

    held: what stays taken until the last byte is out, or the client has gone; whoever sends the
    reply leaves it. events may raise NarrowgateError. attestation: what vouches for a task.
    cost_usd: None where unknown, and for streams, whose cost is known at their end.
    """

    route: Route
    reason: Reason
    model: str
    body: dict[str, Any] | None
    events: AsyncIterator[str] | None
    held: AsyncExitStack
    attestation: str | None = None
    cost_usd: Decimal | None = None


async def local_chat(
    endpoint: str, body: dict[str, Any], way: LocalPlan, trip: RequestContext, books: ExitRecorder
) -> ChatReply:
    """Pass a chat (`chat`) or a prompt (`completions`) to a local model, as it is."""
    engine = way.engine
    model = engine.model_id
    usage = UsageFilter(engine_body(endpoint, body))
    async with AsyncExitStack() as held:
        held.push_async_exit(books)
        await held.enter_async_context(trip.stack.local_admission.admit(1, trip.deadline))
        lap = trip.stack.meters[model].enter(1)
        held.callback(lap.leave)
        reply, events = await engine.openai(endpoint, usage.body, trip.request_id, trip.deadline)
        if reply.body is None:
            passed = _local_events(events, usage, books, _LocalServing(model, lap))
            held.push_async_callback(_closed, events)
            held.push_async_callback(_closed, passed)
            return ChatReply("local", "requested", model, None, passed, held.pop_all())
        if reply.status != 200:
            raise _refusal(reply.status, reply.body)
        served = _LocalServing(model, lap).served(reply.body.get("usage"))
        cost_usd = books.answered(0, served)
        await books.written()
        return ChatReply(
            "local", "requested", model, reply.body, None, held.pop_all(), cost_usd=cost_usd
        )


async def frontier_chat(
    body: dict[str, Any], way: FrontierPlan, trip: RequestContext, books: ExitRecorder
) -> ChatReply:
    """Pass a chat to the first frontier model of its way that answers."""
    stack = trip.stack
    call = FrontierCall(
        body={name: value for name, value in body.items() if name not in {"model", "stream"}},
        targets=way.targets,
        bounds=stack.policy.bounds[way.tier],
        deadline=trip.deadline,
        request_id=trip.request_id,
        entry=books.entry(0),
        max_cost_usd=trip.options.max_cost_usd,
    )
    async with AsyncExitStack() as held:
        held.push_async_exit(books)
        await held.enter_async_context(stack.frontier_admission.admit(1, trip.deadline))
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
        served = _frontier_served(way, completion)
        cost_usd = books.answered(0, served)
        await books.written()
        return ChatReply(
            "frontier", way.reason, completion.model, completion.body, None, held.pop_all(),
            cost_usd=cost_usd,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _LocalServing:
    """A local model at work on one chat."""

    model: str
    lap: Lap

    def served(self, usage: dict[str, Any] | None) -> Served:
        """Return what it served by now."""
        replica_s = self.lap.leave()
        return Served(
            "local", "requested", self.model, usage_from_openai(usage), replica_s=replica_s
        )


def _frontier_served(way: FrontierPlan, answer: Completion | CompletionStream) -> Served:
    return Served(
        "frontier", way.reason, answer.model, answer.usage, (*way.attempts, *answer.attempts),
        service_tier=answer.service_tier,
    )  # fmt: skip


async def _local_events(
    events: AsyncIterator[str], usage: UsageFilter, books: ExitRecorder, serving: _LocalServing
) -> AsyncIterator[str]:
    try:
        async for event in events:
            if passed := usage.passed(event):
                yield passed
    except NarrowgateError as error:
        books.failed(0, error, "requested", (), serving.served(usage.found))
        raise
    except BaseException:
        books.abandoned(0, serving.served(usage.found))
        raise
    books.answered(0, serving.served(usage.found))
    await books.written()


async def _frontier_events(
    stream: CompletionStream, body: Mapping[str, Any], way: FrontierPlan, books: ExitRecorder
) -> AsyncIterator[str]:
    shown = wants_usage(body)
    try:
        async for chunk in stream.events:
            if not shown and "usage" in chunk:
                if not chunk.get("choices"):
                    continue
                chunk = {key: value for key, value in chunk.items() if key != "usage"}
            yield f"data: {json.dumps(chunk)}\n\n"
        books.answered(0, _frontier_served(way, stream))
        await books.written()
        yield DONE
    except NarrowgateError as error:
        books.failed(0, error, way.reason, (), _frontier_served(way, stream))
        raise
    except BaseException:
        # The call is over when its connection is closed; only then the books know its cost.
        await _closed(stream.events)
        books.abandoned(0, _frontier_served(way, stream))
        raise


async def _closed(events: AsyncIterator[Any]) -> None:
    # Closing is what cancels upstream; waiting for the garbage collector would let it go on.
    close = getattr(events, "aclose", None)
    if close is not None:
        await close()


def _refusal(status: int, body: Mapping[str, Any]) -> NarrowgateError:
    error = body.get("error")
    message = str(error.get("message")) if isinstance(error, dict) else "no reason given"
    if status >= 500:
        return NarrowgateError("the engine failed on this request")
    field = error.get("param") if isinstance(error, dict) else None
    if "maximum context length" in message or "max_model_len" in message:
        return InputTooLong(message, field=field)
    return InvalidRequest(message, field=field)
