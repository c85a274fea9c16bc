"""Documents in the shape of OpenAI's API: replies of engines, token usage, JSON text."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.contracts.answer import Usage

_DOCUMENT = frozenset({
    "id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier",
})  # fmt: skip
_CHOICE = frozenset({"index", "message", "delta", "text", "finish_reason", "logprobs"})
_MESSAGE = frozenset({"role", "content", "refusal", "tool_calls"})
_HALF_PAIR = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class OpenAIReply:
    """The first item of an OpenAI-style answer.

    status: HTTP status. body: the JSON document, or None where server-sent events follow.
    """

    status: int
    body: dict[str, Any] | None


def without_engine_fields(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return an engine's document or chunk with only the fields of OpenAI's API."""
    kept = {name: value for name, value in document.items() if name in _DOCUMENT}
    if isinstance(choices := kept.get("choices"), list):
        kept["choices"] = [_choice(choice) for choice in choices]
    return kept


def _choice(choice: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in choice.items() if name in _CHOICE}
    for name in ("message", "delta"):
        if isinstance(message := kept.get(name), Mapping):
            kept[name] = {
                field: value
                for field, value in message.items()
                if field in _MESSAGE and (value is not None or field == "content")
            }
    return kept


def json_text(document: Any) -> str:
    """Return a document as JSON that every client can read, whatever a provider sent.

    NaN and infinite numbers become null, halves of surrogate pairs the replacement character.
    """
    try:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(document), ensure_ascii=False)
    return _HALF_PAIR.sub("\ufffd", text)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def openai_usage(usage: Usage) -> dict[str, Any]:
    """Return a usage in OpenAI's shape, where classes include one another."""
    written = usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    prompt = usage.uncached_input_tokens + usage.cache_read_tokens + written
    completion = usage.output_tokens + usage.reasoning_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "cached_tokens": usage.cache_read_tokens,
            "cache_write_tokens": written,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def usage_from_openai(data: object) -> Usage | None:
    """Read OpenAI's usage; None where it is missing, malformed or contradicts itself.

    prompt_tokens includes cached and written tokens; completion_tokens includes reasoning. Some
    compatible servers do not include reasoning in completion_tokens; their total shows it, with or
    without a count of its own. Cache writes are recorded as 5-minute writes: OpenAI has one price
    for them.
    """
    if not isinstance(data, Mapping):
        return None
    prompt = token_count(data.get("prompt_tokens"))
    completion = token_count(data.get("completion_tokens"))
    read = token_part(data, "prompt_tokens_details", "cached_tokens")
    written = token_part(data, "prompt_tokens_details", "cache_write_tokens")
    reasoning = token_part(data, "completion_tokens_details", "reasoning_tokens")
    if prompt is None or completion is None or read is None or written is None or reasoning is None:
        return None
    beside = max(0, (token_count(data.get("total_tokens")) or 0) - prompt - completion)
    output = completion if beside and beside == reasoning else completion - reasoning
    if beside != reasoning:
        reasoning += beside
    if output < 0 or read + written > prompt:
        return None
    return Usage(
        uncached_input_tokens=prompt - read - written,
        cache_read_tokens=read,
        cache_write_5m_tokens=written,
        output_tokens=output,
        reasoning_tokens=reasoning,
    )


def token_count(value: object) -> int | None:
    """Return a count of tokens; None for a value that is not a whole number of at least 0.

    A float such as 2048.0 is a whole number.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and value >= 0 else None


def token_part(data: Mapping[str, Any], group: str, name: str) -> int | None:
    """Return a count within a group of counts: 0 where it is absent, None where it is malformed."""
    inner = data.get(group)
    value = inner.get(name) if isinstance(inner, Mapping) else None
    return 0 if value is None else token_count(value)
