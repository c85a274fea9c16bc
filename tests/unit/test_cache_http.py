"""The exact cache over HTTP: hits, headers, money, and what is never cached."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from itertools import count
from typing import Any

import pytest

from serving.cache.steady_clock import SteadyClock
from serving.contracts.task_spec import TaskSpec
from serving.ledger.database import Database
from serving.tasks.grant import Grant

from ..provider.script import Fault, Reply, Seen
from ..provider.server import ProviderServer
from .attested import result
from .cache_kit import NOW, Cached, cached, events_of, state_of, text_of
from .chat_kit import CHAT, chat_body, replying
from .frontier_kit import ANTHROPIC, OPENAI, frontier, settings
from .memory_ledger import COST, LOCAL_COST
from .scripted import MODEL, Server, assert_error

ENTRY, AGE = "x-narrowgate-cache-entry", "x-narrowgate-cache-age-s"


def counting(provider: ProviderServer, text: str = "Answer {}.") -> None:
    """Have the provider give another answer each time."""
    numbers = count(1)
    provider.script.answer = lambda seen: Reply(text.format(next(numbers)))


@pytest.fixture
async def chats(
    specs: dict[str, TaskSpec], database: Database, provider: ProviderServer
) -> AsyncIterator[Cached]:
    counting(provider)
    async with frontier(settings(provider)) as stack:
        server = await Server(specs, frontier=stack).ready()
        async with cached(server, database) as found:
            yield found


@pytest.fixture
async def tasks(server: Server, database: Database) -> AsyncIterator[Cached]:
    async with cached(server, database) as found:
        yield found


@pytest.mark.parametrize("model", [OPENAI, ANTHROPIC])
@pytest.mark.parametrize("first", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("second", [False, True], ids=["whole", "streamed"])
async def test_an_equal_chat_gets_the_same_answer(
    chats: Cached, provider: ProviderServer, model: str, first: bool, second: bool
) -> None:
    made = await chats.chat(model=model, stream=first)
    hit = await chats.chat(model=model, stream=second)
    assert (state_of(made), state_of(hit)) == ("miss", "hit")
    assert text_of(hit) == text_of(made) == "Answer 1."
    assert len(provider.script.seen) == 1
    assert hit.headers["x-narrowgate-route"] == "cache"
    assert hit.headers["x-narrowgate-reason"] == "cached"
    assert hit.headers["x-narrowgate-model"] == model
    (row,) = await chats.entries()
    assert hit.headers[ENTRY] == row["id"]
    assert float(hit.headers[AGE]) == 0.0
    assert ENTRY not in made.headers


async def test_a_hit_has_the_answers_usage(chats: Cached) -> None:
    made = (await chats.chat()).json()
    hit = (await chats.chat()).json()
    assert hit["usage"] == made["usage"]
    assert hit["choices"] == made["choices"]
    assert hit["id"] != made["id"]
    assert hit["narrowgate"]["route"] == "cache"
    assert hit["narrowgate"]["cost_usd"] == "0"
    assert hit["narrowgate"]["cache"]["kind"] == "exact"
    events = events_of(await chats.chat(stream=True, stream_options={"include_usage": True}))
    assert events[-1]["usage"] == made["usage"]
    plain = events_of(await chats.chat(stream=True))
    assert not any("usage" in event for event in plain)
    assert plain[-1]["choices"][0]["finish_reason"] == "stop"


async def test_a_hit_tells_its_age(chats: Cached) -> None:
    await chats.chat()
    chats.now.later(90.25)
    hit = await chats.chat()
    assert hit.headers[AGE] == "90.250"
    assert hit.json()["narrowgate"]["cache"]["age_s"] == 90.25


async def test_outer_white_space_and_other_codes_of_a_character_hit(chats: Cached) -> None:
    await chats.chat("What is a caf\u00e9?")
    assert state_of(await chats.chat("  What is a cafe\u0301?\n")) == "hit"
    assert state_of(await chats.chat("what is a caf\u00e9?")) == "miss"
    assert state_of(await chats.chat("What is a caf\u00e9")) == "miss"


async def test_the_ledger_has_the_lookup_and_what_was_saved(chats: Cached) -> None:
    made = await chats.chat()
    hit = await chats.chat()
    assert Decimal(made.headers["x-narrowgate-cost-usd"]) == COST
    assert Decimal(hit.headers["x-narrowgate-cost-usd"]) == 0
    first, second = (page.exit for page in chats.server.ledger.pages)
    assert first is not None
    assert second is not None
    assert (first.route, first.cache_entry, first.avoided_usd) == ("frontier", None, None)
    assert (second.route, second.reason, second.model) == ("cache", "cached", OPENAI)
    assert second.cache_entry == hit.headers[ENTRY]
    assert second.avoided_usd == COST
    assert second.usage == first.usage
    # It replaces a call of the same frontier model.
    assert second.guaranteed is True
    for row in (first, second):
        assert row.lookup_s is not None
        assert row.lookup_s > 0
    assert len(chats.server.ledger.calls) == 1


async def test_a_chat_on_a_local_model_hits(chats: Cached) -> None:
    message = {"role": "assistant", "content": "Local."}
    chats.server.engine.document["choices"] = [
        {"index": 0, "message": message, "finish_reason": "stop"}
    ]
    assert state_of(await chats.chat(model=MODEL)) == "miss"
    hit = await chats.chat(model=MODEL)
    assert (state_of(hit), text_of(hit)) == ("hit", "Local.")
    # Without a bound on its error it saves nothing.
    last = chats.server.ledger.pages[-1].exit
    assert last is not None
    assert (last.guaranteed, last.avoided_usd) == (None, LOCAL_COST)


async def test_a_chat_that_the_router_chose_is_looked_up_before_it_is_routed(
    server: Server, database: Database
) -> None:
    server.frontier.reply = lambda call: "unused"
    asked: list[str] = []
    vectors = server.router.vectors

    async def noted(request: Any, known: Any = None) -> Any:
        asked.append(request.messages[-1].text)
        return await vectors(request, known)

    server.router.vectors = noted  # type: ignore[method-assign]
    complete = server.frontier.complete

    async def with_usage(call: Any) -> Any:
        completion = await complete(call)
        usage = {"prompt_tokens": 5, "completion_tokens": 5}
        return replace(completion, body={**completion.body, "usage": usage})

    server.frontier.complete = with_usage
    async with cached(server, database) as found:
        assert state_of(await found.chat(model="auto")) == "miss"
        assert state_of(await found.chat(model="auto")) == "hit"
    assert len(asked) == 1
    assert len(server.decisions.rows) == 1


async def test_an_input_of_a_task_hits(tasks: Cached) -> None:
    made = await tasks.task("topic", {"input": "A text."})
    hit = await tasks.task("topic", {"input": " A text.\n"})
    assert (state_of(made), state_of(hit)) == ("miss", "hit")
    one, other = made.json(), hit.json()
    assert (other["route"], other["reason"], other["cost_usd"]) == ("cache", "cached", "0")
    for name in ("value", "label_probabilities", "confidence", "usage", "guarantee", "model"):
        assert other[name] == one[name]
    assert other["cache"]["entry"] == hit.headers[ENTRY]
    assert one["cache"] is None
    assert hit.headers["x-narrowgate-guarantee"] == made.headers["x-narrowgate-guarantee"]
    assert hit.headers["x-narrowgate-attestation"] == "sha256:abc"
    last = tasks.server.ledger.pages[-1].exit
    assert last is not None
    assert (last.task, last.route, last.evidence) == ("topic", "cache", "suite")
    assert last.guaranteed is True
    assert last.avoided_usd == LOCAL_COST


async def test_the_inputs_of_a_request_hit_one_by_one(tasks: Cached) -> None:
    await tasks.task("topic", {"inputs": ["one", "two"]})
    body = {"inputs": ["two", "three", 5, "one", "three"]}
    found = await tasks.task("topic", body)
    results = found.json()["results"]
    routes = [item["answer"] and item["answer"]["route"] for item in results]
    assert routes == ["cache", "local", None, "cache", "cache"]
    assert found.headers["x-narrowgate-cache"] == "hit,miss"
    assert found.headers["x-narrowgate-route"] == "cache,local"
    pages = [page for page in tasks.server.ledger.pages
             if page.request_id == found.json()["request_id"]]  # fmt: skip
    routes_of = {page.index: page.exit and page.exit.route for page in pages}
    assert routes_of == {0: "cache", 1: "local", 2: "cache", 3: "cache"}


async def test_a_failed_input_fails_alone_and_is_asked_again(tasks: Cached) -> None:
    body = {"inputs": ["one", "☠"]}
    for first in ("local", "cache"):
        one, bad = (await tasks.task("topic", body)).json()["results"]
        assert one["answer"]["route"] == first
        assert bad["error"]["code"] == "engine_failure"
    assert len(await tasks.entries()) == 1


async def test_a_chat_that_names_a_task_hits(tasks: Cached) -> None:
    first = await tasks.chat("A text.", model="task/topic")
    second = await tasks.chat("A text.", model="task/topic", stream=True)
    assert (state_of(first), state_of(second)) == ("miss", "hit")
    assert text_of(first) == text_of(second)
    last = tasks.server.ledger.pages[-1].exit
    assert last is not None
    assert last.task == "topic"


@pytest.mark.parametrize(
    ("headers", "fields", "states", "kept"),
    [
        ({}, {}, ["miss", "hit"], 1),
        ({"x-narrowgate-cache": "use"}, {}, ["miss", "hit"], 1),
        ({"x-narrowgate-cache": "refresh"}, {}, ["miss", "miss"], 1),
        ({"x-narrowgate-cache": "bypass"}, {}, ["bypass", "bypass"], 0),
        ({"x-narrowgate-cache": "no-store"}, {}, ["miss", "miss"], 0),
        ({"x-narrowgate-cache": " No-Store "}, {}, ["miss", "miss"], 0),
        ({"cache-control": "max-age=0, no-store"}, {}, ["miss", "miss"], 0),
        ({"x-narrowgate-cache": "refresh", "cache-control": "no-store"}, {}, ["bypass"] * 2, 0),
        ({}, {"store": False}, ["miss", "miss"], 0),
        ({}, {"store": True}, ["miss", "hit"], 1),
        ({"x-narrowgate-audit": "never"}, {}, ["miss", "miss"], 0),
    ],
    ids=str,
)
async def test_a_request_says_how_it_uses_the_cache(
    chats: Cached,
    tasks: Cached,
    headers: dict[str, str],
    fields: dict[str, Any],
    states: list[str],
    kept: int,
) -> None:
    of_chats = [state_of(await chats.chat(headers=headers, **fields)) for _ in states]
    assert of_chats == states
    assert len(await chats.entries()) == kept
    of_tasks = [
        state_of(await tasks.task("topic", {"input": "x", **fields}, **headers)) for _ in states
    ]
    assert of_tasks == states


async def test_what_is_not_stored_is_looked_up_all_the_same(chats: Cached) -> None:
    await chats.chat()
    # Entries are written behind the answer.
    await chats.service.written()
    for headers in ({"x-narrowgate-cache": "no-store"}, {"cache-control": "no-store"}):
        assert state_of(await chats.chat(headers=headers)) == "hit"
    bypassed = await chats.chat(headers={"x-narrowgate-cache": "bypass"})
    assert (state_of(bypassed), text_of(bypassed)) == ("bypass", "Answer 2.")
    assert text_of(await chats.chat()) == "Answer 1."


async def test_a_refresh_replaces_the_entry(chats: Cached) -> None:
    await chats.chat()
    refreshed = await chats.chat(headers={"x-narrowgate-cache": "refresh"})
    assert (state_of(refreshed), text_of(refreshed)) == ("miss", "Answer 2.")
    assert text_of(await chats.chat()) == "Answer 2."
    assert len(await chats.entries()) == 1


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-narrowgate-cache", "yes"),
        ("x-narrowgate-cache", ""),
        ("x-narrowgate-cache-ttl-s", "0"),
        ("x-narrowgate-cache-ttl-s", "-1"),
        ("x-narrowgate-cache-ttl-s", "1.5"),
        ("x-narrowgate-cache-ttl-s", "٣"),
        ("x-narrowgate-cache-ttl-s", "9" * 40),
    ],
)
async def test_a_wrong_header_is_refused(chats: Cached, header: str, value: str) -> None:
    refused = await chats.chat(headers={header: value.encode()})  # type: ignore[dict-item]
    assert assert_error(refused, 400, "invalid_request")["param"] == header


async def test_an_entry_ends_at_its_age(chats: Cached) -> None:
    await chats.chat("short", headers={"x-narrowgate-cache-ttl-s": "60"})
    await chats.chat("long", headers={"x-narrowgate-cache-ttl-s": "31536000"})
    chats.now.later(59)
    assert state_of(await chats.chat("short")) == "hit"
    chats.now.later(1)
    assert state_of(await chats.chat("short")) == "miss"
    chats.now.later(86_400 - 61)
    assert state_of(await chats.chat("long")) == "hit"
    # The client may shorten the time to live of its namespace and not extend it.
    chats.now.later(1)
    assert state_of(await chats.chat("long")) == "miss"


async def test_an_age_of_one_namespace(
    specs: dict[str, TaskSpec], database: Database, server: Server
) -> None:
    async with cached(server, database, namespace_ttl_s={"default": 5.0}) as found:
        await found.task("topic", {"input": "x"})
        found.now.later(5)
        assert state_of(await found.task("topic", {"input": "x"})) == "miss"


UNCACHED: list[tuple[str, Any]] = [
    ("cut", Reply("An answer that", finish="length")),
    ("cut", Reply("An answer that", finish="content_filter")),
    ("refusal", Reply("I'm sorry, but I can't help with that.")),
    ("empty", Reply("  ")),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(("reason", "reply"), UNCACHED, ids=str)
async def test_answers_that_are_never_stored(
    chats: Cached, provider: ProviderServer, reason: str, reply: Reply, stream: bool
) -> None:
    provider.script.answer = lambda seen: reply
    for _ in range(2):
        response = await chats.chat(stream=stream)
        assert response.headers.get("x-narrowgate-cache") in ("miss", None)
    assert len(provider.script.seen) == 2
    assert await chats.entries() == []


async def test_an_answer_that_is_not_stored_is_counted_with_its_reason(
    chats: Cached, provider: ProviderServer
) -> None:
    provider.script.answer = lambda seen: Reply("Half of", finish="length")
    await chats.chat()
    name = "narrowgate_cache_answers_not_stored_total"
    assert chats.metric(name, kind="chat", reason="cut") == 1


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", 500),
        Fault("status", 400, "invalid_request"),
        Fault("hang_up"),
        Fault("cut", after_events=2),
        Fault("end_early", after_events=2),
        Fault("truncated"),
        Fault("error_event", after_events=2),
    ],
    ids=lambda fault: fault.kind,
)
async def test_errors_and_broken_answers_are_never_stored(
    chats: Cached, provider: ProviderServer, fault: Fault, stream: bool
) -> None:
    provider.script.next(fault)
    await chats.chat(stream=stream)
    entries = await chats.entries()
    # Faults of streams do not break a whole answer.
    if not (entries and provider.script.seen[0].completed):
        assert entries == []
        again = await chats.chat(stream=stream)
        assert (state_of(again), text_of(again)) == ("miss", text_of(await chats.chat()))
        assert len(provider.script.seen) == 2


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"text": "What is the weather today?"}, "time_dependent"),
        ({"text": "Write to ann@example.org"}, "personal"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"logprobs": True}, "log_probabilities"),
    ],
    ids=str,
)
async def test_requests_that_bypass_the_cache(
    chats: Cached, provider: ProviderServer, fields: dict[str, Any], reason: str
) -> None:
    for _ in range(2):
        assert state_of(await chats.chat(**fields)) == "bypass"
    assert len(provider.script.seen) == 2
    assert await chats.entries() == []
    assert chats.metric("narrowgate_cache_bypasses_total", kind="chat", reason=reason) == 2


async def test_sampled_chats_are_not_cached_where_the_settings_say_so(
    specs: dict[str, TaskSpec], database: Database, provider: ProviderServer
) -> None:
    counting(provider)
    async with frontier(settings(provider)) as stack:
        server = await Server(specs, frontier=stack).ready()
        async with cached(server, database, sampled="off") as found:
            assert [state_of(await found.chat()) for _ in range(2)] == ["bypass"] * 2
            exact = [state_of(await found.chat(temperature=0)) for _ in range(2)]
            assert exact == ["miss", "hit"]


async def test_others_are_answered_while_a_long_chat_is_searched(
    specs: dict[str, TaskSpec], database: Database
) -> None:
    server = await Server(specs).ready()
    server.frontier.reply = replying("An answer.")
    async with cached(server, database) as found:
        gaps: list[float] = []

        async def tick() -> None:
            # In processor time: a busy machine takes away any length of elapsed time.
            before = time.thread_time()
            while True:
                await asyncio.sleep(0)
                gaps.append((now := time.thread_time()) - before)
                before = now

        ticking = asyncio.create_task(tick())
        began = time.thread_time()
        assert state_of(await found.chat("a@" * 1_000_000)) == "miss"
        took_s = time.thread_time() - began
        ticking.cancel()
        # One search of the whole text is most of the time.
        assert max(gaps) < 0.4 * took_s


async def test_a_large_answer_is_measured_by_its_stored_bytes(
    specs: dict[str, TaskSpec], database: Database, provider: ProviderServer
) -> None:
    async with frontier(settings(provider)) as stack:
        server = await Server(specs, frontier=stack).ready()
        async with cached(server, database, max_entry_bytes=4096) as found:
            # 2,000 characters of three bytes each are over the limit, of one byte below it.
            for char, kept in (("x", 1), ("語", 0)):
                text = char * 2000
                provider.script.answer = lambda seen, text=text: Reply(text)  # type: ignore[misc]
                await found.chat(f"Repeat {char}")
                rows = [row for row in await found.entries() if row["bytes"] <= 4096]
                assert len(rows) == len(await found.entries())
                assert state_of(await found.chat(f"Repeat {char}")) == ("hit" if kept else "miss")


@pytest.mark.parametrize(
    "excluded",
    [{"excluded_tenants": ("default",)}, {"excluded_tasks": ("topic",)}],
    ids=str,
)
async def test_nothing_is_kept_for_what_the_settings_exclude(
    server: Server, database: Database, excluded: dict[str, Any]
) -> None:
    async with cached(server, database, **excluded) as found:
        for _ in range(2):
            assert state_of(await found.task("topic", {"input": "x"})) == "bypass"
            assert state_of(await found.chat("x", model="task/topic")) == "bypass"
        assert await found.entries() == []


async def test_without_a_cache_answers_have_no_header(server: Server) -> None:
    for _ in range(2):
        response = await server.post("/v1/tasks/topic", json={"input": "x"})
        assert response.json()["route"] == "local"
        assert "x-narrowgate-cache" not in response.headers


async def test_a_cache_that_cannot_be_read_or_written_is_a_miss(
    tasks: Cached, database: Database
) -> None:
    with database.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE cache_entries RENAME TO gone")
    for text in ("x", "y"):
        response = await tasks.task("topic", {"input": text})
        assert (state_of(response), response.json()["route"]) == ("miss", "local")
        tasks.service._paused_until_s = 0.0
    await tasks.service._writer.flush()
    outcome = {"kind": "task", "outcome": "unavailable"}
    assert tasks.metric("narrowgate_cache_lookups_total", **outcome) == 2
    assert tasks.metric("narrowgate_cache_writes_dropped_total") == 2


async def test_a_damaged_entry_is_a_miss_and_is_replaced(tasks: Cached, database: Database) -> None:
    await tasks.task("topic", {"input": "x"})
    await tasks.entries()
    with database.begin() as connection:
        connection.exec_driver_sql("UPDATE cache_entries SET content = x'00'")
    # Otherwise the answer is still shared with equal requests of that moment.
    tasks.service.flights.retire_answered()
    assert state_of(await tasks.task("topic", {"input": "x"})) == "miss"
    assert tasks.metric("narrowgate_cache_unreadable_entries_total") == 1
    await tasks.entries()
    assert state_of(await tasks.task("topic", {"input": "x"})) == "hit"


async def test_lookups_and_sizes_are_metrics(tasks: Cached) -> None:
    for _ in range(3):
        await tasks.task("topic", {"inputs": ["a", "b"]})
        await tasks.entries()
    lookups = "narrowgate_cache_lookups_total"
    assert tasks.metric(lookups, kind="task", outcome="miss") == 2
    assert tasks.metric(lookups, kind="task", outcome="hit") == 4
    assert tasks.metric("narrowgate_cache_lookup_seconds_count", kind="task") == 6
    assert tasks.metric("narrowgate_cache_writes_total") == 2
    await tasks.service.sweep()
    assert tasks.metric("narrowgate_cache_entries") == 2
    assert tasks.metric("narrowgate_cache_bytes") > 100
    await tasks.service._writer.count_hits()
    (stats,) = (await tasks.server.client.get("/v1/admin/cache")).json()["data"]
    assert (stats["namespace"], stats["entries"], stats["hits"]) == ("tenant/default", 2, 4)


async def test_an_answer_of_a_clock_that_was_set_back_is_made_again_and_deleted(
    chats: Cached,
) -> None:
    questions = ("What is a gate?", "What is a margin?")
    for question in questions:
        assert state_of(await chats.chat(question)) == "miss"
        await chats.entries()
    # By a minute clocks may differ; beyond it the entries would live that much longer.
    chats.now.later(-59)
    assert state_of(await chats.chat(questions[0])) == "hit"
    chats.now.later(-3600)
    chats.service.flights.retire_answered()
    assert state_of(await chats.chat(questions[0])) == "miss"
    assert len(await chats.entries()) == 2
    # The one that was made again stays; the other is gone before the clock has come to it again.
    await chats.service.sweep()
    assert len(await chats.entries()) == 1
    chats.now.later(3660)
    assert state_of(await chats.chat(questions[1])) == "miss"


def test_the_caches_clock_is_not_set_back() -> None:
    wall, monotonic_s = NOW, 100.0
    clock = SteadyClock(lambda: wall, lambda: monotonic_s)
    assert clock() == NOW
    monotonic_s += 60
    wall = NOW - timedelta(hours=1)
    assert clock() == NOW + timedelta(seconds=60)
    # One that was set forward holds until it is set right.
    wall = NOW + timedelta(days=400)
    assert clock() == wall
    wall = NOW + timedelta(seconds=61)
    assert clock() == wall


async def test_the_cost_in_a_streams_entry_is_known(chats: Cached) -> None:
    events_of(await chats.chat(stream=True))
    hit = await chats.chat()
    assert state_of(hit) == "hit"
    last = chats.server.ledger.pages[-1].exit
    assert last is not None
    assert last.avoided_usd == COST


async def test_a_chat_of_several_choices_is_repeated_whole(
    chats: Cached, provider: ProviderServer
) -> None:
    seen: list[Seen] = provider.script.seen
    made = await chats.server.post(CHAT, json=chat_body(OPENAI, n=2))
    hit = await chats.server.post(CHAT, json=chat_body(OPENAI, n=2, stream=True))
    assert state_of(hit) == "hit"
    assert len(seen) == 1
    indices = {choice["index"] for event in events_of(hit) for choice in event["choices"]}
    assert indices == {choice["index"] for choice in made.json()["choices"]}


async def test_a_model_whose_attestation_changed_is_asked_again(
    tasks: Cached, specs: dict[str, TaskSpec]
) -> None:
    await tasks.task("topic", {"input": "x"})
    assert state_of(await tasks.task("topic", {"input": "x"})) == "hit"
    all_tasks: Any = tasks.server.context.models.tasks
    grants = {name: bound.grant for name, bound in all_tasks.items()}
    assert grants["topic"].attestation == "sha256:abc"
    for name, bound in list(all_tasks.items()):
        other = Grant(result(specs[name]), "sha256:new", bound.grant.refusal)
        all_tasks[name] = replace(bound, grant=other)
    assert state_of(await tasks.task("topic", {"input": "x"})) == "miss"
