"""Errors of Anthropic's endpoints in its own shape, whoever raised them."""

import json
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.contracts.openai import json_text
from serving.gateway.messages_result import error_document, message_with_fix
from serving.gateway.middleware import Arrival

_PATH = "/v1/messages"
_LONGEST = 2**20


class MessagesErrors:
    """Rewrites error responses under /v1/messages: authentication, limits and endpoints alike."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or not _is_ours(scope):
            await self._app(scope, receive, send)
            return
        arrival: Arrival | None = scope.get("state", {}).get("arrival")
        request_id = arrival.request_id if arrival is not None else None
        start: Message | None = None
        body = bytearray()

        async def rewritten(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if request_id is not None:
                    headers["request-id"] = request_id
                if message["status"] >= 400:
                    start = message
                    return
            elif start is not None and message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                if message.get("more_body") and len(body) <= _LONGEST:
                    return
                data = _rewritten(start["status"], bytes(body), request_id)
                headers = MutableHeaders(scope=start)
                headers["content-length"] = str(len(data))
                headers["content-type"] = "application/json"
                first, start = start, None
                await send(first)
                message = {**message, "body": data}
            await send(message)

        await self._app(scope, receive, rewritten)


def _is_ours(scope: Scope) -> bool:
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(f"{root}/"):
        path = path[len(root) :]
    return path == _PATH or path.startswith(f"{_PATH}/")


def _rewritten(status: int, body: bytes, request_id: str | None) -> bytes:
    try:
        document: Any = json.loads(body)
        error = document["error"]
    except (ValueError, KeyError, TypeError):
        error = {}
    text = message_with_fix(error if isinstance(error, dict) else {})
    return json_text(error_document(status, text, request_id)).encode()
