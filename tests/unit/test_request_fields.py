"""Fields inside a chat request: which reach a provider, and those of the vendors' SDKs."""

import copy
from collections.abc import Iterator
from contextlib import suppress
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest
import typing_extensions
from anthropic.types import CacheControlEphemeralParam
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessage, completion_create_params

from serving.contracts.chat_fields import (
    PASSED_FIELDS,
    STREAM_OPTIONS,
    Either,
    Fields,
    Items,
    Kinds,
    Leaf,
    Shape,
)
from serving.contracts.errors import InvalidRequest
from serving.contracts.task_spec import TaskSpec
from serving.frontier.bounds import token_limits
from serving.frontier.request_fields import passed_fields

from ..provider.server import ProviderServer
from .chat_kit import CHAT, chat_body
from .frontier_kit import ANTHROPIC, OPENAI, frontier, settings
from .scripted import Server, assert_error

TARGET = pytest.mark.parametrize("target", [OPENAI, ANTHROPIC])
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
PNG = "data:image/png;base64,iVBORw0KGgo="


def user(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hello.", **fields}]}


def part(kind: str = "text", **fields: Any) -> dict[str, Any]:
    given = {"text": {"text": "Hello."}, "image_url": {"image_url": {"url": PNG}}}[kind]
    return {"messages": [{"role": "user", "content": [{"type": kind, **given, **fields}]}]}


def called(**fields: Any) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": None, "tool_calls": [{**CALL, **fields}]},
        {"role": "tool", "tool_call_id": "a", "content": "x"},
    ]
    return {"messages": turns}


def answered(**fields: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hm.", **fields}]
    return {"messages": [*turns, {"role": "user", "content": "Hello."}]}


def schema(**fields: Any) -> dict[str, Any]:
    described = {"name": "a", "schema": {"type": "object"}, **fields}
    return {"response_format": {"type": "json_schema", "json_schema": described}}


async def sent(
    specs: dict[str, TaskSpec],
    provider: ProviderServer,
    fields: dict[str, Any],
    target: str = OPENAI,
    **configured: Any,
) -> Any:
    """Return the response to a chat over HTTP."""
    async with frontier(settings(provider, configured)) as stack:
        server = await Server(specs, frontier=stack).ready()
        return await server.post(CHAT, json={**chat_body(target, "Hello."), **fields})


UNKNOWN: list[tuple[dict[str, Any], str]] = [
    (user(provider={"order": ["x"]}), "messages.0.provider"),
    (user(plugins=[{"id": "web"}]), "messages.0.plugins"),
    (user(prefix=True), "messages.0.prefix"),
    (part(x={"type": "web_search"}), "messages.0.content.0.x"),
    (part(cache_control={"type": "ephemeral", "scope": "all"}),
     "messages.0.content.0.cache_control.scope"),
    (part(prompt_cache_breakpoint={"mode": "explicit", "ttl": "12h"}),
     "messages.0.content.0.prompt_cache_breakpoint"),
    (part("image_url", fetch=True), "messages.0.content.0.fetch"),
    (part("image_url", image_url={"url": PNG, "plugins": 1}),
     "messages.0.content.0.image_url.plugins"),
    (called(web_search={"max_uses": 9}), "messages.1.tool_calls.0.web_search"),
    (called(function={"name": "f", "arguments": "{}", "server": "x"}),
     "messages.1.tool_calls.0.function.server"),
    (called(extra_content={"google": {"search": True}}),
     "messages.1.tool_calls.0.extra_content.google.search"),
    ({"tools": [{**TOOL, "server": "x"}]}, "tools.0.server"),
    ({"tools": [{"type": "function", "function": {"name": "f", "type": "web_search_20250305"}}]},
     "tools.0.function.type"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f", "x": 1}}},
     "tool_choice.function.x"),
    ({"functions": [{"name": "f", "server": "x"}]}, "functions.0.server"),
    ({"functions": [{"name": "f"}], "function_call": {"name": "f", "x": 1}}, "function_call.x"),
    ({"prediction": {"type": "content", "content": "x", "plugins": 1}}, "prediction.plugins"),
    ({"response_format": {"type": "json_object", "x": 1}}, "response_format.x"),
    (schema(plugins=1), "response_format.json_schema.plugins"),
    ({"stream": True, "stream_options": {"include_usage": True, "x": 1}}, "stream_options.x"),
    ({"x": 1}, "x"),
]  # fmt: skip


@TARGET
@pytest.mark.parametrize(("fields", "param"), UNKNOWN, ids=[param for _, param in UNKNOWN])
async def test_an_unknown_field_at_any_level_reaches_no_provider(
    specs: dict[str, TaskSpec],
    provider: ProviderServer,
    target: str,
    fields: dict[str, Any],
    param: str,
) -> None:
    error = assert_error(await sent(specs, provider, fields, target), 400, "unsupported_parameter")
    assert error["param"] == param
    assert param in error["message"]
    assert error["fix"].startswith("leave it out")
    assert provider.script.seen == []


KINDS: list[tuple[dict[str, Any], str]] = [
    (called(type="web_search"), "messages.1.tool_calls.0"),
    ({"tools": [{"type": "web_search"}]}, "tools.0"),
    ({"tools": [{"type": "function", "name": "web_search_20250305"}]}, "tools.0.function"),
    ({"tools": [TOOL], "tool_choice": {"type": "web_search_preview"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"a": 1}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {
        "mode": "auto", "tools": [{"type": "mcp", "server_label": "x"}]}}},
     "tool_choice.allowed_tools.tools.0"),
    ({"tools": [{"type": "custom", "custom": {"name": "f", "format": {"type": "x"}}}]},
     "tools.0.custom.format"),
    ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]},
     "messages.0.content.0"),
]  # fmt: skip


