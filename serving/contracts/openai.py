"""What is shaped as in OpenAI's API: replies of engines, usage."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.contracts.answer import Usage


@dataclass(frozen=True, slots=True)
class OpenAIReply:
    """The first item of an OpenAI-style answer.

    status: HTTP status. body: the JSON document, or None where server-sent events follow.
    """

    status: int
    body: dict[str, Any] | None


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
    """Read OpenAI's usage; None where it is missing or no count of tokens.

    prompt_tokens includes cached and written tokens, completion_tokens includes reasoning. Parts
    beyond their whole are cut to it. Some compatible servers count reasoning beside
    completion_tokens, which shows in their total. Writes are booked as 5-minute writes: OpenAI has
    one price for them.
    """
    if not isinstance(data, Mapping):
        return None
    prompt, completion = (
        token_count(data.get("prompt_tokens")),
        token_count(data.get("completion_tokens")),
    )
    if prompt is None or completion is None:
        return None
    read = min(token_part(data, "prompt_tokens_details", "cached_tokens"), prompt)
    written = min(token_part(data, "prompt_tokens_details", "cache_write_tokens"), prompt - read)
    reasoning = token_part(data, "completion_tokens_details", "reasoning_tokens")
    if data.get("total_tokens") == prompt + completion + reasoning:
        output = completion
    else:
        reasoning = min(reasoning, completion)
        output = completion - reasoning
    return Usage(
        uncached_input_tokens=prompt - read - written,
        cache_read_tokens=read,
        cache_write_5m_tokens=written,
        output_tokens=output,
        reasoning_tokens=reasoning,
    )


def token_count(value: object) -> int | None:
    """Return a count of tokens, None for what is none."""
    return value if type(value) is int and value >= 0 else None


def token_part(data: Mapping[str, Any], group: str, name: str) -> int:
    """Return a count within a group of counts, 0 where it is missing."""
    inner = data.get(group)
    return (token_count(inner.get(name)) or 0) if isinstance(inner, Mapping) else 0
