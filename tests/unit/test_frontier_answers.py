"""The frontier's answers through the providers' own SDKs: whole, streamed, with tools, formats."""

import json
from typing import Any

import openai
import pytest

from serving.contracts.answer import Usage
from serving.contracts.errors import (
    FrontierNotConfigured,
    FrontierRejected,
    InvalidRequest,
    MaxCostExceeded,
    UnpricedModel,
)
from serving.contracts.frontier import OutputBounds
from serving.contracts.frontier_settings import PromptCacheSettings
from serving.contracts.openai import openai_usage, usage_from_openai
from serving.frontier import openai_api

from ..provider.script import Reply, ToolCall
from ..provider.server import ProviderServer
from .frontier_kit import (
    ANTHROPIC,
    ENVIRON,
    KEY,
    OPENAI,
    OTHER,
    Recorder,
    call,
    frontier,
    settings,
)

BOTH = pytest.mark.parametrize("target", [OPENAI, ANTHROPIC])
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather somewhere",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "enum": ["Oslo"]}},
            "required": ["place"],
        },
    },
}


async def chunks_of(stream: Any) -> list[dict[str, Any]]:
    return [chunk async for chunk in stream.events]


def text_of(chunks: list[dict[str, Any]]) -> str:
    return "".join(c["delta"].get("content") or "" for chunk in chunks for c in chunk["choices"])


@BOTH
async def test_a_whole_answer(provider: ProviderServer, target: str) -> None:
    provider.script.answer = lambda _: Reply("Short words.", reasoning_tokens=5)
    events = Recorder()
    async with frontier(settings(provider), events) as stack:
        done = await stack.complete(call(target))
    assert done.text == "Short words."
    assert (done.model, done.body["model"]) == (target, target)
    assert done.body["id"]
    assert (done.usage.output_tokens, done.usage.reasoning_tokens) == (3, 5)
    assert usage_from_openai(done.body["usage"]) == done.usage
    openai.types.chat.ChatCompletion.model_validate(done.body)
    name, _, model = target.partition("/")
    assert events.calls == [(name, model, "ok")]
    assert provider.script.completed == 1


@BOTH
async def test_the_usage_of_a_whole_answer_is_in_our_shape_as_a_streams(
    provider: ProviderServer, target: str
) -> None:
    provider.script.answer = lambda _: Reply("Some words.", reasoning_tokens=5)
    async with frontier(settings(provider)) as stack:
        whole = await stack.complete(call(target))
        chunks = await chunks_of(await stack.stream(call(target)))
    assert whole.body["usage"] == chunks[-1]["usage"] == openai_usage(whole.usage)
    # The provider's own has fields that a stream's lacks, and the other way round.
    assert set(whole.body["usage"]["completion_tokens_details"]) == {"reasoning_tokens"}


@BOTH
async def test_a_streamed_answer_has_the_same_content(
    provider: ProviderServer, target: str
) -> None:
    provider.script.answer = lambda _: Reply("Some more words here.", reasoning_tokens=5)
    async with frontier(settings(provider)) as stack:
        whole = await stack.complete(call(target))
        stream = await stack.stream(call(target))
        assert stream.model == target
        chunks = await chunks_of(stream)
    assert text_of(chunks) == whole.text
    assert stream.usage == whole.usage
    assert usage_from_openai(chunks[-1]["usage"]) == whole.usage
    assert chunks[-1]["choices"] == []
    assert {chunk["model"] for chunk in chunks} == {target}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "stop"
    for chunk in chunks:
        openai.types.chat.ChatCompletionChunk.model_validate(chunk)


@BOTH
@pytest.mark.parametrize("finish", ["stop", "length", "content_filter"])
async def test_finish_reasons(provider: ProviderServer, target: str, finish: str) -> None:
    provider.script.answer = lambda _: Reply("word", finish=finish)
    async with frontier(settings(provider)) as stack:
        done = await stack.complete(call(target))
        chunks = await chunks_of(await stack.stream(call(target)))
    assert done.body["choices"][0]["finish_reason"] == finish
    assert chunks[-2]["choices"][0]["finish_reason"] == finish


