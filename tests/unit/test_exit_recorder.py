"""Every input has one row with its attempts, its costs and its tenant."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from serving.contracts.errors import BudgetExceeded, FrontierUnavailable, LedgerUnavailable
from serving.contracts.ledger import DEFAULT_TENANT

from .chat_kit import CHAT, SENTIMENT, chat_body, hang_up, labelled, replying
from .memory_ledger import COST, LOCAL_COST
from .scripted import MODEL, Server, assert_error


@pytest.fixture(autouse=True)
def _answers(server: Server) -> None:
    server.frontier.reply = labelled


async def test_a_local_answer_costs_its_share_of_the_replica(server: Server) -> None:
    answer = (await server.post("/v1/tasks/topic", json={"input": "A text."})).json()
    assert answer["cost_usd"] == str(LOCAL_COST)
    (page,) = server.ledger.pages
    assert page.exit is not None
    assert page.exit.replica_s is not None
    assert (page.caller.tenant, page.endpoint, page.task) == (DEFAULT_TENANT, "task", "topic")


async def test_an_escalated_answer_costs_the_attempt_before_it_too(
    server: Server,
) -> None:
    answer = (await server.post(SENTIMENT, json={"input": "Well."})).json()
    assert Decimal(answer["cost_usd"]) == COST + LOCAL_COST
    (page,) = server.ledger.pages
    assert page.exit is not None
    assert page.exit.replica_s is None
    (attempt,) = page.exit.attempts
    assert (attempt.model, attempt.error) == (MODEL, "below_threshold")
    assert attempt.replica_s is not None


async def test_each_input_of_a_request_has_its_own_page(server: Server) -> None:
    sent = await server.post(SENTIMENT, json={"inputs": ["Well.", "", "So."]})
    costs = [item["answer"] and item["answer"]["cost_usd"] for item in sent.json()["results"]]
    assert costs[1] is None
    pages = sorted(server.ledger.pages, key=lambda page: page.index)
    assert [page.index for page in pages] == [0, 1, 2]
    assert [len(page.calls) for page in pages] == [1, 0, 1]
    assert len({page.request_id for page in server.ledger.pages}) == 1


async def test_a_paid_answer_of_no_use_is_paid_all_the_same(server: Server) -> None:
    server.frontier.reply = replying("no JSON at all")
    await server.post(SENTIMENT, json={"input": "Well."})
    (page,) = server.ledger.pages
    (call,) = page.calls
    assert call.cost_usd == COST
    assert page.exit is not None
    assert page.exit.error == "frontier_invalid_response"


async def test_a_budget_refuses_one_input_and_not_the_others(server: Server) -> None:
    server.ledger.refuse.append(BudgetExceeded("the budget of the day is spent"))
    sent = await server.post(SENTIMENT, json={"inputs": ["Well.", "So."]})
    first, second = sent.json()["results"]
    assert first["error"]["code"] == "budget_exceeded"
    assert second["answer"]["route"] == "frontier"
    kept = await server.post(SENTIMENT, json={"input": "Well.", "route": "local_only"})
    assert kept.json()["route"] == "local"


async def test_a_budget_refuses_a_chat_with_the_reason(server: Server) -> None:
    server.frontier.reply = replying("An answer.")
    for stream in (False, True):
        server.ledger.refuse.append(BudgetExceeded("the budget of the day is spent"))
        refused = await server.post(CHAT, json=chat_body("auto", stream=stream))
        assert_error(refused, 429, "budget_exceeded")
        assert refused.headers["x-should-retry"] == "false"
    assert [page.exit and page.exit.error for page in server.ledger.pages] == [
        "budget_exceeded"
    ] * 2
    assert server.context.frontier_admission.active == 0


async def test_without_a_ledger_no_call_is_paid_and_narrow_requests_are_answered(
    server: Server,
) -> None:
    server.ledger.refuse += [LedgerUnavailable("no books")] * 2
    server.frontier.reply = replying("An answer.")
    assert_error(await server.post(CHAT, json=chat_body("auto")), 503, "ledger_unavailable")
    server.frontier.reply = labelled
    assert_error(await server.post(SENTIMENT, json={"input": "x"}), 503, "ledger_unavailable")
    assert (await server.post("/v1/tasks/topic", json={"input": "x"})).status_code == 200


async def test_a_chat_has_its_cost_in_a_header(server: Server) -> None:
    server.frontier.reply = replying("An answer.")
    answered = await server.post(CHAT, json=chat_body("auto"))
    assert Decimal(answered.headers["x-narrowgate-cost-usd"]) == COST
    local = await server.post(CHAT, json=chat_body(MODEL))
    assert Decimal(local.headers["x-narrowgate-cost-usd"]) == LOCAL_COST


async def test_a_stream_is_settled_when_it_ends(server: Server) -> None:
    server.frontier.reply = replying("one two three")
    answered = await server.post(CHAT, json=chat_body("auto", stream=True))
    assert answered.text.endswith("data: [DONE]\n\n")
    assert "x-narrowgate-cost-usd" not in answered.headers
    (page,) = server.ledger.pages
    assert page.exit is not None
    assert page.exit.error is None
    assert page.calls[0].end is not None
    assert page.calls[0].end.outcome == "ok"


@pytest.mark.parametrize("model", ["auto", MODEL])
@pytest.mark.parametrize("after_bodies", [0, 1])
async def test_a_client_that_leaves_has_its_call_closed_and_its_page_too(
    server: Server,
    model: str,
    after_bodies: int,
) -> None:
    server.frontier.reply = replying("one two three")
    await hang_up(server, chat_body(model, stream=True), after_bodies)
    (page,) = server.ledger.pages
    assert page.exit is not None
    assert page.exit.error == "client_closed"
    assert all(call.end is not None for call in page.calls)
    assert len(page.calls) == (model == "auto")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat_body(MODEL)),
        (CHAT, chat_body("task/topic")),
        ("/v1/completions", {"model": MODEL, "prompt": ["a", "b"]}),
        ("/v1/tasks/topic", {"inputs": ["a", "b"]}),
    ],
)
async def test_a_client_that_leaves_before_a_whole_local_answer_has_its_replica_time_recorded(
    server: Server, path: str, body: dict[str, Any]
) -> None:
    server.engine.release.clear()
    request = asyncio.create_task(server.post(path, json=body))
    while not server.context.local_admission.active:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert server.ledger.pages
    for page in server.ledger.pages:
        assert page.exit is not None
        assert (page.exit.error, page.exit.model) == ("client_closed", MODEL)
        assert page.exit.replica_s is not None
        assert page.exit.replica_s > 0
    assert server.context.local_admission.active == 0


async def test_a_failed_provider_leaves_a_page_as_well(server: Server) -> None:
    server.frontier.reply = lambda call: FrontierUnavailable("down")
    await server.post(CHAT, json=chat_body("auto"))
    (page,) = server.ledger.pages
    assert page.exit is not None
    assert page.exit.error == "frontier_unavailable"
