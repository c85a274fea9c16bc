"""The fields of a chat completion that a provider may be sent, at every level of nesting. Pure.

A field is listed only if it cannot raise the price, or if the worst case covers what it may cost
(serving/frontier/bounds.py). The names are those of OpenAI's API; a test compares them with the
types of its SDK, so that a field of a new version is decided on. Beyond those, `cache_control` is
Anthropic's, and an assistant's message has what clients send back of an earlier answer.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from serving.contracts.errors import InvalidRequest, UnsupportedParameter
from serving.contracts.invalid_values import SHOWN_CHARS, invalid

Refuse = Callable[[str], None]
"""Takes the path of a field that is not listed. Raises UnsupportedParameter, or lets it pass."""


class Shape(Protocol):
    """What a value may be."""

    def read(self, value: Any, path: str, refuse: Refuse) -> Any:
        """Return a value without unlisted fields that are null or empty.

        refuse: called for every other unlisted field. Raises InvalidRequest for a value of another
        shape, UnsupportedParameter for a part, tool or call of a type that is not listed.
        """
        ...


@dataclass(frozen=True, slots=True)
class Leaf:
    """A value without fields of its own.

    wanted: what it must be, in words. values: all that it may be; empty where they are not listed.
    """

    holds: Callable[[Any], bool]
    wanted: str
    values: frozenset[str] = frozenset()

    def read(self, value: Any, path: str, refuse: Refuse) -> Any:
        """See Shape."""
        if not self.holds(value):
            raise invalid(path, value, self.wanted)
        return value


@dataclass(frozen=True, slots=True)
class Fields:
    """An object with these fields and no others."""

    names: Mapping[str, Shape]

    def read(self, value: Any, path: str, refuse: Refuse) -> dict[str, Any]:
        """See Shape."""
        if not isinstance(value, dict):
            raise invalid(path, value, "an object")
        kept: dict[str, Any] = {}
        for name, item in value.items():
            known = self.names.get(name)
            if known is not None:
                where = f"{path}.{name}"
                kept[name] = None if item is None else known.read(item, where, refuse)
            elif item is not None and item not in ([], {}):
                refuse(f"{path}.{name[:SHOWN_CHARS]}")
                kept[name] = item
        return kept


@dataclass(frozen=True, slots=True)
class Kinds:
    """An object whose `type` says which fields it has.

    what: what it is, in words. usual: its type where it has none.
    """

    what: str
    kinds: Mapping[str, Fields]
    usual: str | None = None

    def read(self, value: Any, path: str, refuse: Refuse) -> dict[str, Any]:
        """See Shape."""
        if not isinstance(value, dict):
            raise invalid(path, value, "an object")
        kind = self.usual if value.get("type") is None else value["type"]
        fields = self.kinds.get(kind) if isinstance(kind, str) else None
        if fields is None:
            shown = "without a type" if kind is None else f"of type {kind!r:.{SHOWN_CHARS}}"
            listed = ", ".join(sorted(self.kinds))
            raise UnsupportedParameter(
                f"{path} is {self.what} {shown}, which is not supported",
                field=path,
                fix=f"send {self.what} of one of these types: {listed}",
            )
        return fields.read(value, path, refuse)


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    of: Shape

    def read(self, value: Any, path: str, refuse: Refuse) -> list[Any]:
        """See Shape."""
        if not isinstance(value, list):
            raise invalid(path, value, "a list")
        return [self.of.read(item, f"{path}.{n}", refuse) for n, item in enumerate(value)]


@dataclass(frozen=True, slots=True)
class Either:
    """A text, or an object or a list. wanted: what it must be, in words."""

    text: Shape
    other: Shape
    wanted: str

    def read(self, value: Any, path: str, refuse: Refuse) -> Any:
        """See Shape."""
        if isinstance(value, str):
            return self.text.read(value, path, refuse)
        if not isinstance(value, list if isinstance(self.other, Items) else dict):
            raise invalid(path, value, self.wanted)
        return self.other.read(value, path, refuse)


# ASCII: with re.IGNORECASE alone, [a-z] also matches the Kelvin sign.
_ANY_CASE = re.IGNORECASE | re.ASCII
_DATA = re.compile(r"data:image/(?:jpe?g|png|gif|webp);base64,", _ANY_CASE)
_WEB = re.compile(r"https?://([^/?#]*)(?:[/?#]|\Z)", _ANY_CASE)
# Parsers differ in what they make of these.
_NOT_IN_URL = re.compile(r"[\s\\\x00-\x1f\x7f]")
_LONGEST_URL = 8192
_PORT = re.compile(
    r"(?::(?:[0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?\Z"
)
_HOST = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.){1,30}[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?\.?",
    _ANY_CASE,
)
_LONGEST_HOST = 253
_INTERNAL = frozenset({
    "arpa", "consul", "corp", "default", "home", "internal", "intranet", "invalid", "lan", "local",
    "localdomain", "localhost", "onion", "private", "svc", "test",
})  # fmt: skip
"""Last labels of names inside a network, of a cluster and of a cloud's metadata server."""


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """The address of an image in the public web, or the image itself.

    The provider's server fetches it: one of your own does so from inside the network.
    """

    def read(self, value: Any, path: str, refuse: Refuse) -> Any:
        """See Shape."""
        if not isinstance(value, str):
            raise invalid(path, value, "a string")
        if _DATA.match(value):
            return value
        found = _WEB.match(value) if len(value) <= _LONGEST_URL else None
        if found is None or _NOT_IN_URL.search(value):
            raise _not_fetched(
                path,
                f"is neither a data URL of an image nor a URL of up to {_LONGEST_URL} characters",
            )
        host = _PORT.sub("", found[1][: 2 * _LONGEST_HOST])
        if len(host) > _LONGEST_HOST or not _HOST.fullmatch(host):
            raise _not_fetched(path, f"names the host {host[:SHOWN_CHARS]!r}, not a domain name")
        if host.rstrip(".").rpartition(".")[2].lower() in _INTERNAL:
            raise _not_fetched(
                path, f"names the host {host[:SHOWN_CHARS]!r} of an internal network"
            )
        return value