@BOTH
async def test_parallel_tool_calls_whole_and_streamed(
    provider: ProviderServer, target: str
) -> None:
    made = (ToolCall("weather", {"place": "Oslo"}), ToolCall("weather", {"place": "Bergen"}))
    provider.script.answer = lambda _: Reply("", made, finish="tool_calls")
    request = call(target, body={"tools": [WEATHER], "tool_choice": "auto"})
    async with frontier(settings(provider)) as stack:
        done = await stack.complete(request)
        chunks = await chunks_of(await stack.stream(request))
    message = done.body["choices"][0]["message"]
    assert message["content"] is None
    found = [json.loads(c["function"]["arguments"]) for c in message["tool_calls"]]
    assert found == [call.arguments for call in made]
    assert done.body["choices"][0]["finish_reason"] == "tool_calls"
    streamed: dict[int, dict[str, str]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            for part in choice["delta"].get("tool_calls") or []:
                built = streamed.setdefault(part["index"], {"arguments": ""})
                built |= {n: part[n] for n in ("id",) if part.get(n)}
                built["arguments"] += part["function"].get("arguments") or ""
    assert [json.loads(s["arguments"]) for s in streamed.values()] == found
    assert sorted(streamed) == [0, 1]
    assert len({s["id"] for s in streamed.values()}) == 2


async def test_a_conversation_in_anthropics_words(provider: ProviderServer) -> None:
    pixel = "iVBORw0KGgo="
    history = [
        {"role": "system", "content": "Be kind."},
        {"role": "developer", "content": [{"type": "text", "text": "Be brief."}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Look:"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{pixel}"}},
                {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
            ],
        },
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {
                    "id": f"call_{place}",
                    "type": "function",
                    "function": {"name": "weather", "arguments": json.dumps({"place": place})},
                }
                for place in ("Oslo", "Bergen")
            ],
        },
        {"role": "tool", "tool_call_id": "call_Oslo", "content": "Sun"},
        {"role": "tool", "tool_call_id": "call_Bergen", "content": "Rain"},
        {"role": "user", "content": "And?"},
    ]
    body = {
        "messages": history,
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
        "stop": "END",
        "temperature": 0,
        "top_p": 0.5,
        "seed": 1,
        "user": "u-1",
        "reasoning_effort": "minimal",
    }
    async with frontier(settings(provider)) as stack:
        done = await stack.complete(call(ANTHROPIC, body=body))
    sent = provider.script.seen[0].body
    assert sent == {
        "model": "claude-sonnet-5-5",
        "max_tokens": 64,
        "system": [{"type": "text", "text": "Be kind."}, {"type": "text", "text": "Be brief."}],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Look:"},
                    {
                        "type": "image",
                        "source": {"type": "base64", "media_type": "image/png", "data": pixel},
                    },
                    {
                        "type": "image",
                        "source": {"type": "url", "url": "https://example.org/a.png"},
                    },
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "I look."},
                    {
                        "type": "tool_use",
                        "id": "call_Oslo",
                        "name": "weather",
                        "input": {"place": "Oslo"},
                    },
                    {
                        "type": "tool_use",
                        "id": "call_Bergen",
                        "name": "weather",
                        "input": {"place": "Bergen"},
                    },
                ],
            },
            {
                "role": "user",
                "content": [
                    {
                        "type": "tool_result",
                        "tool_use_id": "call_Oslo",
                        "content": [{"type": "text", "text": "Sun"}],
                    },
                    {
                        "type": "tool_result",
                        "tool_use_id": "call_Bergen",
                        "content": [{"type": "text", "text": "Rain"}],
                    },
                    {"type": "text", "text": "And?"},
                ],
            },
        ],
        "tools": [
            {
                "name": "weather",
                "description": "The weather somewhere",
                "input_schema": WEATHER["function"]["parameters"],  # type: ignore[index]
            }
        ],
        "tool_choice": {
            "type": "tool",
            "name": "weather",
            "disable_parallel_tool_use": True,
        },
        "stop_sequences": ["END"],
        "metadata": {"user_id": "u-1"},
        "output_config": {"effort": "low"},
    }
    (made,) = done.body["choices"][0]["message"]["tool_calls"]
    assert json.loads(made["function"]["arguments"]) == {"place": "Oslo"}


@BOTH
async def test_a_schema_is_followed(provider: ProviderServer, target: str) -> None:
    schema = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": ["positive", "negative"]}},
        "required": ["label"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "label", "schema": schema}}
    async with frontier(settings(provider)) as stack:
        done = await stack.complete(call(target, body={"response_format": form}))
    assert json.loads(done.text) == {"label": "positive"}