@TARGET
@pytest.mark.parametrize(("fields", "param"), KINDS, ids=[param for _, param in KINDS])
async def test_a_type_that_is_not_listed_reaches_no_provider(
    specs: dict[str, TaskSpec],
    provider: ProviderServer,
    target: str,
    fields: dict[str, Any],
    param: str,
) -> None:
    response = await sent(specs, provider, fields, target)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param
    assert response.json()["error"]["fix"]
    assert provider.script.seen == []


VALUES: list[tuple[dict[str, Any], str]] = [
    (user(name={"x": 1}), "messages.0.name"),
    (part(cache_control={"type": "ephemeral", "ttl": "24h"}),
     "messages.0.content.0.cache_control.ttl"),
    (part(cache_control="yes"), "messages.0.content.0.cache_control"),
    (part("image_url", image_url={"url": PNG, "detail": "original"}),
     "messages.0.content.0.image_url.detail"),
    (answered(reasoning_content={"plugins": []}), "messages.1.reasoning_content"),
    (answered(tool_calls=[CALL], function_call="x"), "messages.1.function_call"),
    (called(id={"x": 1}), "messages.1.tool_calls.0.id"),
    ({"tools": [{**TOOL, "function": {"name": "f", "strict": "yes"}}]}, "tools.0.function.strict"),
    ({"tools": [{**TOOL, "function": {"name": "f", "description": {"x": 1}}}]},
     "tools.0.function.description"),
    ({"metadata": {"a": {"b": ["c"] * 100}}}, "metadata"),
    ({"metadata": {"a": 1}}, "metadata"),
    ({"metadata": {f"{n}": "x" for n in range(17)}}, "metadata"),
    ({"metadata": {"a": "x" * 513}}, "metadata"),
    ({"metadata": {"a" * 65: "x"}}, "metadata"),
]  # fmt: skip


@TARGET
@pytest.mark.parametrize(("fields", "param"), VALUES, ids=[param for _, param in VALUES])
async def test_a_value_of_another_kind_inside_a_field_reaches_no_provider(
    specs: dict[str, TaskSpec],
    provider: ProviderServer,
    target: str,
    fields: dict[str, Any],
    param: str,
) -> None:
    error = assert_error(await sent(specs, provider, fields, target), 400, "invalid_request")
    assert error["param"] == param
    assert "must be" in error["message"]
    assert error["fix"].startswith("send ")
    assert provider.script.seen == []


NOT_FETCHED = [
    "file:///etc/passwd", "ftp://example.org/a.png", "gopher://example.org/", "a.png", "",
    "data:,x",
    "data:text/html;base64,eA==", "data:image/svg+xml;base64,eA==", "//example.org/a.png",
    "http://169.254.169.254/latest", "https://169.254.169.254/", "http://127.0.0.1/a.png",
    "http://2852039166/", "http://0xA9FEA9FE/", "http://0251.0376.0251.0376/", "http://127.1/",
    "http://[::1]/", "http://[::ffff:169.254.169.254]/", "http://8.8.8.8/a.png",
    "http://localhost/", "http://LOCALHOST:8000/", "http://a.localhost/", "http://printer.local/",
    "http://metadata.google.internal/", "http://metadata/", "http://redis.default/",
    "http://api.ns.svc/", "http://api.ns.svc.cluster.local./", "http://user@example.org/",
    "http://example.org@169.254.169.254/", "http://example.org\\@169.254.169.254/",
    "http://exam ple.org/", "http://example.org/\n", "http://example.org:x/", "http:///a.png",
    "http://example.org:80:80/", "http://-a.example.org/", "http://example..org/",
    "http://db.service.consul/", "http://a.test/", "http://a.onion/", "http://example.org:65536/",
    "http://example.org:99999/", "http://e\u212aample.org/", "http://\uff11\uff12\uff17.0.0.1/",
    "https://example.org/" + "x" * 9000,
]  # fmt: skip


