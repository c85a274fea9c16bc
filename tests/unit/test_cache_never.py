"""What docs/cache.md says is never cached or served, asked by two tenants through OpenAI's SDK."""

from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import openai
import pytest

from serving.contracts.task_spec import TaskSpec
from serving.ledger.database import Database

from ..provider.script import Reply
from ..provider.server import ProviderServer
from .authenticated import KeyedServer
from .cache_kit import Cached, cached
from .frontier_kit import OPENAI, frontier, settings
from .scripted import Server

QUESTION = "What is a narrow gate?"
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


def _says(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


NEVER_LOOKED_UP: dict[str, dict[str, Any]] = {
    "bypass": {"extra_headers": {"x-narrowgate-cache": "bypass"}},
    "tools": {"tools": [TOOL]},
    "image": {"messages": [{"role": "user", "content": [
        {"type": "text", "text": QUESTION}, IMAGE]}]},
    "log probabilities": {"logprobs": True},
    "today": _says("Who is the president today?"),
    "heute": _says("Wie ist das Wetter heute?"),
    "earlier turn names a time": {"messages": [
        {"role": "user", "content": "What happened yesterday?"},
        {"role": "assistant", "content": "Much."}, {"role": "user", "content": "Tell me more."}]},
    "random": _says("Pick a random number between 1 and 100"),
    "secret": _says("Generate a password of 12 characters"),
    "e-mail address": _says("Write to ann@example.org"),
    "card": _says("Is 4111 1111 1111 1111 a valid card number?"),
}  # fmt: skip

NEVER_STORED: dict[str, dict[str, Any]] = {
    "store": {"store": False},
    "Cache-Control": {"extra_headers": {"cache-control": "no-store"}},
    "no-store": {"extra_headers": {"x-narrowgate-cache": "no-store"}},
    "audit": {"extra_headers": {"x-narrowgate-audit": "never"}},
}

UNFIT_ANSWERS = {
    "cut": Reply("Half of an answer", finish="length"),
    "filtered": Reply("Half of an answer", finish="content_filter"),
    "refusal": Reply("I'm sorry, but I can't help with that."),
    "empty": Reply(" "),
}


class Tenants:
    """Two tenants' SDK clients of one gateway."""

    def __init__(self, found: Cached, provider: ProviderServer, keys: dict[str, str]) -> None:
        self.cached = found
        self.provider = provider
        self._clients = {
            name: openai.AsyncOpenAI(
                api_key=key, base_url="http://gateway/v1", max_retries=0,
                http_client=found.server.client,
            )
            for name, key in keys.items()
        }  # fmt: skip

    async def ask(self, tenant: str, *, stream: bool, **more: Any) -> tuple[str, str]:
        """Return what the cache did, and the text of the answer."""
        fields = {"model": OPENAI, **_says(QUESTION), **more}
        create = self._clients[tenant].chat.completions.with_raw_response.create
        raw = await create(**fields, stream=stream)
        found = raw.parse()
        if stream:
            text = "".join(
                [c.choices[0].delta.content or "" async for c in found if c.choices]
            )  # fmt: skip
        else:
            text = found.choices[0].message.content or ""
        await self.cached.entries()
        return raw.headers["x-narrowgate-cache"], text


@pytest.fixture
async def tenants(
    specs: dict[str, TaskSpec], database: Database, provider: ProviderServer
) -> AsyncIterator[Tenants]:
    numbers = count(1)
    provider.script.answer = lambda seen: Reply(f"Answer {next(numbers)}.")
    keyed = KeyedServer(specs, database)
    async with frontier(settings(provider)) as stack:
        server = await Server(specs, frontier=stack, access=keyed.access).ready()
        keys = {name: await keyed.tenant(name) for name in ("acme", "globex")}
        async with cached(server, database) as found:
            yield Tenants(found, provider, keys)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_a_question_that_may_be_cached_is_a_tenants_own(
    tenants: Tenants, stream: bool
) -> None:
    # Else the tests below would pass without a cache.
    first = await tenants.ask("acme", stream=stream)
    assert await tenants.ask("acme", stream=not stream) == ("hit", first[1])
    other = await tenants.ask("globex", stream=stream)
    assert other[0] == "miss"
    assert other[1] != first[1]
    assert await tenants.ask("globex", stream=stream) == ("hit", other[1])


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("asked", NEVER_LOOKED_UP.values(), ids=NEVER_LOOKED_UP.keys())
async def test_what_is_never_looked_up(
    tenants: Tenants, asked: dict[str, Any], stream: bool
) -> None:
    found = [await tenants.ask(name, stream=stream, **asked) for name in ("acme", "globex", "acme")]
    assert [state for state, _ in found] == ["bypass"] * 3
    assert len({text for _, text in found}) == 3
    assert await tenants.cached.entries() == []


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("asked", NEVER_STORED.values(), ids=NEVER_STORED.keys())
async def test_what_the_client_keeps_out(
    tenants: Tenants, asked: dict[str, Any], stream: bool
) -> None:
    found = [await tenants.ask(name, stream=stream, **asked) for name in ("acme", "globex", "acme")]
    assert "hit" not in {state for state, _ in found}
    assert len({text for _, text in found}) == 3
    assert await tenants.cached.entries() == []


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("reply", UNFIT_ANSWERS.values(), ids=UNFIT_ANSWERS.keys())
async def test_answers_that_are_never_stored(tenants: Tenants, reply: Reply, stream: bool) -> None:
    tenants.provider.script.answer = lambda seen: reply
    for name in ("acme", "globex", "acme"):
        assert (await tenants.ask(name, stream=stream))[0] == "miss"
    assert len(tenants.provider.script.seen) == 3
    assert await tenants.cached.entries() == []


async def test_a_stream_that_the_client_leaves_is_not_stored_half(tenants: Tenants) -> None:
    client = tenants._clients["acme"]
    stream = await client.chat.completions.create(
        model=OPENAI, **_says(QUESTION), stream=True
    )  # fmt: skip
    async for _ in stream:
        break
    await stream.close()
    # What a later request gets is whole, whoever made it.
    state, text = await tenants.ask("acme", stream=False)
    assert text.startswith("Answer ")
    assert text.endswith(".")
    assert state in ("hit", "miss")
