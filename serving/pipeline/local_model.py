"""Runs a client's chats and completions on a local model."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

from serving.contracts.answer import Usage
from serving.contracts.errors import (
    EngineFailure,
    InputTooLong,
    InvalidRequest,
    NarrowgateError,
    Unavailable,
)
from serving.contracts.openai import usage_from_openai, without_engine_fields
from serving.contracts.requests import ChatRequest, CompletionRequest
from serving.pipeline.exit_recorder import Outcome, OutcomeStream, RequestRecord, Served
from serving.pipeline.plan import LocalPlan
from serving.pipeline.replica_meter import MeterEntry, ReplicaMeter
from serving.pipeline.runner import Engine

_EVENT = "data: "
_DONE = "[DONE]"


class LocalModelRunner:
    """Implements Runner for local models. engines, meters: by model id."""

    def __init__(self, engines: Mapping[str, Engine], meters: Mapping[str, ReplicaMeter]) -> None:
        self._engines = engines
        self._meters = meters

    async def whole(
        self, request: ChatRequest | CompletionRequest, plan: LocalPlan, record: RequestRecord
    ) -> list[Outcome]:
        """Return the model's document. Raises the engine's errors, translated."""
        work = self._work(request, plan, record)
        document, _ = await self._started(request, plan, record)
        assert document is not None
        work.usage = usage_from_openai(document.get("usage"))
        return [Outcome(without_engine_fields(document), work.served())]

    async def stream(
        self, request: ChatRequest | CompletionRequest, plan: LocalPlan, record: RequestRecord
    ) -> OutcomeStream:
        """Return the model's answer once it has begun. Raises as `whole`."""
        work = self._work(request, plan, record)
        _, events = await self._started(request, plan, record)
        # The chunks below close the engine's events only if they were started.
        record.resources.push_async_callback(_close, events)
        return OutcomeStream("local", plan.reason, plan.model, _chunks(events, work), work.served)

    def _work(
        self, request: ChatRequest | CompletionRequest, plan: LocalPlan, record: RequestRecord
    ) -> "_Work":
        work = _Work(plan, self._meters[plan.model].enter(request.units), request.units)
        record.resources.callback(work.served)
        record.inputs[0].serving = work.served
        return work

    async def _started(
        self, request: ChatRequest | CompletionRequest, plan: LocalPlan, record: RequestRecord
    ) -> tuple[dict[str, Any] | None, AsyncIterator[str]]:
        endpoint = "chat" if isinstance(request, ChatRequest) else "completions"
        try:
            reply, events = await self._engines[plan.model].openai(
                endpoint, dict(plan.body), record.context.request_id, plan.deadline
            )
            if reply.body is not None and reply.status != 200:
                raise _refusal(reply.status, reply.body.get("error"), plan.body)
        except (InvalidRequest, Unavailable):
            # The model did no work for the request.
            record.inputs[0].serving = None
            raise
        return reply.body, events


class _Work:
    """The work of a local model on one request. usage: set when it is known."""

    def __init__(self, plan: LocalPlan, entry: MeterEntry, units: int) -> None:
        self._plan = plan
        self._entry = entry
        self._units = units
        self.usage: Usage | None = None

    def served(self) -> Served:
        """End the work, if it has not ended, and return what was served."""
        replica_s = self._entry.leave() * self._units
        plan = self._plan
        return Served("local", plan.reason, plan.model, self.usage, replica_s=replica_s)


async def _chunks(events: AsyncIterator[str], work: _Work) -> AsyncIterator[dict[str, Any]]:
    async for text in events:
        for chunk in _parsed(text):
            if "error" in chunk:
                raise _refusal(500, chunk["error"], {})
            work.usage = usage_from_openai(chunk.get("usage")) or work.usage
            yield without_engine_fields(chunk)


def _parsed(text: str) -> Iterator[dict[str, Any]]:
    """Yield the chunks of one or more server-sent events."""
    for block in text.split("\n\n"):
        data = block.removeprefix(_EVENT)
        if data != block and data != _DONE:
            yield json.loads(data)


def _refusal(status: int, error: object, body: Mapping[str, Any]) -> NarrowgateError:
    """Return the NarrowgateError for an error document of the engine. body: sent to the engine."""
    details = error if isinstance(error, Mapping) else {}
    message = str(details.get("message", "the engine gave no reason"))
    if status >= 500:
        return EngineFailure("the engine failed on this request")
    if "maximum context length" in message or "max_model_len" in message:
        return InputTooLong(
            message,
            field="messages" if "messages" in body else "prompt",
            fix="shorten the text, or lower max_tokens",
        )
    field = details.get("param")
    # The engine also names its internal fields; a client knows only those that it sent.
    known = isinstance(field, str) and field.partition(".")[0] in body
    fix = "docs/api.md lists the fields that a local model takes, and their values"
    if known:
        fix = f"send another value of {field}; docs/api.md lists what a local model takes"
    told = details.get("fix")
    return InvalidRequest(
        message, field=field if known else None, fix=told if isinstance(told, str) else fix
    )


async def _close(events: AsyncIterator[str]) -> None:
    close = getattr(events, "aclose", None)
    if close is not None:
        await close()