@TARGET
async def test_an_image_is_fetched_from_the_public_web_only(
    specs: dict[str, TaskSpec], provider: ProviderServer, target: str
) -> None:
    async with frontier(settings(provider)) as stack:
        server = await Server(specs, frontier=stack).ready()
        for url in NOT_FETCHED:
            for image, place in (({"url": url}, "image_url.url"), (url, "image_url")):
                body = {"model": target, **part("image_url", image_url=image)}
                response = await server.post(CHAT, json=body)
                error = assert_error(response, 400, "invalid_request")
                assert error["param"] == f"messages.0.content.0.{place}", url
                assert "data:image/png" in error["fix"]
                assert len(error["message"]) < 300
    assert provider.script.seen == []


@pytest.mark.parametrize(
    "url",
    ["https://example.org/a.png?size=1#x", "HTTPS://Example.ORG:8443/\u00e9.png",
     "http://a-b.c1.example.co.uk/", "https://xn--bcher-kva.example", PNG],
)  # fmt: skip
async def test_an_image_of_the_public_web_is_passed_on(
    specs: dict[str, TaskSpec], provider: ProviderServer, url: str
) -> None:
    fields = part("image_url", image_url={"url": url, "detail": "low"})
    assert (await sent(specs, provider, fields)).status_code == 200
    assert provider.script.seen[0].body["messages"][-1:] == fields["messages"]


EVERYTHING: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": [{"type": "text", "text": "Be kind.",
                                        "cache_control": {"type": "ephemeral", "ttl": "1h"}}]},
        {"role": "user", "name": "ann", "content": [
            {"type": "text", "text": "Hello."},
            {"type": "image_url", "image_url": {"url": PNG, "detail": "high"}}]},
        {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [
            {**CALL, "index": 0, "extra_content": {"google": {"thought_signature": "eA=="}}},
            {"id": "b", "type": "custom", "custom": {"name": "g", "input": "x"}}]},
        {"role": "tool", "tool_call_id": "a", "name": "f", "content": "x"},
        {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "x"}],
         "cache_control": {"type": "ephemeral"}},
        {"role": "assistant", "content": "Yes.", "reasoning": "Hm.", "annotations": [
            {"type": "url_citation", "url_citation": {
                "start_index": 0, "end_index": 1, "title": "t", "url": "https://example.org"}}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "user", "content": "And?"},
    ],
    "tools": [
        {**TOOL, "cache_control": {"type": "ephemeral"}},
        {"type": "custom", "custom": {"name": "g", "description": "d", "format": {
            "type": "grammar", "grammar": {"definition": "x", "syntax": "lark"}}}},
    ],
    "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [
        {"type": "function", "function": {"name": "f"}}]}},
    "prediction": {"type": "content", "content": [{"type": "text", "text": "x"}]},
    "response_format": {"type": "json_schema", "json_schema": {
        "name": "a", "description": "d", "strict": True,
        "schema": {"type": "object", "properties": {"server": {"type": "string"}}}}},
    "metadata": {"a" * 64: "x" * 512},
    "reasoning_effort": "high", "verbosity": "low", "service_tier": "flex",
    "prompt_cache_retention": "24h", "prompt_cache_key": "k", "safety_identifier": "s",
}  # fmt: skip


async def test_every_listed_field_is_passed_on_as_it_was_sent(
    specs: dict[str, TaskSpec], provider: ProviderServer
) -> None:
    response = await sent(specs, provider, EVERYTHING)
    assert response.status_code == 200, response.text
    (seen,) = provider.script.seen
    for name, value in EVERYTHING.items():
        assert seen.body[name] == value, name


async def test_an_empty_field_inside_is_absent(
    specs: dict[str, TaskSpec], provider: ProviderServer
) -> None:
    nothing = {"anything": [], "audio": None, "function_call": None, "anything_new": {}}
    response = await sent(specs, provider, answered(**nothing, refusal=None))
    assert response.status_code == 200, response.text
    told = provider.script.seen[0].body["messages"][-2]
    assert {name: value for name, value in told.items() if value is not None} == {
        "role": "assistant", "content": "Hm.",
    }  # fmt: skip


