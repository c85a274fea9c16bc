"""What is shaped as in OpenAI's API: replies of engines, usage."""

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
