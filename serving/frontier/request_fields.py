"""Which fields of a chat request are passed on to a provider. Pure.

A field is listed here only if it cannot raise the price, or if the worst case (bounds.py) covers
what it may cost. Everything else is refused by name: audio, files, web search, provider routing and
server-side tools have no price in the price list, and their cost cannot be bounded.
"""

from collections.abc import Collection, Mapping
from typing import Any

from serving.contracts.errors import InvalidRequest, UnsupportedParameter

PASSED_FIELDS = frozenset(
    {
        "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
        "max_completion_tokens", "max_tokens", "messages", "metadata", "min_p", "n",
        "parallel_tool_calls", "prediction", "presence_penalty", "prompt_cache_key",
        "prompt_cache_retention", "reasoning_effort", "repetition_penalty", "response_format",
        "safety_identifier", "seed", "service_tier", "stop", "store", "temperature", "tool_choice",
        "tools", "top_k", "top_logprobs", "top_p", "user", "verbosity",
    }
)  # fmt: skip
"""The fields of OpenAI's chat requests that every provider may be sent."""

_SET_BY_US = frozenset({"model", "stream", "stream_options"})
_PART_TYPES = ("image_url", "refusal", "text")
_TOOL_TYPES = ("custom", "function")
_TEXT_ONLY = ["text"]


def passed_fields(body: Mapping[str, Any], extra: Collection[str] = ()) -> dict[str, Any]:
    """Return the fields of a request that are passed on.

    A null field is absent. extra: further fields that the provider's settings allow. Raises
    UnsupportedParameter, naming the field, for one that is not allowed; InvalidRequest for a
    malformed one.
    """
    fields = {n: v for n, v in body.items() if v is not None and n not in _SET_BY_US}
    if fields.get("modalities") == _TEXT_ONLY:
        del fields["modalities"]
    for name in fields:
        if name not in PASSED_FIELDS and name not in extra:
            raise _unsupported(name, f"{name!r} is not passed on to a frontier model")
    _check_stop(fields.get("stop"))
    for index, message in enumerate(_list(fields, "messages")):
        _check_message(index, message)
    for index, tool in enumerate(_list(fields, "tools")):
        if not isinstance(tool, Mapping) or tool.get("type") not in _TOOL_TYPES:
            kind = tool.get("type") if isinstance(tool, Mapping) else tool
            raise _unsupported(f"tools.{index}", f"a tool of type {kind!r} is not supported")
    if not isinstance(fields.get("service_tier", ""), str):
        raise _malformed("service_tier", "is not a text")
    return fields


def _check_stop(stop: object) -> None:
    texts = stop if isinstance(stop, list) else [stop]
    if stop is not None and not all(isinstance(text, str) for text in texts):
        raise _malformed("stop", "is neither a text nor a list of texts")


def _check_message(index: int, message: object) -> None:
    where = f"messages.{index}"
    if not isinstance(message, Mapping):
        raise _malformed(where, "is not an object")
    if message.get("audio"):
        raise _unsupported(f"{where}.audio", "audio is not supported")
    content = message.get("content")
    for number, part in enumerate(content if isinstance(content, list) else []):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in _PART_TYPES:
            raise _unsupported(
                f"{where}.content.{number}", f"a part of type {kind!r} is not supported"
            )


def _list(fields: Mapping[str, Any], name: str) -> list[Any]:
    value = fields.get(name, [])
    if not isinstance(value, list):
        raise _malformed(name, "is not a list")
    return value


def _unsupported(field: str, message: str) -> UnsupportedParameter:
    return UnsupportedParameter(
        f"{message}: its cost cannot be bounded",
        field=field,
        fix="leave it out, or allow a field by name in frontier.providers.NAME.extra_fields",
    )


def _malformed(field: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{field} {what}", field=field, fix="send it as OpenAI's API describes")
