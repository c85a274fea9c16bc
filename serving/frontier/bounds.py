"""The length limit of an answer, and the most that a request can cost. Pure."""

from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from typing import Any

from serving.contracts.errors import InvalidRequest
from serving.contracts.frontier import OutputBounds
from serving.contracts.prices import ModelPrices
from serving.frontier.prompt_cache import canonical
from serving.frontier.usage import TokenLimits

_SYSTEM_ROLES = ("system", "developer")
_LIMITS = ("max_completion_tokens", "max_tokens")

_IMAGE_TOKENS = 5000
"""More than an image costs at either provider; its data is not counted as text."""

_FRAMING_TOKENS = 32
"""A message's role and separators, rounded up."""

_TOOLS_TOKENS = 1024
"""More than a provider's own prompt for the use of tools; Anthropic's has up to 800 tokens."""

_ANSWER_FIELDS = ("tools", "functions", "tool_choice", "response_format")


def bounded_tokens(body: Mapping[str, Any], bounds: OutputBounds) -> int:
    """Return the lowest of the bound and the client's own limits, tokens of one choice.

    Raises InvalidRequest for a limit that is not a whole number of at least 1: a client's value is
    never replaced by a larger one.
    """
    given = ((name, body.get(name)) for name in _LIMITS)
    own = [_whole_number(name, value) for name, value in given if value is not None]
    return min([bounds.max_tokens, *own])


def bounded(body: dict[str, Any], bounds: OutputBounds) -> dict[str, Any]:
    """Return a copy of the body with the bounds applied; the limit is in `max_tokens`.

    The client's stop sequences replace those of the bounds. The directive is appended to the last
    leading system message, or becomes one where there is none. It is constant for a tier, so cached
    prefixes that include it stay valid, and a prefix that ends at a marker inside the system prompt
    ends before it. It is left out where the client asks for a format or offers tools, because
    brevity breaks documents. Raises InvalidRequest as bounded_tokens.
    """
    result = {name: value for name, value in body.items() if name not in _LIMITS}
    result["max_tokens"] = bounded_tokens(body, bounds)
    if "n" in body:
        result["n"] = choice_count(body)
    if bounds.stop and not body.get("stop"):
        result["stop"] = list(bounds.stop)
    if bounds.directive and not _has_format(body):
        result["messages"] = _directed(body.get("messages", []), bounds.directive)
    return result


def choice_count(body: Mapping[str, Any]) -> int:
    """Return how many choices a request asks for, for every accepted form of the number.

    Raises InvalidRequest for a value that is not a whole number of at least 1.
    """
    value = body.get("n")
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    return 1 if value is None else _whole_number("n", value)


def token_limits(body: Mapping[str, Any]) -> TokenLimits:
    """Return the most tokens that a bounded request can be billed.

    Every byte of text counts as a token, the most that a byte-level tokenizer makes. All output
    that `max_tokens` allows is used by each choice, and a prediction is rejected in full, which is
    billed as output. Raises InvalidRequest as choice_count.
    """
    tokens = sum(_message_tokens(message) + _FRAMING_TOKENS for message in body.get("messages", []))
    tokens += sum(_text_tokens(canonical(body[name])) for name in _ANSWER_FIELDS if name in body)
    tokens += _TOOLS_TOKENS if body.get("tools") or body.get("functions") else 0
    output = int(body["max_tokens"]) + _tokens(body.get("prediction") or "")
    return TokenLimits(tokens, output * choice_count(body))


def worst_case_usd(body: Mapping[str, Any], prices: ModelPrices) -> Decimal:
    """Return the most that a bounded request can cost, US dollars.

    All input is priced in its most expensive class, at the most expensive step that this input can
    reach, in the most expensive service tier that the request allows.
    """
    limits, tier = token_limits(body), body.get("service_tier")
    return prices.worst_case(
        limits.input_tokens, limits.output_tokens, tier if isinstance(tier, str) else None
    )


def batch_worst_case_usd(body: Mapping[str, Any], prices: ModelPrices) -> Decimal:
    """Return the most that a bounded request can cost as a line of a provider's batch."""
    limits = token_limits(body)
    return prices.worst_case_in_batch(limits.input_tokens, limits.output_tokens)


def _whole_number(name: str, value: object) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int and value >= 1:
        return value
    raise InvalidRequest(
        f"{name} is {value!r}, not a whole number of at least 1",
        field=name,
        fix=f"set {name} to 1 or more, or leave it out",
    )


def _has_format(body: Mapping[str, Any]) -> bool:
    form = body.get("response_format")
    is_plain = not form or (isinstance(form, dict) and form.get("type") == "text")
    return not is_plain or bool(body.get("tools"))


def _directed(messages: list[dict[str, Any]], directive: str) -> list[dict[str, Any]]:
    leading = 0
    while leading < len(messages) and messages[leading].get("role") in _SYSTEM_ROLES:
        leading += 1
    if not leading:
        return [{"role": "system", "content": directive}, *messages]
    system = dict(messages[leading - 1])
    content = system.get("content")
    if isinstance(content, list):
        system["content"] = [*content, {"type": "text", "text": directive}]
    else:
        system["content"] = f"{content}\n\n{directive}" if content else directive
    return [*messages[: leading - 1], system, *messages[leading:]]


def _message_tokens(message: object) -> int:
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(message, Mapping) or not isinstance(content, list):
        return _tokens(message)
    others = {name: value for name, value in message.items() if name != "content"}
    return _tokens(others) + sum(map(_part_tokens, content))


def _part_tokens(part: object) -> int:
    if not isinstance(part, Mapping) or part.get("type") != "image_url":
        return _tokens(part)
    return _IMAGE_TOKENS + _tokens({n: v for n, v in part.items() if n != "image_url"})


def _tokens(value: object) -> int:
    if isinstance(value, Mapping):
        return sum(_tokens(key) + _tokens(item) for key, item in value.items())
    if isinstance(value, list):
        return sum(map(_tokens, value))
    return _text_tokens(value) if isinstance(value, str) else _text_tokens(str(value))


def _text_tokens(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
