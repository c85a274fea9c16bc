"""Anthropic's wire format."""

import json
from typing import Any

from .script import Reply, Seen

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_STOP = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


def error(status: int, code: str, message: str) -> dict[str, Any]:
    found: dict[str, Any] = {"type": _TYPES.get(status, "api_error"), "message": message}
    if code:
        found["details"] = {"error_code": code}
    return {"type": "error", "error": found, "request_id": "req_1"}


def error_event(code: str, message: str) -> bytes:
    found = {"type": code or "overloaded_error", "message": message}
    return _event("error", {"error": found})


def whole(seen: Seen, answer: Reply, usage: Any, number: int) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": answer.text}] if answer.text else []
    content += [
        {"type": "tool_use", "id": f"toolu_{number}_{n}", "name": c.name, "input": c.arguments}
        for n, c in enumerate(answer.calls)
    ]
    return {
        **_message(seen, number, usage),
        "content": content,
        "stop_reason": _STOP[answer.finish],
    }


def events(seen: Seen, answer: Reply, usage: Any, number: int) -> list[bytes]:
    early = {**usage, "output_tokens": 1} if isinstance(usage, dict) else usage
    result = [
        _event("message_start", {"message": _message(seen, number, early)}),
        _event("ping", {}),
    ]
    index = 0
    if answer.text:
        result.append(_start(0, {"type": "text", "text": ""}))
        for n, word in enumerate(answer.text.split(" ")):
            text = word if n == 0 else f" {word}"
            result.append(_delta(0, {"type": "text_delta", "text": text}))
        result.append(_event("content_block_stop", {"index": 0}))
        index = 1
    for n, call in enumerate(answer.calls, start=index):
        block = {"type": "tool_use", "id": f"toolu_{number}_{n}", "name": call.name, "input": {}}
        result.append(_start(n, block))
        text = json.dumps(call.arguments)
        for half in (text[: len(text) // 2], text[len(text) // 2 :]):
            result.append(_delta(n, {"type": "input_json_delta", "partial_json": half}))
        result.append(_event("content_block_stop", {"index": n}))
    delta = {"stop_reason": _STOP[answer.finish], "stop_sequence": None}
    # Cumulative counts, repeated: a client that adds them up counts them twice.
    late = (
        {n: v for n, v in usage.items() if n not in ("cache_creation", "service_tier")}
        if isinstance(usage, dict)
        else {}
    )
    result.append(_event("message_delta", {"delta": delta, "usage": late}))
    return [*result, _event("message_stop", {})]


def text_in(event: bytes) -> str:
    """Return the text and arguments that an event carries."""
    delta = json.loads(event.decode().partition("data: ")[2]).get("delta", {})
    return str(delta.get("text", "") + delta.get("partial_json", ""))


def _message(seen: Seen, number: int, usage: Any) -> dict[str, Any]:
    message: dict[str, Any] = {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": seen.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }
    return message if usage is None else {**message, "usage": usage}


def _start(index: int, block: dict[str, Any]) -> bytes:
    return _event("content_block_start", {"index": index, "content_block": block})


def _delta(index: int, delta: dict[str, Any]) -> bytes:
    return _event("content_block_delta", {"index": index, "delta": delta})


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **data})}\n\n".encode()