def _not_fetched(path: str, what: str) -> InvalidRequest:
    return InvalidRequest(
        f"{path} {what}",
        field=path,
        fix="send https://HOST/... with a public domain name, or the image itself as "
        "data:image/png;base64,... (JPEG, PNG, GIF or WebP)",
    )


IMAGE_URL = ImageUrl()


def one_of(*values: str) -> Leaf:
    """Return the shape of a text that is one of these."""
    known = frozenset(values)
    return Leaf(
        lambda value: isinstance(value, str) and value in known,
        "one of " + ", ".join(values),
        known,
    )


MAX_METADATA = 16
_METADATA_KEY, _METADATA_VALUE = 64, 512


def _is_metadata(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= MAX_METADATA
        and all(
            len(key) <= _METADATA_KEY and isinstance(text, str) and len(text) <= _METADATA_VALUE
            for key, text in value.items()
        )
    )


ANY = Leaf(lambda _: True, "a value")
TEXT = Leaf(lambda value: isinstance(value, str), "a string")
FLAG = Leaf(lambda value: isinstance(value, bool), "true or false")
WHOLE = Leaf(lambda value: type(value) is int, "a whole number")
OBJECT = Leaf(lambda value: isinstance(value, dict), "an object")
"""Its fields are free: a JSON Schema. Every byte of it counts in the worst case."""

METADATA = Leaf(
    _is_metadata,
    f"an object of at most {MAX_METADATA} strings of up to {_METADATA_VALUE} characters, with keys "
    f"of up to {_METADATA_KEY}",
)
_CACHE_CONTROL = Fields({"type": one_of("ephemeral"), "ttl": one_of("5m", "1h")})
"""Priced: the worst case counts all input in its dearest class, writes for an hour included."""

_NAMED = Fields({"name": TEXT})
_TEXT_PART = Fields({"type": TEXT, "text": TEXT, "cache_control": _CACHE_CONTROL})
_CONTENT = Either(
    TEXT,
    Items(
        Kinds(
            "a part",
            {
                "image_url": Fields(
                    {
                        "type": TEXT,
                        # `original` costs more than the worst case counts for an image.
                        "image_url": Either(
                            IMAGE_URL,
                            Fields({"url": IMAGE_URL, "detail": one_of("auto", "low", "high")}),
                            "an object with url",
                        ),
                        "cache_control": _CACHE_CONTROL,
                    }
                ),
                "refusal": Fields({"type": TEXT, "refusal": TEXT, "cache_control": _CACHE_CONTROL}),
                "text": _TEXT_PART,
            },
        )
    ),
    "a string or a list of parts",
)
_ANSWERED: Mapping[str, Shape] = {
    "reasoning": TEXT,
    "reasoning_content": TEXT,
    "annotations": Items(
        Kinds(
            "an annotation",
            {
                "url_citation": Fields(
                    {
                        "type": TEXT,
                        "url_citation": Fields(
                            {"start_index": WHOLE, "end_index": WHOLE, "title": TEXT, "url": TEXT}
                        ),
                    }
                )
            },
        )
    ),
}
"""Fields of answers that are no fields of OpenAI's requests. Clients send a whole answer back."""

