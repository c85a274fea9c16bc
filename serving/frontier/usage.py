"""Token counts that providers report: read, merged, checked for sense. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.contracts.answer import Usage
from serving.contracts.openai import token_count, token_part
from serving.contracts.prices import input_tokens

_FRAMING_TOKENS = 4096
"""Tokens of a server's own system prompt and template, which are not part of the request."""

_OUTPUT_SLACK_TOKENS = 1024
_MAX_REASONING_TOKENS = 131_072
"""Reasoning that a server counts beside the output is not bounded by max_tokens."""

_MAX_CHARS_PER_TOKEN = 256
"""More than the longest token of current tokenizers has."""


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """The most tokens that a request may be billed. output_tokens: of all choices together."""

    input_tokens: int
    output_tokens: int


def usage_from_anthropic(data: object) -> Usage | None:
    """Read Anthropic's usage; None where it is missing, malformed or contradicts itself.

    input_tokens excludes cache reads and writes; output_tokens includes thinking. Writes that the
    breakdown by time to live does not cover are recorded as 5-minute writes, the default.
    """
    if not isinstance(data, Mapping):
        return None
    uncached, output = token_count(data.get("input_tokens")), token_count(data.get("output_tokens"))
    hour = token_part(data, "cache_creation", "ephemeral_1h_input_tokens")
    short = token_part(data, "cache_creation", "ephemeral_5m_input_tokens")
    read = token_part({"usage": data}, "usage", "cache_read_input_tokens")
    written = token_part({"usage": data}, "usage", "cache_creation_input_tokens")
    thinking = token_part(data, "output_tokens_details", "thinking_tokens")
    if uncached is None or output is None or read is None or written is None:
        return None
    if hour is None or short is None or thinking is None or thinking > output:
        return None
    if data.get("cache_creation_input_tokens") is not None and short + hour > written:
        return None
    return Usage(
        uncached_input_tokens=uncached,
        cache_read_tokens=read,
        cache_write_5m_tokens=max(short, written - hour),
        cache_write_1h_tokens=hour,
        output_tokens=output - thinking,
        reasoning_tokens=thinking,
    )


def merged_counts(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the counts of two usage events of one stream: the larger of a repeated count holds.

    Streams repeat cumulative counts, and some end with zeros. A malformed count does not replace a
    readable one.
    """
    merged = dict(before)
    for name, value in after.items():
        old = merged.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            merged[name] = merged_counts(old, value)
        elif value is not None and not _is_lesser(value, old):
            merged[name] = value
    return merged


def is_lesser_output(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> bool:
    """Return whether a usage event's output count is malformed, missing or less than before it.

    Such an event is not the usage of the whole answer. name: of the output count.
    """
    count = token_count(after.get(name))
    return count is None or count < (token_count(before.get(name)) or 0)


def is_credible(
    usage: Usage, limits: TokenLimits, answer_chars: int, *, is_whole: bool = True
) -> bool:
    """Return whether a usage is possible for a request and its answer.

    answer_chars: length of the text, reasoning and arguments received. is_whole: the output is that
    of the whole answer; otherwise only the counts' upper bounds are checked.
    """
    billed_output = usage.output_tokens + usage.reasoning_tokens
    most_output = max(limits.output_tokens, 4 * answer_chars) + _OUTPUT_SLACK_TOKENS
    if input_tokens(usage) > limits.input_tokens + _FRAMING_TOKENS:
        return False
    if usage.output_tokens > most_output or usage.reasoning_tokens > max(
        most_output, _MAX_REASONING_TOKENS
    ):
        return False
    if not is_whole:
        return True
    return input_tokens(usage) > 0 and billed_output * _MAX_CHARS_PER_TOKEN >= answer_chars


def tier_in(data: object) -> str | None:
    """Return the service tier that an answer, or its usage, names."""
    tier = data.get("service_tier") if isinstance(data, Mapping) else None
    return tier if isinstance(tier, str) else None


def _is_lesser(value: object, old: object) -> bool:
    old_count, new_count = token_count(old), token_count(value)
    return old_count is not None and (new_count is None or new_count < old_count)