async def test_a_provider_may_allow_a_field_inside_by_its_path(
    specs: dict[str, TaskSpec], provider: ProviderServer
) -> None:
    fields = {**answered(prefix=True), "tools": [{**TOOL, "server": {"a": [1]}}]}
    allowed = ("messages.prefix", "tools.server")
    for extra in (allowed[:1], allowed[1:], ("prefix", "server"), ("messages", "tools")):
        response = await sent(specs, provider, fields, extra_fields=extra)
        error = assert_error(response, 400, "unsupported_parameter")
        assert any(f"{path!r}" in error["fix"] for path in allowed)
    assert provider.script.seen == []
    response = await sent(specs, provider, fields, extra_fields=allowed)
    assert response.status_code == 200, response.text
    seen = provider.script.seen[0].body
    assert (seen["messages"], seen["tools"]) == (fields["messages"], fields["tools"])


# The vendors' SDKs. A field or value that a new version brings fails here, and is then listed in
# serving/contracts/chat_fields.py if the worst case covers it, or below.

REFUSED_FIELDS = {
    # Their cost has no bound, or no price in the price list.
    "audio", "moderation", "moderation.model", "moderation.policy", "moderation.policy.input",
    "moderation.policy.input.mode", "moderation.policy.output", "moderation.policy.output.mode",
    "web_search_options", "web_search_options.search_context_size",
    "web_search_options.user_location", "web_search_options.user_location.type",
    "web_search_options.user_location.approximate",
    *(f"web_search_options.user_location.approximate.{name}"
      for name in ("city", "country", "region", "timezone")),
    "audio.format", "audio.voice", "audio.voice.id", "messages.audio", "messages.audio.id",
    "messages.content.input_audio", "messages.content.input_audio.data",
    "messages.content.input_audio.format", "messages.content.file",
    *(f"messages.content.file.{name}" for name in ("file_data", "file_id", "filename")),
    "prompt_cache_options", "prompt_cache_options.mode", "prompt_cache_options.ttl",
    *(f"{place}.prompt_cache_breakpoint{name}" for name in ("", ".mode", ".ttl")
      for place in ("messages.content", "prediction.content")),
    # Set by the server; modalities: text alone is the default.
    "model", "modalities",
}  # fmt: skip
OUR_FIELDS = {
    # Samplers of vLLM and others.
    "min_p", "repetition_penalty", "top_k",
    # Anthropic's, in OpenAI's format as OpenRouter has it.
    *(f"{place}.cache_control{name}" for name in ("", ".type", ".ttl")
      for place in ("messages", "messages.content", "tools")),
    # Of answers; see _ANSWERED.
    "messages.reasoning", "messages.reasoning_content", "messages.annotations",
    "messages.annotations.type", "messages.annotations.url_citation",
    *(f"messages.annotations.url_citation.{name}"
      for name in ("start_index", "end_index", "title", "url")),
    "messages.tool_calls.index", "messages.tool_calls.extra_content",
    "messages.tool_calls.extra_content.google",
    "messages.tool_calls.extra_content.google.thought_signature",
    # A free object in the SDK.
    *(f"tool_choice.allowed_tools.tools.{name}"
      for name in ("type", "function", "function.name", "custom", "custom.name")),
}  # fmt: skip
REFUSED_VALUES = {
    "messages.content.type": {"input_audio", "file"},
    "messages.content.image_url.detail": {"original"},
}
OUR_VALUES = {"prompt_cache_retention": {"in-memory"}}


def walked(hint: Any, path: str = "") -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the path of each field in a type of an SDK, and the texts that it may be."""
    origin = get_origin(hint)
    if typing_extensions.is_typeddict(hint):
        for name, inner in get_type_hints(hint).items():
            where = f"{path}.{name}" if path else name
            yield where, frozenset(literals(inner))
            yield from walked(inner, where)
    elif origin is not Literal:
        for inner in get_args(hint):
            yield from walked(inner, path)


def literals(hint: Any) -> Iterator[str]:
    """Yield the texts of a type that are listed, not those of a text of any kind."""
    origin = get_origin(hint)
    if origin is Literal:
        yield from get_args(hint)
    elif origin in (Union, UnionType, Annotated, typing_extensions.Required):
        inner = [kind for kind in get_args(hint) if kind is not str]
        if len(inner) == len(get_args(hint)):
            for kind in inner:
                yield from literals(kind)


def listed(shape: Shape, path: str) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield the path of each field that is listed, and the texts that it may be."""
    match shape:
        case Fields():
            for name, inner in shape.names.items():
                where = f"{path}.{name}" if path else name
                yield where, values_of(inner)
                yield from listed(inner, where)
        case Kinds():
            yield f"{path}.type", frozenset(shape.kinds)
            for kind in shape.kinds.values():
                yield from listed(kind, path)
        case Items():
            yield from listed(shape.of, path)
        case Either():
            yield from listed(shape.other, path)


