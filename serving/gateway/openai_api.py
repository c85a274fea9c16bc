"""OpenAI-compatible endpoints: chat completions and completions."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from serving.contracts.errors import NarrowgateError
from serving.contracts.openai import json_text
from serving.gateway.cache_options import CACHE, hit_headers
from serving.gateway.errors import error_body
from serving.gateway.http_request import ReceivedRequest
from serving.gateway.middleware import ATTESTATION, COST, GUARANTEE, MODEL, REASON, ROUTE
from serving.gateway.openapi import CHAT_BODY, COMPLETION_BODY
from serving.pipeline.write import Reply

router = APIRouter(prefix="/v1", tags=["openai"])


@router.post("/chat/completions", response_model=dict[str, Any], openapi_extra=CHAT_BODY)
async def chat_completions(received: ReceivedRequest) -> Response:
    """Answer a conversation, whole or as server-sent events, by the model that `model` names.

    model: `auto`, a local model, `task/NAME`, or `provider/model`.
    """
    return ReplyResponse(received.gateway.path.chat(received.body, received.context()))


@router.post("/completions", response_model=dict[str, Any], openapi_extra=COMPLETION_BODY)
async def completions(received: ReceivedRequest) -> Response:
    """Continue a prompt with a local model, whole or as server-sent events."""
    return ReplyResponse(received.gateway.path.completion(received.body, received.context()))


class ReplyResponse(Response):
    """Runs a request and sends its reply inside the request's context.

    An error or a disconnect between the first step and the last byte leaves that context, which
    releases the request's resources.
    """

    def __init__(self, reply: AbstractAsyncContextManager[Reply]) -> None:
        super().__init__()
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the rest of one ASGI request."""
        async with self._reply as reply:
            try:
                await _response(reply)(scope, receive, send)
            except ClientDisconnect:
                # Not an error: the request's context records that its client disconnected.
                return


def _response(reply: Reply) -> Response:
    headers = {ROUTE: reply.route, REASON: reply.reason, MODEL: _header_text(reply.model)}
    if reply.attestation is not None:
        headers[ATTESTATION] = reply.attestation
    if reply.guarantee is not None:
        headers[GUARANTEE] = reply.guarantee
    if reply.cost_usd is not None:
        headers[COST] = f"{reply.cost_usd:f}"
    if reply.cache is not None:
        headers[CACHE] = reply.cache
    if reply.hit is not None:
        headers |= hit_headers(reply.hit)
    if reply.events is None:
        assert reply.document is not None
        return Response(reply.document, media_type="application/json", headers=headers)
    return StreamingResponse(
        _with_errors(reply.events),
        media_type="text/event-stream",
        headers={**headers, "cache-control": "no-cache"},
    )


def _header_text(value: str) -> str:
    """Return a text for a header: characters other than printable ASCII are percent-encoded."""
    return "".join(char if " " <= char <= "~" else quote(char, errors="replace") for char in value)


async def _with_errors(events: AsyncIterator[str]) -> AsyncIterator[str]:
    try:
        async for event in events:
            yield event
    except NarrowgateError as error:
        # The status line has been sent, so the error is an event, which the SDKs raise.
        yield f"data: {json_text({'error': error_body(error)})}\n\n"
