"""Anthropic's token counts as exclusive classes, and guesses where nobody counted. Pure."""

from collections.abc import Mapping

from serving.contracts.answer import Usage
from serving.contracts.openai import token_count, token_part

CHARS_PER_TOKEN = 4
"""Rough, for English; used where a provider does not tell and for minimum prefix lengths."""


def from_anthropic(data: object) -> Usage | None:
    """Read Anthropic's usage; None where it is missing or no count of tokens.

    input_tokens excludes cache reads and writes; output_tokens includes thinking. Writes that the
    breakdown by time to live does not cover are booked as 5-minute writes, the default.
    """
    if not isinstance(data, Mapping):
        return None
    uncached, output = token_count(data.get("input_tokens")), token_count(data.get("output_tokens"))
    if uncached is None or output is None:
        return None
    hour = token_part(data, "cache_creation", "ephemeral_1h_input_tokens")
    short = token_part(data, "cache_creation", "ephemeral_5m_input_tokens")
    written = token_count(data.get("cache_creation_input_tokens")) or 0
    thinking = min(token_part(data, "output_tokens_details", "thinking_tokens"), output)
    return Usage(
        uncached_input_tokens=uncached,
        cache_read_tokens=token_count(data.get("cache_read_input_tokens")) or 0,
        cache_write_5m_tokens=max(short, written - hour),
        cache_write_1h_tokens=hour,
        output_tokens=output - thinking,
        reasoning_tokens=thinking,
    )


def estimated(prompt_chars: int, answer_chars: int, told: Usage | None = None) -> Usage:
    """Return a rough usage for an answer whose provider did not tell all of it.

    told: what it did tell before the answer broke off: its input counts, its output may not.
    """
    output = -(-answer_chars // CHARS_PER_TOKEN)
    if told is not None:
        shown = max(told.output_tokens, output - told.reasoning_tokens)
        return told.model_copy(update={"output_tokens": shown})
    return Usage(uncached_input_tokens=-(-prompt_chars // CHARS_PER_TOKEN), output_tokens=output)


def tier_in(data: object) -> str | None:
    """Return the service tier that an answer, or its usage, names."""
    tier = data.get("service_tier") if isinstance(data, Mapping) else None
    return tier if isinstance(tier, str) else None
