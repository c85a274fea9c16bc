"""Checks of single fields of OpenAI's API: type, range, and values without effect."""

import math
from collections.abc import Callable, Mapping
from typing import Any, get_args

from serving.contracts.chat_fields import (
    CACHE_RETENTION,
    FUNCTION_CALL,
    METADATA,
    PREDICTION,
    REASONING_EFFORT,
    RESPONSE_FORMAT,
    SERVICE_TIER,
    STREAM_OPTIONS,
    TOOL_CHOICE,
    VERBOSITY,
    Leaf,
    Shape,
    one_of,
)
from serving.contracts.errors import InvalidRequest, UnsupportedParameter
from serving.contracts.invalid_values import invalid, shown
from serving.contracts.requests import Role
from serving.pipeline.json_schema import check_schema

Check = Callable[[Any, str], Any]
"""Takes a value and its path in the request; returns the value. Raises InvalidRequest."""

_ROLES: Mapping[str, Role] = {role: role for role in get_args(Role)}
MAX_CHOICES = 128
"""The most choices of any request, as at OpenAI's API."""
MAX_STOPS = 16
MAX_TOOLS = 128
MAX_ALTERNATIVES = 20
"""The most alternatives a token (`top_logprobs`), as at OpenAI's API."""

_PART_TEXTS = {"text": "text", "refusal": "refusal"}
_PART_TYPES = frozenset({*_PART_TEXTS, "image_url", "input_audio", "file", "video_url"})


def boolean(value: Any, path: str) -> bool:
    """Return a boolean."""
    if not isinstance(value, bool):
        raise invalid(path, value, "true or false")
    return value


def text(value: Any, path: str) -> str:
    """Return a string."""
    if not isinstance(value, str):
        raise invalid(path, value, "a string")
    return value


def object_(value: Any, path: str) -> dict[str, Any]:
    """Return an object."""
    if not isinstance(value, dict):
        raise invalid(path, value, "an object")
    return value


def refuse_half_characters(value: str, path: str) -> None:
    """Raise InvalidRequest for a text with half of a surrogate pair. path: empty for a key."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"{path or 'a key'} holds an unpaired surrogate at character {error.start}, "
            "which is not text",
            field=path or None,
            fix="send complete characters: the text was probably cut inside one",
        ) from error


def integer(low: int, high: int) -> Check:
    """Return the check of a whole number between two bounds, both allowed."""

    def check(value: Any, path: str) -> int:
        if type(value) is not int or not low <= value <= high:
            raise invalid(path, value, f"a whole number between {low} and {high}")
        return value

    return check


def number(low: float, high: float) -> Check:
    """Return the check of a number between two bounds, both allowed."""

    def check(value: Any, path: str) -> float:
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            raise invalid(path, value, f"a number between {low:g} and {high:g}")
        return float(value) if isinstance(value, float) else int(value)

    return check


def positive(value: Any, path: str) -> int:
    """Return a number of tokens, at least 1."""
    if type(value) is not int or not 1 <= value < 2**31:
        raise invalid(path, value, f"a whole number between 1 and {2**31 - 1}")
    return value


def role_of(value: Any, path: str) -> Role:
    """Return a message's role."""
    if not isinstance(value, str) or value not in _ROLES:
        raise invalid(path, value, "one of " + ", ".join(sorted(_ROLES)))
    return _ROLES[value]


choices = integer(1, MAX_CHOICES)


def read_part(value: Any, path: str) -> Mapping[str, Any]:
    """Return one part of a message's content."""
    part = object_(value, path)
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in _PART_TYPES:
        raise invalid(f"{path}.type", kind, "one of " + ", ".join(sorted(_PART_TYPES)))
    if kind in _PART_TEXTS:
        text(part.get(_PART_TEXTS[kind]), f"{path}.{_PART_TEXTS[kind]}")
    image = part.get("image_url")
    if kind == "image_url" and not isinstance(image, str):
        text(object_(image, f"{path}.image_url").get("url"), f"{path}.image_url.url")
    return part


def read_tool_calls(value: Any, path: str) -> list[Any]:
    """Return the calls of tools that an assistant's message holds."""
    if not isinstance(value, list):
        raise invalid(path, value, "a list of objects")
    for index, call in enumerate(value):
        where = f"{path}.{index}"
        if object_(call, where).get("type", "function") == "function":
            function = object_(call.get("function"), f"{where}.function")
            text(function.get("name"), f"{where}.function.name")
            text(function.get("arguments"), f"{where}.function.arguments")
    return value


def _stops(value: Any, path: str) -> Any:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise invalid(path, value, f"a string or a list of at most {MAX_STOPS} strings")
    for index, stop in enumerate(stops):
        if not isinstance(stop, str) or not stop:
            where = path if isinstance(value, str) else f"{path}.{index}"
            raise invalid(where, stop, "a string of at least one character")
    return value


def _biases(value: Any, path: str) -> dict[str, Any]:
    for token, bias in object_(value, path).items():
        if not (token.isascii() and token.isdecimal()):
            raise InvalidRequest(
                f"{path} has the key {shown(token)}, which is not a token id",
                field=path,
                fix="send an object from token ids to numbers",
            )
        number(-100, 100)(bias, f"{path}.{token}")
    return object_(value, path)


