"""Prompt caching without markers: where breakpoints are, for how long, at which account."""

import json
from typing import Any

import pytest

from serving.frontier.build import build_frontier
from serving.frontier.prompt_cache import split_prompt

from ..provider.model import anthropic_blocks
from ..provider.script import rate_limited
from ..provider.server import ProviderServer
from .frontier_kit import ANTHROPIC, PRICES, SONNET, Recorder, call, frontier, settings
from .prompt_cache_replay import Clock, Traffic, replay

LONG = "A rule of the house that every answer follows. " * 120
TOOL = {
    "type": "function",
    "function": {"name": "find", "description": LONG, "parameters": {"type": "object"}},
}
ASKED = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
]}  # fmt: skip


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


SYSTEM, FIRST = turn("system", LONG), turn("user", "First question?")
TALK = [SYSTEM, FIRST, turn("assistant", "An answer."), turn("user", "Second question?")]


async def sent(server: ProviderServer, *bodies: dict[str, Any], **cache: Any) -> list[Any]:
    async with frontier(settings(server, prompt_cache=cache)) as stack:
        for body in bodies:
            await stack.complete(call(ANTHROPIC, body=body))
    return [seen.body for seen in server.script.seen]


def breakpoints(body: dict[str, Any]) -> list[str]:
    """Return the ends of the cached prefixes as the provider got them."""
    names = []
    for block in anthropic_blocks(body):
        if block.get("cache_control"):
            names.append(block.get("name") or block.get("text", block.get("type"))[:16])
    return names


async def test_tools_system_and_turns_get_breakpoints(provider: ProviderServer) -> None:
    (body,) = await sent(provider, {"messages": TALK, "tools": [TOOL]})
    assert breakpoints(body) == ["find", LONG[:16], FIRST["content"][:16], "Second question?"]


async def test_a_tools_result_ends_a_prefix(provider: ProviderServer) -> None:
    messages = [SYSTEM, FIRST, ASKED, turn("tool", "Found it.", tool_call_id="c1")]
    (body,) = await sent(provider, {"messages": messages, "tools": [TOOL]})
    assert breakpoints(body)[-1] == "tool_result"
    assert len(breakpoints(body)) == 4


@pytest.mark.parametrize(
    ("messages", "tools"),
    [
        (TALK, [TOOL]),
        ([SYSTEM, turn("user", "Hi. ")], []),
        ([SYSTEM, FIRST, SYSTEM, turn("user", "?")], []),
    ],
)
async def test_the_model_is_asked_the_same(
    provider: ProviderServer, messages: list[Any], tools: list[Any]
) -> None:
    body = {"messages": messages, "tools": tools} if tools else {"messages": messages}
    (cached,) = await sent(provider, body)
    provider.script.seen.clear()
    (plain,) = await sent(provider, body, enabled=False)

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {n: without(v) for n, v in value.items() if n != "cache_control"}
        return [without(item) for item in value] if isinstance(value, list) else value

    assert "cache_control" in json.dumps(cached)
    assert without(cached) == without(plain) == plain


async def test_the_switch_leaves_only_markers(provider: ProviderServer) -> None:
    marked = turn("system", f"{LONG}---CACHE_BREAK---")
    off, with_marker = await sent(
        provider, {"messages": TALK}, {"messages": [marked, FIRST]}, automatic=False
    )
    assert breakpoints(off) == []
    assert breakpoints(with_marker) == [LONG[:16]]


async def test_markers_and_turns_stay_within_four_breakpoints(provider: ProviderServer) -> None:
    marked = turn("system", "---CACHE_BREAK---".join([LONG] * 5))
    (body,) = await sent(provider, {"messages": [marked, *TALK[1:]], "tools": [TOOL]})
    assert len(breakpoints(body)) == 4


def test_a_client_that_places_breakpoints_gets_no_others() -> None:
    part = {"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}
    own = {"messages": [{"role": "system", "content": [part]}, FIRST]}
    assert split_prompt(own, "---CACHE_BREAK---").automatic == ()
    assert split_prompt({"messages": TALK}, "---CACHE_BREAK---").automatic


async def test_a_longer_time_comes_first(provider: ProviderServer) -> None:
    """The system prompt is used every minute, one conversation every twenty: both get an hour."""
    clock = Clock()
    async with frontier(settings(provider), clock=clock) as stack:
        history = [SYSTEM, FIRST]
        for _ in range(12):
            for _ in range(20):
                clock.now_s += 60
                other = [SYSTEM, turn("user", f"Other {clock.now_s}?")]
                await stack.complete(call(ANTHROPIC, body={"messages": other}))
            await stack.complete(call(ANTHROPIC, body={"messages": history}))
            history = [*history, turn("assistant", "Yes."), turn("user", "And then?")]
    controls = [
        [b["cache_control"].get("ttl") for b in anthropic_blocks(seen.body)
         if b.get("cache_control")]
        for seen in provider.script.seen
    ]  # fmt: skip
    assert all(seen.billed for seen in provider.script.seen)
    assert ["1h", "1h", "1h"] in controls
    assert all(found == sorted(found, key=lambda ttl: ttl != "1h") for found in controls)


async def test_a_conversation_stays_with_the_account_that_cached_it(
    keyless_provider: ProviderServer,
) -> None:
    config = settings(keyless_provider)
    second = config.providers["anthropic"]
    config = config.model_copy(update={"providers": {**config.providers, "second": second}})
    targets = (ANTHROPIC, ANTHROPIC.replace("anthropic/", "second/"))
    prices = type(PRICES)({**PRICES, targets[1]: SONNET})
    keys = {"ANTHROPIC_API_KEY": "one", "SECOND_API_KEY": "two"}
    stack = build_frontier(config, prices, keys, Recorder())
    try:
        keyless_provider.script.next(rate_limited())
        for messages in (TALK[:2], TALK):
            await stack.complete(call(*targets, body={"messages": messages}))
        await stack.complete(call(*targets, body={"messages": [turn("user", "Else?")]}))
    finally:
        await stack.aclose()
    assert [seen.key for seen in keyless_provider.script.seen] == ["one", "two", "two", "one"]


async def test_two_thirds_of_the_input_of_conversations_are_read(provider: ProviderServer) -> None:
    bill = await replay(provider, ANTHROPIC, Traffic(conversations=12))
    assert bill.read_rate > 0.6
    assert bill.saved > 0.5
    provider.reset()
    plain = await replay(provider, ANTHROPIC, Traffic(conversations=12), automatic=False)
    assert (plain.read_rate, plain.saved) == (0.0, 0.0)


async def test_prompts_that_never_repeat_cost_little_more(provider: ProviderServer) -> None:
    bill = await replay(provider, ANTHROPIC, Traffic(conversations=40, turns=(1, 1), dated=True))
    assert bill.saved > -0.1
