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

from serving import pipeline
from serving.contracts.errors import NarrowgateError, UnknownModel
from serving.gateway.attested import TaskState
from serving.gateway.context import Context, GatewayContext, RequestId
from serving.gateway.errors import error_body
from serving.gateway.middleware import ATTESTATION, MODEL, REASON, ROUTE
from serving.gateway.options import RequestedOptions, taken_from
from serving.local.client import EngineClient
from serving.stages.chat import ChatReply

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
async def chat_completions(
    body: ChatBody, context: Context, request_id: RequestId, requested: RequestedOptions
) -> Response:
    """Answer a conversation, whole or as server-sent events, by whichever way `model` names.

    model: `auto`, a local model, `task/NAME`, or `provider/model`.
    """
    fields = body.model_dump(exclude_unset=True)
    asked = requested.asked(taken_from(fields))
    stack = context.stack
    return _sent(await pipeline.chat(fields, stack, asked.options, asked.deadline, request_id))


@router.post("/completions", response_model=dict[str, Any])
async def completions(
    body: CompletionBody, context: Context, request_id: RequestId, requested: RequestedOptions
) -> Response:
    """Continue a prompt with a local model, whole or as server-sent events."""
    fields = body.model_dump(exclude_unset=True)
    asked = requested.asked(taken_from(fields))
    stack = context.stack
    return _sent(await pipeline.complete(fields, stack, asked.options, asked.deadline, request_id))


def _sent(reply: ChatReply) -> Response:
    headers = {ROUTE: reply.route, REASON: reply.reason, MODEL: reply.model}
    if reply.attestation is not None:
        headers[ATTESTATION] = reply.attestation
    if reply.events is None:
        return _Held(JSONResponse(reply.body, headers=headers), reply.held)
    stream = StreamingResponse(
        _with_errors(reply.events),
        media_type="text/event-stream",
        headers={**headers, "cache-control": "no-cache"},
    )
    return _Held(stream, reply.held)


class _Held(Response):
    """A response that gives back what it holds even where its client leaves before it begins.

    A generator that was never started runs no clean-up, so the room cannot be the generator's.
    """

    def __init__(self, response: Response, held: AsyncExitStack) -> None:
        super().__init__()
        self._response = response
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await self._response(scope, receive, send)


async def _with_errors(events: AsyncIterator[str]) -> AsyncIterator[str]:
    try:
        async for event in events:
            yield event
    except NarrowgateError as error:
        # The status line is out: the break is an event, which the SDKs raise as an error.
        yield f"data: {json.dumps({'error': error_body(error)})}\n\n"


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
