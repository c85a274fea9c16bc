"""Computes the provider's bill from its own records, by separate rules."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from .script import Seen

CLASSES = (
    "uncached_input_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
)


def partial_bill(seen: Seen, made_tokens: int) -> dict[str, Any]:
    """Return the usage of an answer whose client left after so many output tokens were made."""
    usage = dict(seen.usage or {})
    name = "completion_tokens" if seen.api == "openai" else "output_tokens"
    reasoning = classes_of(seen.api, usage)["reasoning_tokens"]
    usage[name] = min(usage[name], made_tokens + reasoning)
    return usage


def billed_classes(seen: Seen) -> dict[str, int]:
    """Return the billed tokens by exclusive class; zeros for a request that was refused."""
    return classes_of(seen.api, seen.billed)


def billed_usd(seen: Seen, prices: Mapping[str, Decimal]) -> Decimal:
    """Return what the provider charges for a request: half in a batch.

    prices: US dollars a token by class, of a request outside of batches.
    """
    usd = sum((count * prices[name] for name, count in billed_classes(seen).items()), Decimal(0))
    return usd / 2 if seen.batch_id is not None else usd


def classes_of(api: str, usage: dict[str, Any] | None) -> dict[str, int]:
    """Return a usage in a wire format as tokens by exclusive class."""
    if usage is None:
        return dict.fromkeys(CLASSES, 0)
    if api == "anthropic":
        thinking = usage["output_tokens_details"]["thinking_tokens"]
        counts = (
            usage["input_tokens"],
            usage["cache_read_input_tokens"],
            usage["cache_creation"]["ephemeral_5m_input_tokens"],
            usage["cache_creation"]["ephemeral_1h_input_tokens"],
            usage["output_tokens"] - thinking,
            thinking,
        )
    else:
        details = usage["prompt_tokens_details"]
        read, written = details["cached_tokens"], details.get("cache_write_tokens", 0)
        reasoning = usage["completion_tokens_details"]["reasoning_tokens"]
        counts = (
            usage["prompt_tokens"] - read - written,
            read,
            written,
            0,
            usage["completion_tokens"] - reasoning,
            reasoning,
        )
    return dict(zip(CLASSES, counts, strict=True))