async def test_a_json_object_is_asked_for_in_words_at_anthropic(provider: ProviderServer) -> None:
    async with frontier(settings(provider)) as stack:
        await stack.complete(call(ANTHROPIC, body={"response_format": {"type": "json_object"}}))
    assert "JSON object" in provider.script.seen[0].body["system"][-1]["text"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"functions": [{"name": "old"}]}, "functions"),
        ({"tools": [{"type": "custom"}]}, "tools.0"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"x": 1}}}},
            "response_format.json_schema.schema",
        ),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages.0.content.0",
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": "ftp://x"}]}
                ]
            },
            "messages.0.content.0.image_url",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "["}}],
                    }
                ]
            },
            "messages.0.tool_calls.0.function.arguments",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": ["x"]}]}, "messages.0.tool_calls.0"),
    ],
)
async def test_fields_that_anthropic_cannot_express_are_refused_unsent(
    provider: ProviderServer, body: dict[str, Any], field: str
) -> None:
    async with frontier(settings(provider)) as stack:
        with pytest.raises((FrontierRejected, InvalidRequest)) as caught:
            await stack.complete(call(ANTHROPIC, OPENAI, body=body))
    assert caught.value.field == field
    assert provider.script.seen == []


async def test_a_message_is_named_by_its_place_in_the_clients_request(
    provider: ProviderServer,
) -> None:
    image = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,!"}}]
    directed = OutputBounds(64, directive="Be brief.")
    for leading in ([], [{"role": "system", "content": "Hi."}]):
        turns = [*leading, {"role": "user", "content": image}]
        async with frontier(settings(provider)) as stack:
            for ask in (stack.complete, stack.stream):
                with pytest.raises(FrontierRejected) as caught:
                    await ask(call(ANTHROPIC, body={"messages": turns}, bounds=directed))
                assert caught.value.field == f"messages.{len(leading)}.content.0.image_url"


@pytest.mark.parametrize(
    ("model", "thinking"),
    [
        ("claude-sonnet-5-5", {"type": "between_tools"}),
        ("claude-haiku-5-5", {"type": "disabled"}),
        ("claude-opus-5-5", None),
    ],
)
async def test_no_reasoning_is_asked_for_as_each_model_takes_it(
    provider: ProviderServer, model: str, thinking: dict[str, str] | None
) -> None:
    async with frontier(settings(provider)) as stack:
        await stack.complete(call(f"anthropic/{model}", body={"reasoning_effort": "none"}))
    sent = provider.script.seen[0].body
    assert sent["output_config"] == {"effort": "low"}
    assert sent.get("thinking") == thinking


async def test_bounds_without_thinking_reach_those_that_think_by_themselves(
    provider: ProviderServer,
) -> None:
    bounds = OutputBounds(64, thinking=False)
    async with frontier(settings(provider)) as stack:
        for target in (OPENAI, ANTHROPIC):
            await stack.complete(call(target, bounds=bounds))
        await stack.complete(call(ANTHROPIC, bounds=bounds, body={"reasoning_effort": "high"}))
    quiet, told, request = (seen.body for seen in provider.script.seen)
    assert "reasoning_effort" not in quiet
    assert told["output_config"] == {"effort": "low"}
    assert request["output_config"] == {"effort": "high"}


async def test_a_changing_prefix_is_told_without_its_text(
    provider: ProviderServer, caplog: pytest.LogCaptureFixture
) -> None:
    events = Recorder()
    static = "A private rule. " * 100
    async with frontier(settings(provider), events) as stack:
        for second in range(10, 16):
            text = f"Now: 12:00:{second}. {static}---CACHE_BREAK---ask"
            await stack.complete(
                call(OPENAI, body={"messages": [{"role": "user", "content": text}]})
            )
    assert len(events.unstable) == 4
    assert len(set(events.unstable)) == 1
    assert "frontier_prefix_unstable" in caplog.text
    assert "kind=timestamp" in caplog.text
    assert "12:00" not in caplog.text
    assert "private" not in caplog.text
    assert {label for label, _, _ in events.reads} == {"other"}


