"""Equal requests at one moment: asked once, each with its own row, deadline and hang-up."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from serving.cache.entry_store import EVERY_ENTRY
from serving.contracts.task_spec import TaskSpec
from serving.ledger.database import Database

from ..provider.script import Fault, Reply
from ..provider.server import ProviderServer
from .cache_kit import Cached, cached, state_of, text_of
from .chat_kit import CHAT, chat_body, hang_up
from .frontier_kit import OPENAI, frontier, settings
from .memory_ledger import Page
from .patience import until
from .scripted import MODEL, Server, assert_error


@pytest.fixture
async def chats(
    specs: dict[str, TaskSpec], database: Database, provider: ProviderServer
) -> AsyncIterator[Cached]:
    async with frontier(settings(provider)) as stack:
        server = await Server(specs, frontier=stack).ready()
        async with cached(server, database) as found:
            yield found


@pytest.fixture
async def local(server: Server, database: Database) -> AsyncIterator[Cached]:
    """A server whose engine waits until it is released."""
    server.engine.release.clear()
    message = {"role": "assistant", "content": "Local."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    server.engine.document["choices"] = [choice]
    async with cached(server, database) as found:
        yield found


def waiting(found: Cached) -> int:
    """Return how many requests take part in flights."""
    return sum(flight.participants for flight in found.service.flights._open.values())


def exits(pages: Sequence[Page]) -> list[tuple[str | None, str | None]]:
    return [(page.exit.route, page.exit.error) if page.exit else (None, None) for page in pages]


async def asked(found: Cached, count: int, **body: Any) -> list["asyncio.Task[Any]"]:
    """Send so many equal chats to the local model, the leader first; return when all wait."""
    already, sent = waiting(found), []
    for number in range(1, count + 1):
        sent.append(asyncio.create_task(found.chat(model=MODEL, **body)))
        await until(lambda: waiting(found) == already + number)  # noqa: B023  # awaited here
    return sent


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_equal_chats_are_asked_once(
    chats: Cached, provider: ProviderServer, stream: bool
) -> None:
    provider.script.next(Fault("slow", delay_s=0.2))
    answers = await asyncio.gather(*(chats.chat(stream=stream) for _ in range(5)))
    assert len({text_of(answer) for answer in answers}) == 1
    assert sorted(map(state_of, answers)) == ["hit"] * 4 + ["miss"]
    assert len(provider.script.seen) == 1
    pages = chats.server.ledger.pages
    assert len(pages) == 5
    assert [len(page.calls) for page in pages].count(1) == 1
    assert sorted(route for route, _ in exits(pages) if route) == ["cache"] * 4 + ["frontier"]
    assert len({page.request_id for page in pages}) == 5


async def test_a_whole_request_shares_the_answer_to_a_streamed_one(
    chats: Cached, provider: ProviderServer
) -> None:
    provider.script.next(Fault("slow", delay_s=0.1))
    streamed, whole = await asyncio.gather(chats.chat(stream=True), chats.chat())
    assert text_of(streamed) == text_of(whole)
    assert len(provider.script.seen) == 1


async def test_equal_inputs_of_one_request_are_asked_once(local: Cached) -> None:
    local.server.engine.release.set()
    answer = await local.task("topic", {"inputs": ["a", "b", "a", " a "]})
    routes = [item["answer"]["route"] for item in answer.json()["results"]]
    assert routes == ["local", "local", "cache", "cache"]


async def test_two_requests_that_lead_one_another_both_end(local: Cached) -> None:
    one = asyncio.create_task(local.task("topic", {"inputs": ["a", "b"]}))
    await until(lambda: waiting(local) == 2)
    other = asyncio.create_task(local.task("topic", {"inputs": ["b", "c", "a"]}))
    await until(lambda: waiting(local) == 5)
    local.server.engine.release.set()
    routes = [item["answer"]["route"] for item in (await other).json()["results"]]
    assert routes == ["cache", "local", "cache"]
    assert [item["answer"]["route"] for item in (await one).json()["results"]] == ["local"] * 2


async def test_when_the_leader_leaves_the_call_goes_on_for_the_others(local: Cached) -> None:
    leader, *others = await asked(local, 3)
    leader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leader
    local.server.engine.release.set()
    answers = await asyncio.gather(*others)
    assert [state_of(answer) for answer in answers] == ["hit", "hit"]
    assert len(local.server.engine.bodies) == 1
    pages = local.server.ledger.pages
    assert exits(pages) == [("none", "client_closed"), ("cache", None), ("cache", None)]
    # The leader's row has the cost of the call that was made for the others.
    assert pages[0].exit is not None
    assert pages[0].exit.replica_s is not None
    assert local.server.context.local_admission.active == 0


async def test_when_everyone_leaves_the_call_is_cancelled(local: Cached) -> None:
    sent = await asked(local, 3)
    for one in sent:
        one.cancel()
    await asyncio.gather(*sent, return_exceptions=True)
    assert exits(local.server.ledger.pages) == [("none", "client_closed")] * 3
    assert local.server.context.local_admission.active == 0
    assert len(local.service.flights) == 0
    local.server.engine.release.set()
    assert state_of(await local.chat(model=MODEL)) == "miss"


async def test_a_request_that_waits_and_leaves_ends_at_once(local: Cached) -> None:
    leader, follower = await asked(local, 2)
    follower.cancel()
    with pytest.raises(asyncio.CancelledError):
        await follower
    # The leader's row is opened with its answer.
    assert exits(local.server.ledger.pages) == [("none", "client_closed")]
    local.server.engine.release.set()
    assert state_of(await leader) == "miss"


async def test_a_request_that_leads_one_input_and_waits_for_another_ends_when_it_is_left(
    local: Cached,
) -> None:
    """Its own work goes on for others; what it waits for does not."""
    first = asyncio.create_task(local.task("topic", {"input": "a"}))
    await until(lambda: waiting(local) == 1)
    second = asyncio.create_task(local.task("topic", {"inputs": ["b", "a"]}))
    await until(lambda: waiting(local) == 3)
    third = asyncio.create_task(local.task("topic", {"input": "b"}))
    await until(lambda: waiting(local) == 4)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    rows = {(page.request_id, page.index): page for page in local.server.ledger.pages}
    followed = [page for (_, index), page in rows.items() if index == 1]
    assert exits(followed) == [("none", "client_closed")]
    local.server.engine.release.set()
    assert (state_of(await first), state_of(await third)) == ("miss", "hit")
    assert [page.exit is not None for page in local.server.ledger.pages] == [True] * 4
    assert sorted(str(error) for _, error in exits(local.server.ledger.pages)) == [
        "None", "None", "client_closed", "client_closed"
    ]  # fmt: skip


async def test_each_request_has_its_own_deadline(local: Cached) -> None:
    leader, patient = await asked(local, 2)
    hasty = await local.chat(model=MODEL, headers={"x-narrowgate-deadline-s": "0.05"})
    assert_error(hasty, 504, "deadline_exceeded")
    local.server.engine.release.set()
    assert (state_of(await leader), state_of(await patient)) == ("miss", "hit")


async def test_a_call_goes_on_for_the_others_after_the_leaders_deadline(
    chats: Cached, provider: ProviderServer
) -> None:
    """One paid call for all; the leader, and one who waits, are answered at their own deadlines."""
    provider.script.next(Fault("slow", delay_s=3.0))
    hasty = {"x-narrowgate-deadline-s": "1"}
    leader = asyncio.create_task(chats.chat(headers=hasty))
    await until(lambda: waiting(chats) == 1)
    patient = [asyncio.create_task(chats.chat()) for _ in range(2)]
    brief = asyncio.create_task(chats.chat(headers={"x-narrowgate-deadline-s": "1.2"}))
    assert_error(await leader, 504, "deadline_exceeded")
    assert_error(await brief, 504, "deadline_exceeded")
    assert not provider.script.seen[0].completed
    answers = await asyncio.gather(*patient)
    assert [state_of(answer) for answer in answers] == ["hit", "hit"]
    assert len(provider.script.seen) == 1
    pages = chats.server.ledger.pages
    assert sorted(map(str, exits(pages))) == sorted(
        map(str, [("none", "deadline_exceeded")] * 2 + [("cache", None)] * 2)
    )
    (paid,) = (page for page in pages if page.calls)
    assert paid.exit is not None
    assert paid.exit.error == "deadline_exceeded"
    assert paid.exit.usage is not None


async def test_a_streams_call_goes_on_after_the_leaders_deadline(
    chats: Cached, provider: ProviderServer
) -> None:
    provider.script.answer = lambda seen: Reply("one two three four five six")
    provider.script.next(Fault("slow", delay_s=0.4))
    hasty = {"x-narrowgate-deadline-s": "1"}
    leader = asyncio.create_task(chats.chat(headers=hasty, stream=True))
    await until(lambda: waiting(chats) == 1)
    patient = await chats.chat()
    assert "deadline_exceeded" in (await leader).text
    assert (state_of(patient), text_of(patient)) == ("hit", "one two three four five six")
    assert len(provider.script.seen) == 1


async def test_a_call_ends_with_the_last_who_waits(chats: Cached, provider: ProviderServer) -> None:
    """The deadline of one who left does not keep the call."""
    provider.script.next(Fault("hang"))
    hasty = {"x-narrowgate-deadline-s": "1"}
    leader = asyncio.create_task(chats.chat(headers=hasty))
    await until(lambda: waiting(chats) == 1)
    patient = asyncio.create_task(chats.chat())
    await until(lambda: waiting(chats) == 2)
    patient.cancel()
    await asyncio.gather(patient, return_exceptions=True)
    assert_error(await leader, 504, "deadline_exceeded")
    assert len(chats.service.flights) == 0
    assert chats.server.context.frontier_admission.active == 0
    rows = {str(row) for row in exits(chats.server.ledger.pages)}
    assert rows == {"('none', 'deadline_exceeded')", "('none', 'client_closed')"}


async def test_a_tasks_work_goes_on_after_the_leaders_deadline(local: Cached) -> None:
    hasty = {"input": "a", "deadline_s": 1, "route": "local_only"}
    leader = asyncio.create_task(local.task("topic", hasty))
    await until(lambda: waiting(local) == 1)
    patient = asyncio.create_task(local.task("topic", {"input": "a", "route": "local_only"}))
    await until(lambda: waiting(local) == 2)
    assert_error(await leader, 504, "deadline_exceeded")
    local.server.engine.release.set()
    assert state_of(await patient) == "hit"


async def test_a_providers_error_is_shared_and_not_kept(
    chats: Cached, provider: ProviderServer
) -> None:
    provider.script.on("gpt-4.1", Fault("status", 400, "invalid", "no such thing"))
    answers = await asyncio.gather(*(chats.chat() for _ in range(3)))
    assert {answer.status_code for answer in answers} == {400}
    rows = exits(chats.server.ledger.pages)
    assert {error for _, error in rows} == {"frontier_rejected_request"}
    assert len(rows) == 3
    provider.script.reset()
    provider.script.answer = lambda seen: Reply("Fine.")
    assert state_of(await chats.chat()) == "miss"


async def test_an_answer_that_must_not_be_kept_is_not_shared(
    chats: Cached, provider: ProviderServer
) -> None:
    provider.script.answer = lambda seen: Reply("Half of", finish="length")
    answers = await asyncio.gather(*(chats.chat() for _ in range(3)))
    assert [state_of(answer) for answer in answers] == ["miss"] * 3
    assert len(provider.script.seen) == 3


@pytest.mark.parametrize("after_bodies", [0, 1, 2])
async def test_a_stream_that_was_left_early_is_not_kept(
    chats: Cached, provider: ProviderServer, after_bodies: int
) -> None:
    provider.script.answer = lambda seen: Reply("one two three four " * 50)
    provider.script.next(Fault("slow", delay_s=0.02))
    await hang_up(chats.server, chat_body(OPENAI, stream=True), after_bodies)
    await until(lambda: len(chats.service.flights) == 0)
    (page,) = chats.server.ledger.pages
    assert exits([page]) == [("none", "client_closed")]
    assert await chats.entries() == []
    assert chats.server.context.frontier_admission.active == 0


async def test_a_stream_that_its_client_left_goes_on_for_one_who_waits(
    chats: Cached, provider: ProviderServer
) -> None:
    provider.script.answer = lambda seen: Reply("one two three four")
    provider.script.next(Fault("slow", delay_s=0.05))
    leaving = asyncio.create_task(hang_up(chats.server, chat_body(OPENAI, stream=True), 1))
    await until(lambda: waiting(chats) == 1)
    body = chat_body(OPENAI)
    found = await chats.server.post(CHAT, json=body)
    await leaving
    assert (state_of(found), text_of(found)) == ("hit", "one two three four")
    assert len(provider.script.seen) == 1
    await until(lambda: all(page.exit for page in chats.server.ledger.pages))
    assert sorted(map(str, exits(chats.server.ledger.pages))) == sorted(
        map(str, [("none", "client_closed"), ("cache", None)])
    )


async def test_a_refresh_does_not_wait_for_an_earlier_request(local: Cached) -> None:
    (leader,) = await asked(local, 1)
    refresh = {"x-narrowgate-cache": "refresh"}
    other = asyncio.create_task(local.chat(model=MODEL, headers=refresh))
    await until(lambda: len(local.server.engine.bodies) == 2)
    local.server.engine.release.set()
    assert {state_of(await leader), state_of(await other)} == {"miss"}


async def test_a_defect_while_others_wait_leaves_no_flight(
    local: Cached, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*_: Any) -> Any:
        raise RuntimeError("a defect")

    local.server.engine.openai = broken  # type: ignore[method-assign]
    answers = await asyncio.gather(*(local.chat(model=MODEL) for _ in range(2)))
    assert {answer.status_code for answer in answers} == {500}
    assert len(local.service.flights) == 0
    assert "cache.work_failed" in caplog.text
    rows = exits(local.server.ledger.pages)
    assert rows == [("none", "internal_error")] * 2


async def test_a_lookup_that_began_before_the_entry_was_written_finds_it(local: Cached) -> None:
    local.server.engine.release.set()
    find = local.service.find
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def slow(keys: Sequence[str]) -> Any:
        found = await find(keys)
        begun.set()
        await goes_on.wait()
        return found

    local.service.find = slow  # type: ignore[method-assign]
    late = asyncio.create_task(local.chat(model=MODEL))
    await begun.wait()
    local.service.find = find  # type: ignore[method-assign]
    assert state_of(await local.chat(model=MODEL)) == "miss"
    assert len(await local.entries()) == 1
    goes_on.set()
    assert state_of(await late) == "hit"
    assert len(local.server.engine.bodies) == 1


async def test_a_deleted_answer_is_not_shared_any_more(local: Cached) -> None:
    local.server.engine.release.set()
    await local.chat(model=MODEL)
    assert (await local.server.client.delete("/v1/cache")).json() == {"deleted": 1}
    assert state_of(await local.chat(model=MODEL)) == "miss"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat_body(MODEL)),
        (CHAT, chat_body(MODEL, stream=True)),
        ("/v1/tasks/topic", {"inputs": ["a", "b", "a"]}),
    ],
    ids=["whole", "streamed", "task"],
)
async def test_a_client_that_leaves_at_any_await_leaves_its_rows_and_nothing_else(
    local: Cached, path: str, body: dict[str, Any]
) -> None:
    local.server.engine.release.set()
    inputs = len(body.get("inputs", "x"))
    is_over = False
    steps = 0
    while not is_over:
        steps += 1
        local.server.ledger.pages.clear()
        await local.service.delete(EVERY_ENTRY)
        sent = asyncio.create_task(local.server.post(path, json=body))
        for _ in range(steps):
            await asyncio.sleep(0)
        is_over = sent.done()
        begun = len(local.service.flights) > 0
        sent.cancel()
        await asyncio.gather(sent, return_exceptions=True)
        pages = local.server.ledger.pages
        assert all(page.exit is not None for page in pages), steps
        assert len(pages) in ((inputs,) if begun else (0, inputs)), steps
        await until(lambda: local.server.context.local_admission.active == 0)
    assert steps > 5
