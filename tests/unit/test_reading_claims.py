"""Chats that were read as a task, under a claim on their reading, over HTTP."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text as sql

from serving.contracts.evidence import ClaimEvent, ClaimState
from serving.contracts.task_spec import TaskSpec
from serving.evidence.store import EvidenceOwner
from serving.ledger.database import Database

from ..provider.script import Fault
from ..provider.server import ProviderServer
from .cache_kit import cached
from .evidence_kit import AT
from .reading_kit import (
    LOCAL,
    REFERENCE,
    RIGHT,
    SETTINGS,
    WRONG,
    ReadingServer,
    Reference,
    readings,
)

OTHER = "Sports"
NEVER = {"x-narrowgate-audit": "never"}
Started = Callable[..., Any]


@pytest.fixture
def reference() -> Reference:
    return Reference()


@pytest.fixture
async def start(
    specs: dict[str, TaskSpec], provider: ProviderServer, database: Database, reference: Reference
) -> AsyncIterator[Started]:
    """Yield what starts a replica."""
    async with AsyncExitStack() as stack:

        async def started(settings: Any = SETTINGS, **more: Any) -> ReadingServer:
            made: AbstractAsyncContextManager[ReadingServer] = readings(
                specs, provider, database, reference, settings, **more
            )
            return await stack.enter_async_context(made)

        yield started


def content(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


def way(answer: Any) -> tuple[str, str]:
    headers = answer.headers
    return headers["x-narrowgate-route"], headers["x-narrowgate-reason"]


async def test_a_wrong_reading_is_found_and_withdraws_itself(
    start: Started, reference: Reference
) -> None:
    """The task's own audits agree on every wrong answer: both sides answer the wrong question."""
    found = await start()
    await found.earn()
    wrong: list[str] = []
    for number in range(40):
        response = await found.post(WRONG.format(number))
        await found.settle()
        if way(response)[0] != "local":
            break
        wrong.append(content(response.json()))
    assert wrong == [LOCAL] * len(wrong)
    assert 1 <= len(wrong) < 20
    audits = [one for one in found.audits() if one.origin == "accepted"]
    assert [(one.verdict, one.loss) for one in audits] == [("different", 1.0)] * len(wrong)
    assert found.claim().state is ClaimState.SUSPENDED
    # The reference got each chat as it came, and nothing else.
    asked = [seen.body["messages"] for seen in reference.of("chat")][1 : len(wrong) + 1]
    sent = [[{"role": "user", "content": WRONG.format(n)}] for n in range(len(wrong))]
    assert asked == sent
    # What only the task's claim sees is in order, and inputs that name the task stay local.
    task = found.claim("local_task")
    assert (task.state, task.observed_error) == (ClaimState.HELD, 0.0)
    named = await found.post("The parliament met.", "task/topic")
    assert way(named) == ("local", "narrow")
    for chat in (WRONG, RIGHT):
        assert way(await found.post(chat.format("later"))) == ("frontier", "shadow")


async def test_a_chat_waits_for_the_claim_on_its_reading(
    start: Started, reference: Reference
) -> None:
    found = await start()
    response = await found.post(RIGHT.format(1))
    await found.settle()
    assert way(response) == ("frontier", "shadow")
    (row,) = found.audits()
    assert (row.origin, row.verdict, row.loss, row.reference) == ("shadow", "same", 0.0, REFERENCE)
    assert found.claim().scope.subject == "reading/topic"
    assert found.claim().scope.shortcuts == ("local_task", "narrow_reading")
    await found.earn()
    response = await found.post(RIGHT.format(2))
    assert way(response) == ("local", "narrow")
    guarantee = response.json()["narrowgate"]["guarantee"]
    assert guarantee["claim"] == found.claim("local_task").id
    assert guarantee["reading"]["claim"] == found.claim().id
    assert (guarantee["target_error"], guarantee["reading"]["target_error"]) == (0.2, 0.05)