async def test_compatible_servers_get_the_body_nearly_unchanged(provider: ProviderServer) -> None:
    body = {
        "max_tokens": 500,
        "temperature": 0.5,
        "n": 2,
        "x_vendor": {"y": 1},
        "seed": None,
        "stream": False,
        "stream_options": {"include_usage": False},
        "model": "whatever",
    }
    async with frontier(settings(provider, {"extra_fields": ("x_vendor",)})) as stack:
        await stack.complete(call(OPENAI, body=body))
        await chunks_of(await stack.stream(call(OPENAI, body=body)))
    whole, stream = (seen.body for seen in provider.script.seen)
    message = {"role": "user", "content": "What is a narrow gate?"}
    expected = {
        "model": "gpt-4.1",
        "messages": [message],
        "max_tokens": 64,
        "temperature": 0.5,
        "n": 2,
        "x_vendor": {"y": 1},
    }
    assert whole == expected
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    assert stream == {**expected, **streamed}


@BOTH
@pytest.mark.usefixtures("provider_server")  # it has imported the SDKs
async def test_a_provider_gets_its_own_headers(
    keyless_provider: ProviderServer, target: str
) -> None:
    for own in ({}, {"headers": {"X-Team": "narrow"}, "key_header": "Subscription-Key"}):
        async with frontier(settings(keyless_provider, own)) as stack:
            await stack.complete(call(target))
            await chunks_of(await stack.stream(call(target)))
    named = ("authorization", "x-api-key", "subscription-key", "x-team")
    usual, usual_stream, own_whole, own_stream = (
        {name: seen.headers[name] for name in named if name in seen.headers}
        for seen in keyless_provider.script.seen
    )
    assert usual == usual_stream
    assert list(usual.values()) in ([KEY], [f"Bearer {KEY}"])
    assert own_whole == own_stream == {"x-team": "narrow", "subscription-key": KEY}


async def test_openai_itself_gets_its_newer_names(
    provider: ProviderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_api, "OPENAI_URL", f"{provider.url}/v1")
    config = settings(provider)
    own = config.providers["openai"].model_copy(update={"base_url": None})
    config = config.model_copy(update={"providers": {**config.providers, "openai": own}})
    long = "static " * 1000 + "---CACHE_BREAK---\nask"
    body = {"max_tokens": 10, "messages": [{"role": "user", "content": long}]}
    async with frontier(config) as stack:
        await stack.complete(call(OPENAI, body=body))
        await stack.complete(call(OPENAI, body={**body, "prompt_cache_key": "mine"}))
    first, second = (seen.body for seen in provider.script.seen)
    assert first["max_completion_tokens"] == 10
    assert "max_tokens" not in first
    assert first["prompt_cache_key"].startswith("narrowgate-")
    assert len(first["prompt_cache_key"]) <= 64
    assert second["prompt_cache_key"] == "mine"


async def test_the_key_goes_only_into_the_header(provider: ProviderServer) -> None:
    async with frontier(settings(provider)) as stack:
        for target in (OPENAI, ANTHROPIC):
            await stack.complete(call(target))
    for seen in provider.script.seen:
        assert KEY in seen.headers["authorization"]
        assert KEY not in seen.text


async def test_targets_without_a_key_are_left_out(provider: ProviderServer) -> None:
    environ = {"OTHER_API_KEY": KEY}
    async with frontier(settings(provider), environ=environ) as stack:
        assert stack.configured((ANTHROPIC, OTHER, OPENAI, "nobody/x")) == (OTHER,)
        done = await stack.complete(call(ANTHROPIC, OTHER))
        with pytest.raises(FrontierNotConfigured, match="anthropic/claude"):
            await stack.complete(call(ANTHROPIC))
    assert done.model == OTHER


async def test_a_keyless_provider_needs_no_key(provider: ProviderServer) -> None:
    async with frontier(settings(provider, {"keyless": True}), environ={}) as stack:
        assert stack.configured((OTHER, ANTHROPIC)) == (OTHER, ANTHROPIC)


async def test_targets_that_may_cost_too_much_are_omitted(provider: ProviderServer) -> None:
    from decimal import Decimal

    dear = call(OPENAI, ANTHROPIC, OTHER, max_cost_usd=Decimal("0.0007"))
    async with frontier(settings(provider)) as stack:
        # 64 tokens of output cost 0.000512 at OpenAI and 0.00064 at Anthropic, input aside.
        done = await stack.complete(dear)
        assert done.model == OPENAI
        with pytest.raises(MaxCostExceeded) as caught:
            await stack.complete(call(OTHER, ANTHROPIC, max_cost_usd=Decimal("0.0007")))
        with pytest.raises(MaxCostExceeded):
            await stack.complete(call(OPENAI, max_cost_usd=Decimal("0.0007"), body={"n": 2}))
    assert caught.value.field == "max_cost_usd"
    assert len(provider.script.seen) == 1


