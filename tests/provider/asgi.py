"""Answers of an ASGI application, and the faults of its connection."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

HANG_S = 600.0


class Cut(Exception):
    """Makes uvicorn drop the connection in the middle of an answer."""


async def begin(send: Send, status: int, kind: str, headers: dict[str, str] | None = None) -> None:
    named = {
        "content-type": kind,
        "x-request-id": "req_1",
        "request-id": "req_1",
        **(headers or {}),
    }
    pairs = [(k.encode(), v.encode()) for k, v in named.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})


async def send_whole(
    send: Send, status: int, data: bytes, kind: str, headers: dict[str, str] | None = None
) -> None:
    await begin(send, status, kind, headers)
    await send({"type": "http.response.body", "body": data})


async def send_json(
    send: Send, status: int, document: dict[str, Any], headers: dict[str, str] | None = None
) -> None:
    await send_whole(send, status, json.dumps(document).encode(), "application/json", headers)


def hang_up(send: Any) -> None:
    """Close the connection without a byte of an answer; raises Cut.

    ASGI has no message for this; the connection belongs to uvicorn's request cycle.
    """
    send.__self__.transport.abort()
    raise Cut
