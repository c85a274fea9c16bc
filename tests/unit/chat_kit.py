"""Requests of the request path's tests, and the scripted frontier's replies."""

import asyncio
import json
from typing import Any

import pytest

from serving.contracts.frontier import FrontierCall
from serving.gateway.http import build_http

from .scripted import Server

SENTIMENT = "/v1/tasks/sentiment"
CHAT = "/v1/chat/completions"


def labelled(call: FrontierCall) -> str:
    """Answer with the last label that the schema allows."""
    schema = call.body["response_format"]["json_schema"]["schema"]
    return json.dumps({"label": schema["properties"]["label"]["enum"][-1]})


def replying(text: str = "A long answer.") -> Any:
    return lambda call: text


def chat_body(model: str, text: str = "x", **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **fields}


async def hang_up(server: Server, body: dict[str, Any], after_bodies: int) -> None:
    """Send a request over ASGI and disconnect after so many parts of the response's body."""
    app = build_http(server.context)
    scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"",
             "headers": [(b"content-type", b"application/json")], "http_version": "1.1",
             "scheme": "http", "asgi": {"spec_version": "2.4"}}  # fmt: skip
    parts = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body).encode()}

    async def send(message: Any) -> None:
        nonlocal parts
        parts += message["type"] == "http.response.body"
        if parts >= after_bodies:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await app(scope, receive, send)
