"""`python -m benchmarks.instant_provider PORT [MS]`: an OpenAI server with one answer.

MS: milliseconds before it answers.
"""

import asyncio
import json
import sys
from typing import Any

_ANSWER = json.dumps(
    {
        "id": "chatcmpl-instant",
        "object": "chat.completion",
        "created": 0,
        "model": "instant",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "At once."},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23},
    }
).encode()


async def app(scope: Any, receive: Any, send: Any, delay_s: float = 0.0) -> None:
    """ASGI application: read the whole request and send the constant answer."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    if delay_s:
        await asyncio.sleep(delay_s)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(_ANSWER)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": _ANSWER})


def main(port: int, delay_ms: float = 0.0) -> None:
    """Listen on loopback until a signal comes."""
    import uvicorn

    async def delayed(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send, delay_ms / 1000)

    uvicorn.run(delayed, host="127.0.0.1", port=port, log_level="warning", lifespan="off")


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(float, sys.argv[2:]))
