"""Results of batches in the shape of Anthropic's Messages API. Pure."""

import json
from collections.abc import Mapping
from typing import Any

from serving.contracts.answer import Usage
from serving.contracts.openai import usage_from_openai

_STOP = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}
_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_UNRUN = {
    "batch_expired": "expired",
    "batch_cancelled": "canceled",
    "budget_exceeded": "canceled",
    "max_cost_exceeded": "canceled",
}


def message_of(completion: Mapping[str, Any]) -> dict[str, Any]:
    """Return a chat completion as a Message; its first choice counts."""
    choice = _first(completion.get("choices"))
    message = _mapping(choice.get("message"))
    content: list[dict[str, Any]] = []
    if text := _text(message.get("content")) or _text(message.get("refusal")):
        content.append({"type": "text", "text": text, "citations": None})
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = _mapping(_mapping(call).get("function"))
        content.append({
            "type": "tool_use", "id": _string(_mapping(call).get("id")),
            "name": _string(function.get("name")), "input": _arguments(function.get("arguments")),
        })  # fmt: skip
    usage = usage_from_openai(completion.get("usage")) or Usage(
        uncached_input_tokens=0, output_tokens=0
    )
    return {
        "id": f"msg_{_string(completion.get('id')) or 'unknown'}",
        "type": "message",
        "role": "assistant",
        "model": _string(completion.get("model")),
        "content": content,
        "stop_reason": _STOP.get(_string(choice.get("finish_reason")), "max_tokens"),
        "stop_sequence": None,
        "usage": _usage(usage),
    }


def result_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a line of a batch's output or error file as a line of a Message Batch's results."""
    return {"custom_id": line.get("custom_id"), "result": _result(line)}


def error_document(status: int, message: str, request_id: str | None) -> dict[str, Any]:
    """Return an error in Anthropic's shape."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    error = {"type": kind, "message": message}
    return {"type": "error", "error": error, "request_id": request_id}


def message_with_fix(error: Mapping[str, Any]) -> str:
    """Return the text of an error of ours: Anthropic's shape has no field for the rest of it."""
    text = str(error.get("message") or "the request failed")
    param, fix = error.get("param"), error.get("fix")
    text = f"{param}: {text}" if param and str(param) not in text else text
    return f"{text}; {fix}" if fix else text


def _result(line: Mapping[str, Any]) -> dict[str, Any]:
    error, response = line.get("error"), line.get("response") or {}
    if isinstance(error, Mapping) and not response:
        code = error.get("code")
        if code in _UNRUN:
            return {"type": _UNRUN[code]}
        return _errored(500, error, None)
    body = response.get("body") or {}
    status, request_id = response.get("status_code") or 500, response.get("request_id")
    if status == 200:
        return {"type": "succeeded", "message": message_of(body)}
    inner = body.get("error")
    return _errored(status, inner if isinstance(inner, Mapping) else body, request_id)


def _errored(status: int, error: Mapping[str, Any], request_id: str | None) -> dict[str, Any]:
    document = error_document(status, message_with_fix(error), request_id)
    return {"type": "errored", "error": document}


def _usage(usage: Usage) -> dict[str, Any]:
    written = usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    return {
        "input_tokens": usage.uncached_input_tokens,
        "cache_read_input_tokens": usage.cache_read_tokens,
        "cache_creation_input_tokens": written,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_5m_tokens,
            "ephemeral_1h_input_tokens": usage.cache_write_1h_tokens,
        },
        "output_tokens": usage.output_tokens + usage.reasoning_tokens,
        "output_tokens_details": {"thinking_tokens": usage.reasoning_tokens},
        "service_tier": "batch",
    }


def _first(values: object) -> Mapping[str, Any]:
    return _mapping(values[0]) if isinstance(values, list) and values else {}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    return "".join(text for text in texts if isinstance(text, str))


def _arguments(text: object) -> dict[str, Any]:
    try:
        found = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError):
        # A model wrote it: it may be half a document, or one of thousands of brackets.
        return {}
    return found if isinstance(found, dict) else {}