async def test_the_task_alone_does_not_open_the_way(
    start: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await start()
    await found.earn("local_task")
    seen: list[Any] = []
    monkeypatch.setattr(found.evidence.evidence.drift, "observe", lambda *args: seen.append(args))
    response = await found.post(RIGHT.format(1))
    assert way(response) == ("frontier", "shadow")
    # Nor does the chat count as one that the task's own claim did not cover.
    assert seen == []
    await found.settle()
    assert found.audits()[-1].origin == "shadow"


@pytest.mark.parametrize(("setting", "status"), [("refuse", 503), ("local", 200)])
async def test_while_it_is_earned_and_the_reference_fails(
    start: Started, provider: ProviderServer, setting: str, status: int
) -> None:
    found = await start(SETTINGS.model_copy(update={"when_reference_fails": setting}))
    await found.earn("local_task")
    provider.script.on("*", Fault("status", 500))
    body = {"model": "auto", "messages": [{"role": "user", "content": RIGHT.format(1)}]}
    response = await found.server.post("/v1/chat/completions", json=body)
    assert response.status_code == status, response.text
    if status == 200:
        assert content(response.json()) == LOCAL
        assert response.json()["narrowgate"]["guarantee"]["evidence"] == "suite"


async def test_wrong_readings_in_shadow_are_never_earned(start: Started) -> None:
    found = await start()
    for number in range(3):
        await found.ask(WRONG.format(number))
    assert [(one.origin, one.loss) for one in found.audits()] == [("shadow", 1.0)] * 3


async def test_an_error_of_the_local_model_is_not_one_of_the_reading(
    start: Started, reference: Reference
) -> None:
    found = await start()
    await found.earn()
    reference.label = OTHER
    answer = await found.ask(RIGHT.format(1))
    assert content(answer) == LOCAL
    audit = found.audits()[-1]
    assert (audit.origin, audit.verdict, audit.loss) == ("accepted", "same", 0.0)
    task = found.audits("local_task")[-1]
    assert (task.origin, task.verdict, task.loss) == ("accepted", "different", 1.0)


async def test_prose_around_a_label_is_for_the_judge(start: Started, reference: Reference) -> None:
    found = await start()
    await found.earn()
    reference.chat = f"The topic of the text is {LOCAL}, since a parliament is a political body."
    for verdict, loss in (("equal", 0.0), ("first_is_weaker", 0.0), ("no verdict", 1.0)):
        reference.verdict, before = verdict, len(reference.of("judge"))
        await found.ask(RIGHT.format(verdict))
        audit = found.audits()[-1]
        # `first_is_weaker` in both orders prefers neither answer.
        assert (verdict, audit.loss) == (verdict, loss)
        assert len(reference.of("judge")) > before
    assert audit.verdict == "missing"


async def test_a_client_s_own_words_are_the_labels(start: Started, reference: Reference) -> None:
    found = await start()
    await found.earn()
    found.router.labels = {LOCAL: "foreign news", OTHER: "games"}
    reference.chat = "**Foreign news.**"
    answer = await found.ask(RIGHT.format(1))
    assert (content(answer), found.audits()[-1].loss) == ("foreign news", 0.0)
    assert reference.of("judge") == []


async def test_a_streamed_chat_is_evidence_once_it_has_ended(start: Started) -> None:
    found = await start()
    response = await found.post(WRONG.format(1), stream=True)
    await found.settle()
    assert "narrowgate" not in response.text.split("\n")[0]
    assert [(one.origin, one.loss) for one in found.audits()] == [("shadow", 1.0)]


async def test_what_comparing_costs_is_an_audit_within_the_budget(
    start: Started, reference: Reference
) -> None:
    found = await start()
    await found.earn()
    before = len(found.server.ledger.pages)
    await found.ask(WRONG.format(1))
    pages = found.server.ledger.pages[before:]
    purposes = [(page.endpoint, page.exit.reason) for page in pages if page.exit is not None]
    # The chat; the task for its own audit; the chat, its task and both orders of the judge.
    assert sorted(purposes) == sorted(
        [("chat", "narrow"), ("audit", "audit"), ("audit", "audit"), ("audit", "audit"),
         ("audit", "judge"), ("audit", "judge")]
    )  # fmt: skip
    audit = found.audits()[-1]
    # Four calls of 25 cents each.
    assert audit.cost_usd == 1


async def test_without_a_budget_nothing_is_asked_and_the_claim_ends(
    start: Started, reference: Reference
) -> None:
    found = await start()
    await found.earn()
    counts = found.evidence.evidence.counts
    counts.spent_today = type(counts.spent_today)(today_usd=SETTINGS.max_usd_a_day)
    asked = len(reference.asked)
    await found.ask(WRONG.format(1))
    assert found.audits()[-1].verdict == "dropped"
    assert len(reference.asked) == asked
    later = found.audits()[-1].judged_at + timedelta(hours=SETTINGS.max_silence_h + 1)
    found.evidence.worker._now = lambda: later
    await found.settle()
    assert found.claim().state is ClaimState.SUSPENDED


async def test_a_chat_that_may_not_leave_is_not_sent(start: Started, reference: Reference) -> None:
    found = await start()
    await found.earn()
    asked = len(reference.asked)
    response = await found.post(WRONG.format("secret"), headers=NEVER)
    await found.settle()
    assert way(response)[0] == "local"
    assert len(reference.asked) == asked
    event = ClaimEvent(found.claim().id, "suspended", "by a test", "narrowgate", AT, 0)
    found.evidence.store.append(events=[event])
    await found.settle()
    # What others' chats have shown holds for it, too: the reference answers the client.
    assert way(await found.post(WRONG.format("secret"), headers=NEVER))[0] == "frontier"


async def test_no_word_of_a_chat_is_stored(start: Started, database: Database) -> None:
    found = await start()
    await found.earn()
    await found.ask(WRONG.format("Xylophon"))
    await found.ask(WRONG.format("Xylophon"), headers={"x-narrowgate-user": "u1"})
    with database.read() as connection:
        tables = connection.execute(sql("select name from sqlite_master where type = 'table'"))
        stored = [
            str(row)
            for table in tables.scalars().all()
            for row in connection.execute(sql(f"select * from {table}"))  # noqa: S608
        ]
    assert len(stored) > 100
    assert not [row for row in stored if "Xylophon" in row or "parliament" in row]
    found.evidence.store.delete(EvidenceOwner("default", end_user="u1"), "test")
    await found.settle()
    assert "u1" not in {one.end_user for one in found.audits()}


async def test_a_withdrawn_reading_stays_at_the_reference(start: Started) -> None:
    found = await start()
    await found.earn()
    event = ClaimEvent(found.claim().id, "withdrawn", "by a person", "k", AT, 0)
    found.evidence.store.append(events=[event])
    await found.settle()
    assert way(await found.post(RIGHT.format(1))) == ("frontier", "withdrawn")
    headers = {"x-narrowgate-route": "local_only"}
    body = {"model": "auto", "messages": [{"role": "user", "content": RIGHT.format(1)}]}
    refused = await found.server.post("/v1/chat/completions", json=body, headers=headers)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "claim_withdrawn")
    assert "task/topic" in refused.json()["error"]["fix"]