def values_of(shape: Shape) -> frozenset[str]:
    leaf = shape.text if isinstance(shape, Either) else shape
    return leaf.values if isinstance(leaf, Leaf) else frozenset()


def merged(found: Iterator[tuple[str, frozenset[str]]]) -> dict[str, set[str]]:
    known: dict[str, set[str]] = {}
    for path, values in found:
        known.setdefault(path, set()).update(values)
    return known


SDK = merged(walked(completion_create_params.CompletionCreateParamsStreaming))
SET_HERE = {"stream": Leaf(lambda _: True, "a value"), "stream_options": STREAM_OPTIONS}
OURS = merged(listed(Fields({**PASSED_FIELDS, **SET_HERE}), ""))


def test_every_field_of_openais_sdk_is_listed_or_refused() -> None:
    assert set(SDK) - set(OURS) == REFUSED_FIELDS
    assert set(OURS) - set(SDK) == OUR_FIELDS
    assert "messages.tool_calls.function.arguments" in set(SDK) & set(OURS)


def test_every_value_of_openais_sdk_is_listed_or_refused() -> None:
    compared = 0
    for path, values in OURS.items():
        if path not in SDK or not values:
            continue
        compared += 1
        assert SDK[path] - values == REFUSED_VALUES.get(path, set()), path
        assert values - SDK[path] == OUR_VALUES.get(path, set()), path
    assert compared > 12


def test_what_clients_send_back_of_an_answer_is_listed() -> None:
    """The SDK's message of an answer may be a message of the next request."""
    message = set(ChatCompletionMessage.model_fields) - {"audio"}
    assert message <= {path.removeprefix("messages.") for path in OURS}


def test_anthropics_breakpoints_are_those_of_its_sdk() -> None:
    known = merged(walked(CacheControlEphemeralParam))
    assert known == {
        path.removeprefix("tools.cache_control."): values
        for path, values in OURS.items()
        if path.startswith("tools.cache_control.")
    }


JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["type", "plugins", "name", "server", "text", "url", "function", "x"]),
            inner,
            max_size=3,
        ),
    ),
    max_leaves=6,
)


def paths_of(value: Any, path: str = "") -> Iterator[str]:
    """Yield the path of each field in a body, without the places in lists."""
    if isinstance(value, dict):
        for name, inner in value.items():
            where = f"{path}.{name}" if path else name
            yield where
            if where not in FREE:
                yield from paths_of(inner, where)
    elif isinstance(value, list):
        for inner in value:
            yield from paths_of(inner, path)


FREE = {
    "tools.function.parameters", "response_format.json_schema.schema", "functions.parameters",
    "metadata", "logit_bias",
}  # fmt: skip
"""Objects whose keys are the client's own."""


def places(value: Any) -> list[Any]:
    """Return every object in a body."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [*([value] if isinstance(value, dict) else []), *(p for i in items for p in places(i))]


@given(st.data())
def test_whatever_is_added_anywhere_nothing_unlisted_is_passed_on(data: st.DataObject) -> None:
    body = copy.deepcopy(EVERYTHING)
    place = data.draw(st.sampled_from(range(len(places(body)))))
    name = data.draw(
        st.sampled_from(["type", "plugins", "content", "text", "x", "function", "ttl"])
    )
    places(body)[place][name] = data.draw(JUNK)
    with suppress(InvalidRequest):
        assert set(paths_of(passed_fields(body))) <= set(OURS)


def test_every_field_that_may_hold_text_counts_in_the_worst_case() -> None:
    before = token_limits({**EVERYTHING, "max_tokens": 1})
    long = "x" * 10_000
    for name in ("messages", "tools", "tool_choice", "prediction", "response_format"):
        body = copy.deepcopy({**EVERYTHING, "max_tokens": 1})
        texts = 0
        for place in places(body[name]):
            for key, value in place.items():
                if isinstance(value, str) and value != PNG and key != "detail":
                    place[key], texts = long, texts + 1
        after = token_limits(body)
        counted = after.input_tokens + after.output_tokens
        least = before.input_tokens + before.output_tokens + texts * (len(long) - 1000)
        assert texts > 2
        assert counted >= least, name
