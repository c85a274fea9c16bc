"""The most that one answer can cost. Pure."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from serving.contracts.prices import ModelPrices
from serving.frontier.prompt_cache import canonical

_IMAGE_TOKENS = 5000
"""More than an image costs at either provider; its data is not text and is not counted as such."""

_FRAMING_TOKENS = 32
"""A message's role and separators, with room."""

_TOOLS_TOKENS = 1024
"""More than a provider's own prompt for the use of tools has: Anthropic's has up to 800."""

_ANSWER_FIELDS = ("tools", "functions", "response_format")


def worst_case_usd(body: Mapping[str, Any], prices: ModelPrices) -> Decimal:
    """Return the most that a bounded request can cost, US dollars.

    Every byte of text counts as a token, since a byte-level tokenizer makes no more; all input is
    priced in its dearest class, at the dearest step that so much input can reach, in the dearest
    service tier that the request leaves open; all output allowed by `max_tokens` for each of `n`
    choices is used, and a prediction is refused in full, which is billed as output.
    """
    messages = body.get("messages", [])
    tokens = sum(_tokens(message) + _FRAMING_TOKENS for message in messages)
    tokens += sum(_text_tokens(canonical(body[name])) for name in _ANSWER_FIELDS if name in body)
    tokens += _TOOLS_TOKENS if body.get("tools") or body.get("functions") else 0
    choices, limit = body.get("n"), int(body["max_tokens"])
    limit += _tokens(body.get("prediction", ""))
    output = limit * choices if type(choices) is int and choices > 0 else limit
    asked = body.get("service_tier")
    return prices.worst_case(tokens, output, asked if isinstance(asked, str) else None)


def _tokens(value: object) -> int:
    if isinstance(value, Mapping):
        if value.get("type") == "image_url":
            return _IMAGE_TOKENS
        return sum(_tokens(key) + _tokens(item) for key, item in value.items())
    if isinstance(value, list):
        return sum(map(_tokens, value))
    return _text_tokens(value) if isinstance(value, str) else _text_tokens(str(value))


def _text_tokens(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