async def test_targets_without_a_price_are_never_called(provider: ProviderServer) -> None:
    unpriced = "openai/of-next-year"
    async with frontier(settings(provider)) as stack:
        for ask in (stack.complete, stack.stream):
            with pytest.raises(UnpricedModel) as caught:
                await ask(call(unpriced, "other/of-next-year"))
            assert caught.value.field == "model"
            assert unpriced in caught.value.message
        assert provider.script.seen == []
        done = await stack.complete(call(unpriced, OPENAI))
    assert done.model == OPENAI
    assert len(provider.script.seen) == 1


async def test_bounds_reach_the_provider(provider: ProviderServer) -> None:
    bounds = OutputBounds(5, stop=("END",), directive="At most 3 words.")
    provider.script.answer = lambda _: "many words " * 20
    async with frontier(settings(provider)) as stack:
        for target in (OPENAI, ANTHROPIC):
            done = await stack.complete(call(target, bounds=bounds))
            assert done.body["choices"][0]["finish_reason"] == "length"
    first, second = (seen.body for seen in provider.script.seen)
    assert first["messages"][0] == {"role": "system", "content": "At most 3 words."}
    assert (first["max_tokens"], first["stop"]) == (5, ["END"])
    assert second["system"] == [{"type": "text", "text": "At most 3 words."}]
    assert (second["max_tokens"], second["stop_sequences"]) == (5, ["END"])


async def test_anthropics_cache_is_written_then_read(provider: ProviderServer) -> None:
    static = "A rule to follow. " * 400
    events = Recorder()
    async with frontier(settings(provider), events) as stack:
        answers = []
        for question in ("one", "two", "three"):
            text = f"{static}\n---CACHE_BREAK---\n{question}"
            body = {"messages": [{"role": "user", "content": text}]}
            stream = await stack.stream(call(ANTHROPIC, body=body))
            chunks = await chunks_of(stream)
            assert usage_from_openai(chunks[-1]["usage"]).cache_read_tokens == (  # type: ignore[union-attr]
                stream.usage.cache_read_tokens  # type: ignore[union-attr]
            )
            answers.append(stream.usage)
    first, second, third = answers
    assert isinstance(first, Usage)
    assert isinstance(second, Usage)
    assert first.cache_write_5m_tokens > 1024
    assert first.cache_read_tokens == 0
    # The question is the end of a turn and written too; the next one differs.
    assert second.cache_read_tokens == first.cache_write_5m_tokens - second.cache_write_5m_tokens
    assert 0 < second.cache_write_5m_tokens < 20
    assert third == second or third.cache_read_tokens == second.cache_read_tokens  # type: ignore[union-attr]
    part, rest = provider.script.seen[0].body["messages"][0]["content"]
    assert part["cache_control"] == {"type": "ephemeral"}
    assert part["text"] == f"{static}\n"
    assert rest["text"] == "one"
    assert [read for _, read, _ in events.reads] == [
        0,
        second.cache_read_tokens,
        second.cache_read_tokens,
    ]
    assert [label == "other" for label, _, _ in events.reads] == [True, False, False]


@BOTH
async def test_without_caching_the_marker_still_stays_here(
    provider: ProviderServer, target: str
) -> None:
    off = PromptCacheSettings(enabled=False)
    text = "static " * 2000 + "---CACHE_BREAK---\nask"
    async with frontier(settings(provider, prompt_cache=off)) as stack:
        await stack.complete(call(target, body={"messages": [{"role": "user", "content": text}]}))
    assert "CACHE_BREAK" not in provider.script.seen[0].text
    assert "cache_control" not in provider.script.seen[0].text


@BOTH
async def test_values_that_json_cannot_carry_are_refused(
    provider: ProviderServer, target: str
) -> None:
    request = call(target, body={"messages": [{"role": "user", "content": "half: \ud83d"}]})
    async with frontier(settings(provider)) as stack:
        for ask in (stack.complete, stack.stream):
            with pytest.raises(FrontierRejected, match="encoded"):
                await ask(request)
    assert provider.script.seen == []


async def test_the_environment_is_the_one_given(provider: ProviderServer) -> None:
    assert set(ENVIRON) == {"OPENAI_API_KEY", "OTHER_API_KEY", "ANTHROPIC_API_KEY"}
    async with frontier(settings(provider), environ={}) as stack:
        assert stack.configured((OPENAI, ANTHROPIC, OTHER)) == ()
