"""OpenAI-compatible endpoints: chat completions and completions."""

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from serving.contracts.errors import NarrowgateError
from serving.gateway.errors import error_body
from serving.gateway.middleware import ATTESTATION, COST, MODEL, REASON, ROUTE
from serving.gateway.options import RequestedOptions, taken_from
from serving.pipeline import request_path
from serving.pipeline.chat import ChatReply

router = APIRouter(prefix="/v1", tags=["openai"])


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


@router.post("/chat/completions", response_model=dict[str, Any])
async def chat_completions(body: ChatBody, requested: RequestedOptions) -> Response:
    """Answer a conversation, whole or as server-sent events, by whichever way `model` names.

    model: `auto`, a local model, `task/NAME`, or `provider/model`.
    """
    fields = body.model_dump(exclude_unset=True)
    trip = requested.trip(taken_from(fields))
    return _sent(await request_path.chat(fields, trip))


@router.post("/completions", response_model=dict[str, Any])
async def completions(body: CompletionBody, requested: RequestedOptions) -> Response:
    """Continue a prompt with a local model, whole or as server-sent events."""
    fields = body.model_dump(exclude_unset=True)
    trip = requested.trip(taken_from(fields))
    return _sent(await request_path.complete(fields, trip))


def _sent(reply: ChatReply) -> Response:
    headers = {ROUTE: reply.route, REASON: reply.reason, MODEL: reply.model}
    if reply.attestation is not None:
        headers[ATTESTATION] = reply.attestation
    if reply.cost_usd is not None:
        headers[COST] = f"{reply.cost_usd:f}"
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
