"""`python -m benchmarks.soak_provider PORT SEED`: an OpenAI server with faults and records.

Of every hundred answers some fail: 429, 500, silence, a connection that breaks off. GET /records
returns what was billed: every answer that began is.
"""

import asyncio
import json
import random
import sys
from collections import Counter
from typing import Any

_TEXT = "Answered at once."
_SLOW_S = 0.05
SILENT_S = 20.0
"""Longer than the gateway waits."""

KINDS = ("answered", "rate_limited", "failed", "silent", "broken", "slow")
_WEIGHTS = (88, 4, 3, 1, 1, 3)


class SoakProvider:
    """ASGI application. Counts the answers by kind, and the tokens of whole answers."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)  # noqa: S311  # not for secrets
        self._kinds: Counter[str] = Counter()
        self._input_tokens = 0
        self._output_tokens = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            return
        if scope["path"] == "/records":
            await _send(send, 200, self._records())
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        request = json.loads(body)
        (kind,) = self._rng.choices(KINDS, _WEIGHTS)
        self._kinds[kind] += 1
        match kind:
            case "rate_limited" | "failed":
                status = 429 if kind == "rate_limited" else 500
                await _send(send, status, {"error": {"message": kind, "code": kind}})
            case "silent":
                await asyncio.sleep(SILENT_S)
            case "broken":
                await _start(send, 200, 1000)
                # Leaving without the rest closes the connection.
                await _part(send, b'{"id": "cut', more=True)
            case _:
                await asyncio.sleep(_SLOW_S if kind == "slow" else 0)
                await self._answer(request, send)

    def _records(self) -> dict[str, Any]:
        return {
            "kinds": dict(self._kinds),
            "input_tokens": self._input_tokens,
            "output_tokens": self._output_tokens,
        }

    async def _answer(self, request: dict[str, Any], send: Any) -> None:
        incoming, outgoing = self._rng.randint(10, 500), self._rng.randint(1, 50)
        self._input_tokens += incoming
        self._output_tokens += outgoing
        usage = {
            "prompt_tokens": incoming,
            "completion_tokens": outgoing,
            "total_tokens": incoming + outgoing,
        }
        head = {"id": "chatcmpl-soak", "created": 0, "model": request["model"]}
        if not request.get("stream"):
            message = {"role": "assistant", "content": _TEXT}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            document = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
            await _send(send, 200, document)
            return
        await _start(send, 200, None, "text/event-stream")
        for word in _TEXT.split():
            await _event(send, {**head, "choices": [{"index": 0, "delta": {"content": word}}]})
        await _event(send, {**head, "choices": [_ENDED]})
        await _event(send, {**head, "choices": [], "usage": usage})
        await _part(send, b"data: [DONE]\n\n", more=False)


_ENDED = {"index": 0, "delta": {}, "finish_reason": "stop"}


async def _event(send: Any, chunk: dict[str, Any]) -> None:
    document = {"object": "chat.completion.chunk", **chunk}
    await _part(send, f"data: {json.dumps(document)}\n\n".encode(), more=True)


async def _send(send: Any, status: int, document: dict[str, Any]) -> None:
    body = json.dumps(document).encode()
    await _start(send, status, len(body))
    await _part(send, body, more=False)


async def _start(
    send: Any, status: int, length: int | None, kind: str = "application/json"
) -> None:
    headers = [(b"content-type", kind.encode())]
    if length is not None:
        headers.append((b"content-length", str(length).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _part(send: Any, body: bytes, *, more: bool) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def main(port: int, seed: int) -> None:
    """Listen on loopback until a signal comes."""
    import uvicorn

    app = SoakProvider(seed)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="critical", lifespan="off")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