_ANSWERED_CALL: Mapping[str, Shape] = {
    "index": WHOLE,
    # Gemini refuses a conversation without them.
    "extra_content": Fields({"google": Fields({"thought_signature": TEXT})}),
}
_CALLED = Fields({"name": TEXT, "arguments": TEXT})
_MESSAGE = Fields(
    {
        "role": TEXT,
        "content": _CONTENT,
        "name": TEXT,
        "refusal": TEXT,
        "function_call": _CALLED,
        "tool_call_id": TEXT,
        "tool_calls": Items(
            Kinds(
                "a call",
                {
                    "custom": Fields(
                        {
                            "id": TEXT,
                            "type": TEXT,
                            "custom": Fields({"name": TEXT, "input": TEXT}),
                            **_ANSWERED_CALL,
                        }
                    ),
                    "function": Fields(
                        {"id": TEXT, "type": TEXT, "function": _CALLED, **_ANSWERED_CALL}
                    ),
                },
                usual="function",
            )
        ),
        "cache_control": _CACHE_CONTROL,
        **_ANSWERED,
    }
)
_TOOLS = Items(
    Kinds(
        "a tool",
        {
            "custom": Fields(
                {
                    "type": TEXT,
                    "custom": Fields(
                        {
                            "name": TEXT,
                            "description": TEXT,
                            "format": Kinds(
                                "a format",
                                {
                                    "grammar": Fields(
                                        {
                                            "type": TEXT,
                                            "grammar": Fields(
                                                {
                                                    "definition": TEXT,
                                                    "syntax": one_of("lark", "regex"),
                                                }
                                            ),
                                        }
                                    ),
                                    "text": Fields({"type": TEXT}),
                                },
                            ),
                        }
                    ),
                    "cache_control": _CACHE_CONTROL,
                }
            ),
            "function": Fields(
                {
                    "type": TEXT,
                    "function": Fields(
                        {"name": TEXT, "description": TEXT, "parameters": OBJECT, "strict": FLAG}
                    ),
                    "cache_control": _CACHE_CONTROL,
                }
            ),
        },
    )
)
_CHOSEN = {
    "custom": Fields({"type": TEXT, "custom": _NAMED}),
    "function": Fields({"type": TEXT, "function": _NAMED}),
}
FUNCTION_CALL = Either(one_of("none", "auto"), _NAMED, "none, auto or an object with name")
TOOL_CHOICE = Either(
    one_of("none", "auto", "required"),
    Kinds(
        "a choice",
        {
            "allowed_tools": Fields(
                {
                    "type": TEXT,
                    "allowed_tools": Fields(
                        {
                            "mode": one_of("auto", "required"),
                            "tools": Items(Kinds("a tool", _CHOSEN)),
                        }
                    ),
                }
            ),
            **_CHOSEN,
        },
    ),
    "none, auto, required or an object that names a tool",
)
PREDICTION = Fields(
    {
        "type": one_of("content"),
        "content": Either(
            TEXT,
            Items(Kinds("a part", {"text": Fields({"type": TEXT, "text": TEXT})})),
            "a string or a list of texts",
        ),
    }
)
RESPONSE_FORMAT = Kinds(
    "a format",
    {
        "json_object": Fields({"type": TEXT}),
        "json_schema": Fields(
            {
                "type": TEXT,
                "json_schema": Fields(
                    {"name": TEXT, "description": TEXT, "schema": OBJECT, "strict": FLAG}
                ),
            }
        ),
        "text": Fields({"type": TEXT}),
    },
)
REASONING_EFFORT = one_of("none", "minimal", "low", "medium", "high", "xhigh", "max")
VERBOSITY = one_of("low", "medium", "high")
SERVICE_TIER = one_of("auto", "default", "flex", "scale", "priority", "fast")
CACHE_RETENTION = one_of("in_memory", "in-memory", "24h")
"""`in-memory` is what OpenAI's older SDKs send."""

STREAM_OPTIONS = Fields({"include_usage": FLAG, "include_obfuscation": FLAG})
"""Not passed on: every stream is asked for its usage."""

_RANGED = (
    "frequency_penalty", "logit_bias", "logprobs", "max_completion_tokens", "max_tokens", "min_p",
    "n", "parallel_tool_calls", "presence_penalty", "repetition_penalty", "seed", "stop", "store",
    "temperature", "top_k", "top_logprobs", "top_p",
)  # fmt: skip
"""Numbers, truth values and lists of texts; serving/pipeline/fields.py checks their ranges."""

PASSED_FIELDS: Mapping[str, Shape] = {
    **dict.fromkeys(_RANGED, ANY),
    "function_call": FUNCTION_CALL,
    "functions": Items(Fields({"name": TEXT, "description": TEXT, "parameters": OBJECT})),
    "messages": Items(_MESSAGE),
    "metadata": METADATA,
    "prediction": PREDICTION,
    "prompt_cache_key": TEXT,
    "prompt_cache_retention": CACHE_RETENTION,
    "reasoning_effort": REASONING_EFFORT,
    "response_format": RESPONSE_FORMAT,
    "safety_identifier": TEXT,
    "service_tier": SERVICE_TIER,
    "tool_choice": TOOL_CHOICE,
    "tools": _TOOLS,
    "user": TEXT,
    "verbosity": VERBOSITY,
}
"""The fields of OpenAI's chat requests that every provider may be sent."""
