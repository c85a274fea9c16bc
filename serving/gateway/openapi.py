"""The request bodies in the OpenAPI document. serving.pipeline.read validates them."""

from typing import Any

_OPTIONS: dict[str, Any] = {
    "route": {
        "enum": ["auto", "local_only", "frontier_only", None],
        "description": "local_only forbids and frontier_only forces escalation",
    },
    "deadline_s": {
        "type": ["number", "null"], "exclusiveMinimum": 0,
        "description": "seconds; one above gateway.request_timeout_s is shortened to it",
    },
    "max_cost_usd": {
        "type": ["number", "null"], "minimum": 0,
        "description": "frontier models whose worst case costs more are left out",
    },
}  # fmt: skip
_SAMPLING: dict[str, Any] = {
    "stream": {"type": ["boolean", "null"]},
    "max_tokens": {"type": ["integer", "null"], "minimum": 1},
    "n": {"type": ["integer", "null"], "minimum": 1, "maximum": 128},
    "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
    "top_p": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
    "stop": {
        "anyOf": [
            {"type": "string", "minLength": 1},
            {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": 16},
            {"type": "null"},
        ]
    },
    "seed": {"type": ["integer", "null"]},
}
_MESSAGE: dict[str, Any] = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool", "function"]},
        "content": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["type"]}},
            ]
        },
    },
}


def _body(required: list[str], properties: dict[str, Any], *, closed: bool) -> dict[str, Any]:
    schema: dict[str, Any] = {
        "type": "object",
        "required": required,
        "properties": {**properties, **_OPTIONS},
    }
    if closed:
        schema["additionalProperties"] = False
    content = {"application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


CHAT_BODY = _body(
    ["model", "messages"],
    {
        "model": {"type": "string", "minLength": 1},
        "messages": {"type": "array", "minItems": 1, "maxItems": 2048, "items": _MESSAGE},
        "max_completion_tokens": {"type": ["integer", "null"], "minimum": 1},
        **_SAMPLING,
    },
    closed=False,
)
COMPLETION_BODY = _body(
    ["model", "prompt"],
    {
        "model": {"type": "string", "minLength": 1},
        "prompt": {
            "anyOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
            ]
        },
        **_SAMPLING,
    },
    closed=False,
)
TASK_BODY = _body(
    [],
    {
        "input": {"type": ["string", "null"], "description": "one text"},
        "inputs": {
            "type": ["array", "null"], "minItems": 1, "description": "several texts",
        },
        "source_language": {
            "type": ["string", "null"],
            "description": "translations: ISO 639-1 code; detected where absent",
        },
        "target_language": {
            "type": ["string", "null"], "description": "translations: ISO 639-1 code",
        },
    },
    closed=True,
)  # fmt: skip
