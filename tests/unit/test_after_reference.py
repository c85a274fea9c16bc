"""Chats whose reference fails while a claim is being earned, whole and streamed, over HTTP."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from serving.contracts.evidence import ClaimEvent
from serving.contracts.task_spec import TaskSpec
from serving.ledger.database import Database

from ..provider.script import Fault
from ..provider.server import ProviderServer
from .chat_kit import CHAT
from .evidence_kit import AT
from .memory_ledger import Page
from .reading_kit import (
    LOCAL,
    REFERENCE,
    RIGHT,
    SETTINGS,
    ReadingServer,
    Reference,
    readings,
)

FALLS_BACK = SETTINGS.model_copy(update={"when_reference_fails": "local"})
NEVER_BEGINS = Fault("status", 500)
BREAKS_BEFORE_CONTENT = Fault("error_event", after_events=1)
BREAKS_AFTER_CONTENT = Fault("error_event", after_events=3)
PROSE = "The topic is politics"
Started = Callable[..., Any]


@pytest.fixture
async def start(
    specs: dict[str, TaskSpec], provider: ProviderServer, database: Database
) -> AsyncIterator[Started]:
    """Yield what starts a replica."""
    async with AsyncExitStack() as stack:

        async def started(settings: Any = FALLS_BACK) -> ReadingServer:
            made = readings(specs, provider, database, Reference(), settings)
            return await stack.enter_async_context(made)

        yield started


async def post(
    found: ReadingServer, *, stream: bool, text: str = RIGHT.format(1), model: str = "auto"
) -> Any:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "stream": stream}
    return await found.server.post(CHAT, json=body)


def events(response: Any) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def text_of(response: Any, *, stream: bool) -> str:
    if not stream:
        return str(response.json()["choices"][0]["message"]["content"])
    parts = [part for event in events(response) for part in event.get("choices", ())]
    return "".join(part["delta"].get("content") or "" for part in parts)


def client_page(found: ReadingServer) -> Page:
    return [page for page in found.server.ledger.pages if page.endpoint == "chat"][-1]


async def suspend(found: ReadingServer, shortcut: str) -> None:
    event = ClaimEvent(found.claim(shortcut).id, "suspended", "by a test", "narrowgate", AT, 0)
    found.evidence.store.append(events=[event])
    await found.settle()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("earned", [("local_task",), ("narrow_reading",)])
async def test_the_local_model_answers_a_chat_whose_reference_fails(
    start: Started, provider: ProviderServer, earned: tuple[str], *, stream: bool
) -> None:
    """Whichever of both claims is still being earned, and sent the chat to the reference."""
    found = await start()
    await found.earn(*earned)
    provider.script.on("*", NEVER_BEGINS)
    response = await post(found, stream=stream)
    assert response.status_code == 200, response.text
    assert text_of(response, stream=stream) == LOCAL
    assert response.headers["x-narrowgate-route"] == "local"
    assert "suite" in response.headers["x-narrowgate-guarantee"]
    exit_ = client_page(found).exit
    assert exit_ is not None
    assert (exit_.route, exit_.evidence, exit_.claim) == ("local", "suite", None)
    failed = [(attempt.model, attempt.error) for attempt in exit_.attempts]
    assert set(failed) == {(REFERENCE, "frontier_unavailable")}
    await found.settle()
    audits = [one for name in earned for one in found.audits(name) if one.text == "local"]
    assert audits == []


@pytest.mark.parametrize("earned", [("local_task",), ("narrow_reading",)])
async def test_a_stream_that_breaks_before_its_content_is_answered_locally(
    start: Started, provider: ProviderServer, earned: tuple[str]
) -> None:
    found = await start()
    await found.earn(*earned)
    provider.script.on("*", BREAKS_BEFORE_CONTENT)
    response = await post(found, stream=True)
    assert (response.status_code, text_of(response, stream=True)) == (200, LOCAL)
    assert "error" not in response.text
    page = client_page(found)
    assert page.exit is not None
    assert page.exit.route == "local"
    # What the call used before it broke is in the ledger and in the tokens of the metrics.
    (call,) = page.calls
    assert call.end is not None
    assert call.end.outcome == "frontier_stream_broken"
    (attempt,) = page.exit.attempts
    assert (attempt.model, attempt.error) == (REFERENCE, "frontier_stream_broken")
    assert attempt.usage is not None
    assert page.most_usd == (call.cost_usd or call.worst_case_usd)


@pytest.mark.parametrize("setting", ["refuse", "local"])
async def test_a_stream_that_breaks_behind_its_content_ends_with_an_error(
    start: Started, provider: ProviderServer, setting: str
) -> None:
    found = await start(SETTINGS.model_copy(update={"when_reference_fails": setting}))
    await found.earn("local_task")
    reference = provider.script.answer
    assert isinstance(reference, Reference)
    reference.chat = PROSE
    provider.script.on("*", BREAKS_AFTER_CONTENT)
    response = await post(found, stream=True)
    assert response.headers["x-narrowgate-route"] == "frontier"
    *sent, last = events(response)
    assert last["error"]["code"] == "frontier_stream_broken"
    assert PROSE.startswith(
        "".join(part["delta"].get("content") or "" for one in sent for part in one["choices"])
    )
    assert LOCAL not in response.text
    exit_ = client_page(found).exit
    assert exit_ is not None
    assert (exit_.route, exit_.error) == ("none", "frontier_stream_broken")


@pytest.mark.parametrize(("fault", "status"), [(NEVER_BEGINS, 503), (BREAKS_BEFORE_CONTENT, 200)])
async def test_a_stream_ends_with_the_reference_s_error_where_it_must_not_fall_back(
    start: Started, provider: ProviderServer, fault: Fault, status: int
) -> None:
    found = await start(SETTINGS)
    await found.earn("local_task")
    provider.script.on("*", fault)
    response = await post(found, stream=True)
    assert response.status_code == status
    assert "error" in response.text
    assert LOCAL not in response.text
    exit_ = client_page(found).exit
    assert exit_ is not None
    assert exit_.route == "none"


async def test_a_stream_of_the_reference_arrives_whole(
    start: Started, provider: ProviderServer
) -> None:
    found = await start()
    await found.earn("local_task")
    reference = provider.script.answer
    assert isinstance(reference, Reference)
    reference.chat = PROSE
    response = await post(found, stream=True)
    assert text_of(response, stream=True) == PROSE
    await found.settle()
    # It is evidence as before: the answer of the client was compared.
    assert found.audits()[-1].origin == "shadow"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_named_task_falls_back(
    start: Started, provider: ProviderServer, *, stream: bool
) -> None:
    found = await start()
    provider.script.on("*", NEVER_BEGINS)
    response = await post(found, stream=stream, text="The parliament met.", model="task/topic")
    assert (response.status_code, text_of(response, stream=stream)) == (200, LOCAL)
    exit_ = client_page(found).exit
    assert exit_ is not None
    assert {attempt.error for attempt in exit_.attempts} == {"frontier_unavailable"}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ended", ["narrow_reading", "local_task"])
async def test_after_a_claim_was_suspended_the_local_answer_has_no_guarantee(
    start: Started, provider: ProviderServer, ended: str, *, stream: bool
) -> None:
    """Its traffic has shown more errors than the attested suite: it counts as no saving."""
    found = await start()
    await found.earn()
    await suspend(found, ended)
    provider.script.on("*", NEVER_BEGINS)
    response = await post(found, stream=stream)
    assert (response.status_code, text_of(response, stream=stream)) == (200, LOCAL)
    exit_ = client_page(found).exit
    assert exit_ is not None
    assert (exit_.route, exit_.guaranteed, exit_.evidence) == ("local", False, "none")
