"""What docs/cache.md says is never cached or served, asked by two tenants through OpenAI's SDK."""

import asyncio
import logging
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import openai
import pytest

from serving.contracts.task_spec import TaskSpec
from serving.gateway.http import build_http
from serving.ledger.database import Database

from ..provider.script import Fault, Reply, ToolCall
from ..provider.server import ProviderServer
from .authenticated import KeyedServer, listening
from .cache_kit import Cached, cached
from .frontier_kit import OPENAI, frontier, settings
from .patience import GUARD_S
from .scripted import Server

QUESTION = "What is a narrow gate?"
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}


def _says(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


NEVER_LOOKED_UP: dict[str, dict[str, Any]] = {
    "bypass": {"extra_headers": {"x-narrowgate-cache": "bypass"}},
    "tools": {"tools": [TOOL]},
    "tool's result": {"messages": [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "A film."}]},
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
    "telephone number": _says("Who answers +49 30 901820 at noon?"),
    "account": _says("Is DE89 3704 0044 0532 0130 00 a valid account?"),
    "social security number": _says("Is 078-05-1120 a valid number?"),
    "card": _says("Is 4111 1111 1111 1111 a valid card number?"),
}  # fmt: skip

NEVER_STORED: dict[str, dict[str, Any]] = {
    "store": {"store": False},
    "Cache-Control": {"extra_headers": {"cache-control": "no-store"}},
    "Cache-Control, a list": {"extra_headers": {"cache-control": "max-age=0, No-Store"}},
    "no-store": {"extra_headers": {"x-narrowgate-cache": "no-store"}},
    "audit": {"extra_headers": {"x-narrowgate-audit": "never"}},
}

UNFIT_ANSWERS = {
    "cut": Reply("Half of an answer", finish="length"),
    "filtered": Reply("Half of an answer", finish="content_filter"),
    "refusal": Reply("I'm sorry, but I can't help with that."),
    "empty": Reply(" "),
    "tool call": Reply(calls=(ToolCall("look_up", {"name": "gate"}),), finish="tool_calls"),
    "oversized": Reply("word " * 1000),
}

BYPASSED_BY_SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "sampled off": ({"sampled": "off"}, {}, "sampled"),
    "sampled off, a temperature": ({"sampled": "off"}, {"temperature": 0.2}, "sampled"),
    "excluded tenant": ({"excluded_tenants": ("acme",)}, {}, "excluded"),
    "excluded key": ({"excluded_keys": ("acme's",)}, {}, "excluded"),
    "excluded task": ({"excluded_tasks": ("topic",)}, {"model": "task/topic"}, "excluded"),
}
"""Settings, a request of acme, and the reason of its bypass."""


class Tenants:
    """Two tenants' SDK clients of one gateway."""

    def __init__(self, found: Cached, provider: ProviderServer, keys: dict[str, str]) -> None:
        self.cached = found
        self.keys = keys
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
    specs: dict[str, TaskSpec],
    database: Database,
    provider: ProviderServer,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Tenants]:
    """Two tenants; a test's parameter holds settings of the cache; an excluded key is acme's."""
    numbers = count(1)
    provider.script.answer = lambda seen: Reply(f"Answer {next(numbers)}.")
    keyed = KeyedServer(specs, database)
    async with frontier(settings(provider)) as stack:
        server = await Server(specs, frontier=stack, access=keyed.access).ready()
        keys = {name: await keyed.tenant(name) for name in ("acme", "globex")}
        changed = {"max_entry_bytes": 4096, **getattr(request, "param", {})}
        if changed.get("excluded_keys"):
            changed["excluded_keys"] = (keys["acme"].split("-")[1],)
        async with cached(server, database, **changed) as found:
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


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("tenants", "asked", "reason"),
    BYPASSED_BY_SETTINGS.values(),
    ids=BYPASSED_BY_SETTINGS.keys(),
    indirect=["tenants"],
)
async def test_what_the_settings_keep_out(
    tenants: Tenants, asked: dict[str, Any], reason: str, stream: bool
) -> None:
    assert [(await tenants.ask("acme", stream=stream, **asked))[0] for _ in range(2)] == [
        "bypass", "bypass"
    ]  # fmt: skip
    assert await tenants.cached.entries() == []
    assert tenants.cached.metric("narrowgate_cache_bypasses_total", kind="chat", reason=reason) == 2
    # The rest of the traffic is cached.
    if reason == "sampled":
        rest = [await tenants.ask("acme", stream=stream, temperature=0) for _ in range(2)]
    else:
        other = {} if "model" in asked else asked
        rest = [await tenants.ask("globex", stream=stream, **other) for _ in range(2)]
    assert [state for state, _ in rest] == ["miss", "hit"]


@pytest.mark.parametrize("after_events", [1, 20])
async def test_a_stream_that_the_client_leaves_is_not_stored(
    tenants: Tenants, after_events: int
) -> None:
    words = "one two three four " * 50
    tenants.provider.script.answer = lambda seen: Reply(words)
    tenants.provider.script.next(Fault("slow", delay_s=0.02))
    flights = tenants.cached.service.flights
    async with listening(build_http(tenants.cached.server.context)) as url:
        client = openai.AsyncOpenAI(
            api_key=tenants.keys["acme"], base_url=f"{url}/v1", max_retries=0
        )
        create = client.chat.completions.with_raw_response.create
        stream = await client.chat.completions.create(model=OPENAI, **_says(QUESTION), stream=True)
        read = 0
        async for _ in stream:
            read += 1
            if read == after_events:
                break
        await stream.close()
        async with asyncio.timeout(GUARD_S):
            while len(flights):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        (seen,) = tenants.provider.script.seen
        assert not seen.completed
        assert await tenants.cached.entries() == []
        # The next one is asked anew, and whole.
        again = await create(model=OPENAI, **_says(QUESTION))
        assert again.headers["x-narrowgate-cache"] == "miss"
        assert again.parse().choices[0].message.content == words
        assert len(tenants.provider.script.seen) == 2
        await client.close()


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_no_log_line_holds_a_question_an_answer_or_a_key(
    tenants: Tenants, caplog: pytest.LogCaptureFixture, database: Database, stream: bool
) -> None:
    caplog.set_level(logging.DEBUG, logger="serving")
    tenants.provider.script.answer = lambda seen: Reply("The answer is persimmon.")
    asked = _says("Which fruit is a rambutan like?")
    states = [(await tenants.ask("acme", stream=stream, **asked))[0] for _ in range(2)]
    # What cannot be read is told in the log as well.
    with database.begin() as connection:
        connection.exec_driver_sql("UPDATE cache_entries SET content = x'00'")
    tenants.cached.service.flights.retire_answered()
    states.append((await tenants.ask("acme", stream=stream, **asked))[0])
    assert states == ["miss", "hit", "miss"]
    assert "request_finished" in caplog.text
    secrets = ("rambutan", "persimmon", *(key.split("-", 2)[2] for key in tenants.keys.values()))
    for secret in secrets:
        assert secret not in caplog.text
