"""OpenAI-compatible endpoints: chat completions, completions, models."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from serving.contracts.deadline import Deadline
from serving.contracts.errors import InvalidRequest, NarrowgateError, UnknownModel
from serving.gateway.attested import TaskState
from serving.gateway.context import Context, GatewayContext, RequestId
from serving.gateway.errors import error_body
from serving.gateway.middleware import ROUTE
from serving.gateway.openai_fields import engine_body
from serving.gateway.usage import UsageFilter
from serving.local.client import EngineClient

router = APIRouter(prefix="/v1", tags=["openai"])

_STARTED_AT = int(time.time())


class ChatMessage(BaseModel):
    """One message; content is text or a list of text parts."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: Any = None


class ChatBody(BaseModel):
    """A chat completion request. Fields not listed are those of OpenAI's API."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(min_length=1)
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool | None = None


class CompletionBody(BaseModel):
    """A completion request. Fields not listed are those of OpenAI's API."""

    model_config = ConfigDict(extra="allow")

    model: str = Field(min_length=1)
    prompt: str | list[str]
    stream: bool | None = None


class ModelCard(BaseModel):
    """A served model."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "narrowgate"
    max_model_len: int | None
    state: str
    attestation: str | None
    tasks: dict[str, TaskState]


class ModelList(BaseModel):
    """Every served model."""

    object: str = "list"
    data: list[ModelCard]


@router.get("/models")
async def list_models(context: Context) -> ModelList:
    """List the served models."""
    return ModelList(data=[_card(context, model_id) for model_id in context.engines])


@router.get("/models/{model_id:path}")
async def get_model(model_id: str, context: Context) -> ModelCard:
    """Return one served model."""
    _engine(context, model_id)
    return _card(context, model_id)


@router.post("/chat/completions", response_model=dict[str, Any])
async def chat_completions(body: ChatBody, context: Context, request_id: RequestId) -> Response:
    """Answer a conversation, whole or as server-sent events."""
    return await _complete("chat", body.model_dump(exclude_unset=True), context, request_id)


@router.post("/completions", response_model=dict[str, Any])
async def completions(body: CompletionBody, context: Context, request_id: RequestId) -> Response:
    """Continue a prompt, whole or as server-sent events."""
    return await _complete("completions", body.model_dump(exclude_unset=True), context, request_id)


async def _complete(
    endpoint: str, body: dict[str, Any], context: GatewayContext, request_id: str
) -> Response:
    engine = _engine(context, body["model"])
    accepted = engine_body(endpoint, body)
    usage = UsageFilter(accepted)
    deadline = Deadline.after(context.settings.request_timeout_s)
    async with AsyncExitStack() as held:
        await held.enter_async_context(context.admission.admit(1, deadline))
        reply, events = await engine.openai(endpoint, usage.body, request_id, deadline)
        if reply.body is not None:
            if reply.status == 200:
                _count(context, endpoint, engine, reply.body.get("usage"))
            elif reply.status >= 500:
                raise NarrowgateError("the engine failed on this request")
            return JSONResponse(_ours(reply.body), reply.status, {ROUTE: "local"})
        # The room stays taken until the stream's last byte.
        staying = held.pop_all()
    return _HeldStream(_stream(events, usage, context, endpoint, engine), staying)


class _HeldStream(StreamingResponse):
    """A stream that gives its room back even where its client leaves before the first event.

    A generator that was never started runs no clean-up, so the room cannot be the generator's.
    """

    def __init__(self, stream: AsyncIterator[str], held: AsyncExitStack) -> None:
        headers = {ROUTE: "local", "cache-control": "no-cache"}
        super().__init__(stream, media_type="text/event-stream", headers=headers)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await super().__call__(scope, receive, send)


async def _stream(
    events: AsyncIterator[str],
    usage: UsageFilter,
    context: GatewayContext,
    endpoint: str,
    engine: EngineClient,
) -> AsyncIterator[str]:
    try:
        async for event in events:
            if passed := usage.passed(event):
                yield passed
    except NarrowgateError as error:
        # The status line is out: the break is an event, which the SDKs raise as an error.
        yield f"data: {json.dumps({'error': error_body(error)})}\n\n"
    finally:
        _count(context, endpoint, engine, usage.found)


def _engine(context: GatewayContext, model_id: str) -> EngineClient:
    try:
        return context.engines[model_id]
    except KeyError:
        raise UnknownModel(
            f"no model {model_id!r}",
            field="model",
            fix="use one of: " + ", ".join(sorted(context.engines)),
        ) from None


def _card(context: GatewayContext, model_id: str) -> ModelCard:
    health = context.engines[model_id].health
    return ModelCard(
        id=model_id,
        created=_STARTED_AT,
        max_model_len=health.info.max_model_len if health.info else None,
        state=health.state,
        attestation=health.info.attestation if health.info else None,
        tasks=context.tasks_of(model_id),
    )


def _count(
    context: GatewayContext, endpoint: str, engine: EngineClient, usage: dict[str, Any] | None
) -> None:
    if not usage:
        return
    prompt = int(usage.get("prompt_tokens") or 0)
    details = usage.get("prompt_tokens_details") or {}
    cached = int(details.get("cached_tokens") or 0)
    output = int(usage.get("completion_tokens") or 0)
    context.metrics.count_tokens(endpoint, engine.model_id, prompt - cached, cached, output)


def _ours(body: dict[str, Any]) -> dict[str, Any]:
    """Give an engine's refusal the error shape that all of this server's errors have."""
    error = body.get("error")
    if not isinstance(error, dict):
        return body
    refused = InvalidRequest(str(error.get("message")), field=error.get("param"))
    shaped = error_body(refused)
    if "maximum context length" in refused.message or "max_model_len" in refused.message:
        shaped["code"] = "context_length_exceeded"
    return {"error": shaped}