def _response_format(value: Any, path: str) -> dict[str, Any]:
    form = object_(value, path)
    kind = form.get("type")
    if not isinstance(kind, str) or kind not in {"text", "json_object", "json_schema"}:
        raise invalid(f"{path}.type", kind, "one of json_object, json_schema, text")
    if kind == "json_schema":
        described = object_(form.get("json_schema"), f"{path}.json_schema")
        text(described.get("name"), f"{path}.json_schema.name")
        check_schema(
            object_(described.get("schema"), f"{path}.json_schema.schema"),
            f"{path}.json_schema.schema",
        )
    return dict(_listed_only(RESPONSE_FORMAT)(form, path))


def _tools(value: Any, path: str) -> list[Any]:
    if not isinstance(value, list) or len(value) > MAX_TOOLS:
        raise invalid(path, value, f"a list of at most {MAX_TOOLS} objects")
    for index, tool in enumerate(value):
        if object_(tool, f"{path}.{index}").get("type") == "function":
            _function(tool.get("function"), f"{path}.{index}.function")
    return value


def _functions(value: Any, path: str) -> list[Any]:
    for index, function in enumerate(_tools(value, path)):
        _function(function, f"{path}.{index}")
    return list(value)


def _function(value: Any, path: str) -> None:
    function = object_(value, path)
    text(function.get("name"), f"{path}.name")
    if function.get("parameters") is not None:
        object_(function["parameters"], f"{path}.parameters")


def _shape(shape: Shape) -> Check:
    """Return the check of a value's shape. An empty object is absent where one may be given.

    Unlisted fields pass: what is sent to a provider is checked there, by its settings.
    """
    may_be_empty = shape is METADATA or not isinstance(shape, Leaf)

    def check(value: Any, path: str) -> Any:
        if may_be_empty and value == {}:
            return value
        return shape.read(value, path, lambda _: None)

    return check


def _listed_only(shape: Shape) -> Check:
    """Return the check of a value's shape that refuses unlisted fields."""

    def refuse(path: str) -> None:
        raise UnsupportedParameter(f"{path} is not supported", field=path, fix="leave it out")

    return lambda value, path: shape.read(value, path, refuse)


stream_options = _listed_only(STREAM_OPTIONS)


def _modalities(value: Any, path: str) -> list[str]:
    if not isinstance(value, list):
        raise invalid(path, value, "a list of strings")
    kind = _shape(one_of("text", "audio"))
    return [kind(item, f"{path}.{index}") for index, item in enumerate(value)]


_SAMPLING: dict[str, Check] = {
    "temperature": number(0, 2),
    "top_p": number(0, 1),
    "top_k": integer(-1, 2**31 - 1),
    "min_p": number(0, 1),
    "seed": integer(-(2**63), 2**63 - 1),
    "stop": _stops,
    "frequency_penalty": number(-2, 2),
    "presence_penalty": number(-2, 2),
    "repetition_penalty": number(0.01, 10),
    "logit_bias": _biases,
    "ignore_eos": boolean,
    "min_tokens": integer(0, 2**31 - 1),
    "skip_special_tokens": boolean,
    "response_format": _response_format,
    "user": text,
    "metadata": _shape(METADATA),
    "store": boolean,
    "service_tier": _shape(SERVICE_TIER),
}
CHAT_FIELDS: Mapping[str, Check] = {
    **_SAMPLING,
    "logprobs": boolean,
    "top_logprobs": integer(0, MAX_ALTERNATIVES),
    "tools": _tools,
    "tool_choice": _shape(TOOL_CHOICE),
    "functions": _functions,
    "function_call": _shape(FUNCTION_CALL),
    "parallel_tool_calls": boolean,
    "modalities": _modalities,
    "audio": object_,
    "prediction": _shape(PREDICTION),
    "web_search_options": object_,
    "reasoning_effort": _shape(REASONING_EFFORT),
    "verbosity": _shape(VERBOSITY),
    "prompt_cache_key": text,
    "prompt_cache_retention": _shape(CACHE_RETENTION),
    "safety_identifier": text,
}
"""Fields of chats that ChatRequest does not have by name."""

COMPLETION_FIELDS: Mapping[str, Check] = {
    **_SAMPLING,
    "logprobs": integer(0, MAX_ALTERNATIVES),
    "echo": boolean,
    "suffix": text,
    "best_of": integer(1, MAX_CHOICES),
}
"""Fields of completions that CompletionRequest does not have by name."""

_SAY_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "store": (False,),
    "echo": (False,),
    "suffix": ("",),
    "best_of": (1,),
    "top_logprobs": (0,),
    "top_k": (-1, 0),
    "min_p": (0,),
    "min_tokens": (0,),
    "repetition_penalty": (1,),
    "ignore_eos": (False,),
    "skip_special_tokens": (True,),
}
_WHOLE = frozenset({"best_of", "min_tokens", "top_k", "top_logprobs"})
"""Whole numbers: 1.0 is none."""


def is_default(name: str, value: Any) -> bool:
    """Return whether a field has the same effect as its absence."""
    if name == "logprobs":
        # In a completion, 0 asks for the log-probabilities of the sampled tokens.
        return value is False
    if value in ([], {}):
        # An empty object of web search options asks for a search with the usual ones.
        return name != "web_search_options"
    if name in _WHOLE and type(value) is not int:
        return False
    return any(_is_equal(value, nothing) for nothing in _SAY_NOTHING.get(name, ()))


def _is_equal(value: Any, nothing: Any) -> bool:
    if isinstance(nothing, bool) or isinstance(value, bool):
        # In Python, true is 1.
        return value is nothing
    return bool(value == nothing)
