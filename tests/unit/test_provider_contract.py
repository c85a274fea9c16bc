"""The fake provider keeps to both wire formats: the vendors' SDKs read it strictly."""

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import openai
import pytest

from ..provider.billing import billed_classes, classes_of
from ..provider.script import Fault, Reply, ToolCall
from ..provider.server import ProviderServer
from .frontier_kit import KEY

MESSAGES: list[Any] = [{"role": "user", "content": "What is a narrow gate?"}]
CALLS = (ToolCall("weather", {"place": "Oslo"}), ToolCall("weather", {"place": "Bergen"}))


@pytest.fixture(name="chat")
async def chat_fixture(provider: ProviderServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        api_key=KEY, base_url=f"{provider.url}/v1", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture(name="messages")
async def messages_fixture(provider: ProviderServer) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(
        api_key=KEY, base_url=provider.url, max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


async def test_openais_format_whole_and_streamed(
    provider: ProviderServer, chat: openai.AsyncOpenAI
) -> None:
    provider.script.answer = lambda _: Reply("A few words.", reasoning_tokens=5)
    done = await chat.chat.completions.create(model="gpt-4.1", messages=MESSAGES)
    stream = await chat.chat.completions.create(
        model="gpt-4.1", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert done.choices[0].message.content == text == "A few words."
    assert done.usage is not None
    assert chunks[-1].usage == done.usage
    for request in provider.script.seen:
        assert billed_classes(request) == classes_of("openai", done.usage.to_dict())


async def test_anthropics_format_whole_and_streamed(
    provider: ProviderServer, messages: anthropic.AsyncAnthropic
) -> None:
    provider.script.answer = lambda _: Reply("A few words.", reasoning_tokens=5)
    asked: dict[str, Any] = {"model": "claude-x", "max_tokens": 64, "messages": MESSAGES}
    done = await messages.messages.create(**asked)
    async with messages.messages.stream(**asked) as stream:
        text = await stream.get_final_text()
        last = await stream.get_final_message()
    assert text == "A few words."
    assert [block.type for block in last.content] == ["text"]
    assert done.content[0].to_dict()["text"] == text
    assert done.usage.output_tokens == last.usage.output_tokens
    for request in provider.script.seen:
        assert billed_classes(request) == classes_of("anthropic", done.usage.to_dict())


async def test_tool_calls_in_both_formats(
    provider: ProviderServer, chat: openai.AsyncOpenAI, messages: anthropic.AsyncAnthropic
) -> None:
    provider.script.answer = lambda _: Reply("", CALLS, finish="tool_calls")
    done = await chat.chat.completions.create(model="gpt-4.1", messages=MESSAGES)
    assert [call.type for call in done.choices[0].message.tool_calls or []] == ["function"] * 2
    async with messages.messages.stream(
        model="claude-x", max_tokens=64, messages=MESSAGES
    ) as stream:
        message = await stream.get_final_message()
    inputs = [block.input for block in message.content if block.type == "tool_use"]
    assert inputs == [call.arguments for call in CALLS]


@pytest.mark.parametrize(
    ("status", "name"),
    [(400, "BadRequestError"), (401, "AuthenticationError"), (404, "NotFoundError"),
     (429, "RateLimitError"), (500, "InternalServerError")],
)  # fmt: skip
async def test_errors_in_both_formats(
    provider: ProviderServer,
    chat: openai.AsyncOpenAI,
    messages: anthropic.AsyncAnthropic,
    status: int,
    name: str,
) -> None:
    provider.script.on("*", Fault("status", status))
    with pytest.raises(getattr(openai, name)):
        await chat.chat.completions.create(model="gpt-4.1", messages=MESSAGES)
    with pytest.raises(getattr(anthropic, name)):
        await messages.messages.create(model="claude-x", max_tokens=64, messages=MESSAGES)
    assert [request.billed for request in provider.script.seen] == [None, None]


async def test_a_connection_that_breaks_is_billed_and_no_answer(
    provider: ProviderServer, chat: openai.AsyncOpenAI, messages: anthropic.AsyncAnthropic
) -> None:
    provider.script.on("*", Fault("hang_up"))
    with pytest.raises(openai.APIConnectionError):
        await chat.chat.completions.create(model="gpt-4.1", messages=MESSAGES)
    with pytest.raises(anthropic.APIConnectionError):
        await messages.messages.create(model="claude-x", max_tokens=64, messages=MESSAGES)
    assert all(request.billed for request in provider.script.seen)
