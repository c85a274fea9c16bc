"""OpenAI's wire format."""

import json
from typing import Any

from .script import Reply, Seen


def error(status: int, code: str, message: str) -> dict[str, Any]:
    kind = {401: "invalid_request_error", 429: "requests"}.get(status, "api_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code or None}}


def error_event(code: str, message: str) -> bytes:
    return _event(error(500, code or "server_error", message))


def whole(seen: Seen, answer: Reply, usage: Any, number: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.calls:
        calls = [_call(n, number, c.name, json.dumps(c.arguments)) for n, c in _calls(answer)]
        message = {**message, "content": None, "tool_calls": calls}
    found = _logprobs(answer) if seen.body.get("logprobs") else None
    choice = {"index": 0, "message": message, "logprobs": found, "finish_reason": answer.finish}
    count = seen.body.get("n") or 1
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": f"{seen.model}-2026-01-01",
        "choices": [{**choice, "index": n} for n in range(count)],
        "usage": usage,
        "service_tier": answer.service_tier or "default",
    }


def events(seen: Seen, answer: Reply, usage: Any, number: int) -> list[bytes]:
    base = {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion.chunk",
        "created": 1_760_000_000,
        "model": f"{seen.model}-2026-01-01",
        "service_tier": answer.service_tier or "default",
    }

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _event({**base, "choices": [choice], "usage": None})

    result = [chunk({"role": "assistant", "content": "", "refusal": None})]
    words = answer.text.split(" ")
    result += [chunk({"content": w if n == 0 else f" {w}"}) for n, w in enumerate(words) if w]
    for n, call in _calls(answer):
        result.append(chunk({"tool_calls": [{"index": n, **_call(n, number, call.name, "")}]}))
        text = json.dumps(call.arguments)
        for half in (text[: len(text) // 2], text[len(text) // 2 :]):
            part = {"index": n, "function": {"arguments": half}}
            result.append(chunk({"tool_calls": [part]}))
    result.append(chunk({}, answer.finish))
    if usage is not None and (seen.body.get("stream_options") or {}).get("include_usage"):
        result.append(_event({**base, "choices": [], "usage": usage}))
    return [*result, b"data: [DONE]\n\n"]


def _logprobs(answer: Reply) -> dict[str, Any] | None:
    if answer.logprob is None:
        return None
    words = answer.text.split(" ")
    content: list[dict[str, Any]] = [
        {"token": word, "logprob": answer.logprob, "bytes": None, "top_logprobs": []}
        for word in words
    ]
    return {"content": content, "refusal": None}


def text_in(event: bytes) -> str:
    """Return the text and arguments that an event carries."""
    data = event.decode().partition("data: ")[2].strip()
    if not data.startswith("{"):
        return ""
    deltas = [choice["delta"] for choice in json.loads(data).get("choices", [])]
    calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
    texts = [delta.get("content") or "" for delta in deltas]
    return "".join(texts + [call["function"].get("arguments", "") for call in calls])


def _calls(answer: Reply) -> list[tuple[int, Any]]:
    return list(enumerate(answer.calls))


def _call(n: int, number: int, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": f"call_{number}_{n}", "type": "function", "function": function}


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()