async def test_targets_beyond_the_cap_stay_at_the_reference(start: Started) -> None:
    found = await start(target_error=0.2)
    await found.ask(RIGHT.format(1))
    assert [one.shortcut for one in found.evidence.snapshot.all()] == ["local_task"]
    assert way(await found.post(RIGHT.format(2))) == ("frontier", "shadow")


async def test_a_cached_answer_ends_with_the_claim_on_its_reading(
    start: Started, database: Database
) -> None:
    found = await start()
    await found.earn()
    evidence, claims = found.evidence.evidence, found.readings.claims
    async with cached(found.server, database, evidence, readings=claims):
        await found.ask(WRONG.format(1), temperature=0)
        assert way(await found.post(WRONG.format(1), temperature=0)) == ("cache", "cached")
        event = ClaimEvent(found.claim().id, "suspended", "by a test", "narrowgate", AT, 0)
        found.evidence.store.append(events=[event])
        await found.settle()
        response = await found.post(WRONG.format(1), temperature=0)
        assert way(response) == ("frontier", "shadow")
        assert content(response.json()).startswith("Dear editor")


async def test_a_chat_found_wrong_twice_goes_to_the_reference(start: Started) -> None:
    found = await start(SETTINGS.model_copy(update={"alarm": 1e9}))
    await found.earn()
    ways = []
    for _ in range(3):
        response = await found.post(WRONG.format("the same"))
        await found.settle()
        ways.append(way(response)[0])
    assert found.claim().state is ClaimState.HELD
    assert ways == ["local", "local", "frontier"]
    assert way(await found.post(RIGHT.format("another")))[0] == "local"


async def test_deterministic_requests_use_no_claim(start: Started) -> None:
    found = await start()
    response = await found.post(RIGHT.format(1), deterministic=True)
    await found.settle()
    assert way(response)[0] == "local"
    assert found.evidence.snapshot.all() == ()
