"""Tasks under claims, over HTTP: each cell of the table of states, consent, and the evidence."""

import json
from datetime import timedelta
from typing import Any

import pytest

from serving.contracts.errors import (
    FrontierInvalidResponse,
    FrontierUnavailable,
    NarrowgateError,
)
from serving.contracts.evidence import ClaimEvent, ClaimState
from serving.contracts.frontier import FrontierCall
from serving.contracts.ledger import Tenant
from serving.contracts.task_spec import TaskSpec
from serving.ledger.database import Database
from serving.tasks.grant import Grant

from .attested import result
from .evidence_kit import AT, EARLY, REFERENCE, EvidenceServer, audit, opening
from .scripted import assert_error

CHAT = "/v1/chat/completions"
# The scripted engine is as sure of its answer: 0.77, mapped to 0.95 by the attested map.
LABEL, OTHER = "World", "Sports"


def says(label: str = LABEL) -> Any:
    return lambda call: json.dumps({"label": label})


@pytest.fixture
def grants(specs: dict[str, TaskSpec]) -> dict[str, Grant]:
    return {"topic": Grant(result(specs["topic"]), "sha256:abc", None)}


@pytest.fixture
def build(specs: dict[str, TaskSpec], database: Database, grants: dict[str, Grant]) -> Any:
    def made(reply: Any = None, settings: Any = EARLY, **changes: Any) -> EvidenceServer:
        return EvidenceServer(
            specs, database, changes.pop("grants", grants), settings, reply, **changes
        )

    return made


async def bring(found: EvidenceServer, state: ClaimState) -> str:
    """Bring the claim on `topic` into a state by the rows that lead to it; return its id."""
    await found.ready()
    await found.ask("the first input")
    await found.settle()
    name = found.claim.id
    events = {
        ClaimState.WITHDRAWN: [ClaimEvent(name, "withdrawn", "by a test", "k", AT, 0)],
        ClaimState.HELD: [opening(name)],
        ClaimState.SUSPENDED: [opening(name)],
    }.get(state, [])
    found.store.append(events=events)
    if state in (ClaimState.HELD, ClaimState.SUSPENDED):
        # As many as earn it: the last one is the last of its group.
        found.store.append([audit(name, number) for number in range(60)])
    await found.worker.round()
    if state is ClaimState.SUSPENDED:
        end = ClaimEvent(name, "suspended", "by a test", "narrowgate", AT, 0)
        found.store.append(events=[end])
    await found.worker.round()
    assert found.claim.state is state
    return name


@pytest.mark.parametrize(
    ("at", "route", "served", "evidence", "below"),
    [
        (ClaimState.PROVISIONAL, "auto", "frontier", "none", None),
        (ClaimState.PROVISIONAL, "local_only", "local", "suite", False),
        (ClaimState.HELD, "auto", "local", "traffic", False),
        (ClaimState.HELD, "local_only", "local", "suite", False),
        (ClaimState.SUSPENDED, "auto", "frontier", "none", None),
        (ClaimState.WITHDRAWN, "auto", "frontier", "none", None),
    ],
)
async def test_with_a_reference(
    build: Any, at: ClaimState, route: str, served: str, evidence: str, below: bool | None
) -> None:
    found = build(says())
    await bring(found, at)
    response = await found.ask("another input", headers={"x-narrowgate-route": route})
    answer = response.json()
    assert (answer["route"], answer["guarantee"]["evidence"], answer["below_threshold"]) == (
        served, evidence, below
    )  # fmt: skip
    assert response.headers["x-narrowgate-guarantee"].startswith(evidence)


async def test_local_only_under_a_claim_of_its_own(build: Any) -> None:
    """Inputs that may not be audited have a claim apart; suspended or withdrawn counts for them."""
    found = build(says())
    name = await bring(found, ClaimState.WITHDRAWN)
    response = await found.ask("x", headers={"x-narrowgate-route": "local_only"})
    error = assert_error(response, 409, "claim_withdrawn")
    assert name in error["message"]


async def test_local_only_while_suspended_is_uncovered(build: Any) -> None:
    found = build(says())
    await bring(found, ClaimState.SUSPENDED)
    answer = (await found.ask("x", headers={"x-narrowgate-route": "local_only"})).json()
    assert (answer["route"], answer["below_threshold"]) == ("local", True)
    assert answer["guarantee"]["evidence"] == "none"


async def test_without_a_key_the_suite_is_all_there_is(build: Any) -> None:
    found = await build(None).ready()
    response = await found.ask("x")
    guarantee = response.json()["guarantee"]
    assert (guarantee["evidence"], guarantee["target_error"], guarantee["audits"]) == (
        "suite", 0.1, 75
    )  # fmt: skip
    assert guarantee["claim"] is None
    assert response.headers["x-narrowgate-guarantee"] == "suite; target_error=0.1"
    await found.settle()
    assert found.rows() == []


async def test_a_guarantee_says_what_it_rests_on(build: Any) -> None:
    found = build(says())
    name = await bring(found, ClaimState.HELD)
    guarantee = (await found.ask("x")).json()["guarantee"]
    assert (guarantee["claim"], guarantee["reference"]) == (name, REFERENCE)
    assert guarantee["target_error"] == 0.15
    assert guarantee["since"] is not None
    body = {"model": "task/topic", "messages": [{"role": "user", "content": "x"}]}
    chat = await found.server.post(CHAT, json=body)
    assert chat.json()["narrowgate"]["guarantee"]["claim"] == name
    assert chat.headers["x-narrowgate-guarantee"] == f"traffic; target_error=0.15; claim={name}"


async def test_shadow_shows_the_reference_and_records_the_local_answer(build: Any) -> None:
    found = await build(says(OTHER)).ready()
    answer = (await found.ask("x")).json()
    assert (answer["value"], answer["reason"], answer["model"]) == (OTHER, "shadow", REFERENCE)
    await found.settle()
    (row,) = found.audits()
    assert (row.origin, row.coin, row.verdict, row.loss) == ("shadow", 1.0, "different", 1.0)
    assert (row.label, row.served) == (OTHER, LABEL)
    assert [(c.name, c.loss) for c in row.candidates] == [("model", 1.0)]
    # The local work is in the ledger, apart from the client's input.
    assert sorted(page.endpoint for page in found.server.ledger.pages) == ["audit", "task"]
    assert len(found.server.frontier.calls) == 1


async def test_the_reference_is_asked_before_others(build: Any) -> None:
    other = "openai/gpt-6-luna"
    found = await build(says(), reference=other).ready()
    await found.ask("x")
    assert found.server.frontier.calls[0].targets[0] == other
    await found.settle()
    assert found.audits()[0].reference == other


async def test_accepted_answers_are_audited_by_the_coin(build: Any) -> None:
    always = EARLY.model_copy(update={"high_rate": 1.0})
    found = build(says(), always)
    await bring(found, ClaimState.HELD)
    before = len(found.audits())
    calls = len(found.server.frontier.calls)
    answer = (await found.ask("audited")).json()
    assert answer["route"] == "local"
    await found.settle()
    row = found.audits()[-1]
    assert len(found.audits()) == before + 1
    assert (row.origin, row.coin, row.verdict, row.hypothesis) == ("accepted", 1.0, "same", 1)
    assert row.accepted == 1
    call = found.server.frontier.calls[calls]
    assert call.targets == (REFERENCE,)
    assert call.bounds.directive is None
    assert (found.claim.audits, found.claim.observed_error) == (1, 0.0)


async def test_a_rising_error_suspends_and_the_reference_answers_again(build: Any) -> None:
    always = EARLY.model_copy(update={"high_rate": 1.0})
    wrong = False

    def reply(call: FrontierCall) -> str:
        return json.dumps({"label": OTHER if wrong else LABEL})

    found = build(reply, always)
    await bring(found, ClaimState.HELD)
    wrong = True
    routes = []
    for number in range(40):
        routes.append((await found.ask(f"text {number}")).json()["route"])
        await found.settle()
        if found.claim.state is ClaimState.SUSPENDED:
            break
    assert found.claim.state is ClaimState.SUSPENDED
    assert "rose above" in found.claim.reason
    assert set(routes) == {"local"}
    assert (await found.ask("after")).json()["reason"] == "shadow"
    assert [kind for _, kind in found.transitions.seen][-1] == "suspended"


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (FrontierInvalidResponse("no label"), "missing"),
        (FrontierUnavailable("down"), "dropped"),
    ],
)
async def test_no_verdict(build: Any, error: NarrowgateError, verdict: str) -> None:
    always = EARLY.model_copy(update={"high_rate": 1.0})
    failing = False

    def reply(call: FrontierCall) -> str | NarrowgateError:
        return error if failing else json.dumps({"label": LABEL})

    found = build(reply, always)
    await bring(found, ClaimState.HELD)
    failing = True
    await found.ask("x")
    await found.settle()
    row = found.audits()[-1]
    assert row.verdict == verdict
    assert row.loss == (1.0 if verdict == "missing" else None)
    assert found.claim.state is ClaimState.HELD


async def test_a_claim_that_nothing_audits_ends_after_the_longest_silence(build: Any) -> None:
    always = EARLY.model_copy(update={"high_rate": 1.0})
    down = False

    def reply(call: FrontierCall) -> str | NarrowgateError:
        return FrontierUnavailable("down") if down else json.dumps({"label": LABEL})

    found = build(reply, always)
    await bring(found, ClaimState.HELD)
    found.now += timedelta(hours=20)
    await found.worker.round()
    # Without inputs no audit was due.
    assert found.claim.state is ClaimState.HELD
    down = True
    await found.ask("x")
    await found.settle()
    found.now += timedelta(hours=5)
    await found.worker.round()
    assert found.claim.state is ClaimState.HELD
    found.now += timedelta(hours=2)
    await found.worker.round()
    assert (found.claim.state, found.claim.reason) == (
        ClaimState.SUSPENDED, "no audit for 6 h although some were due"
    )  # fmt: skip


@pytest.mark.parametrize(("when", "status"), [("refuse", 502), ("local", 200)])
async def test_a_silent_reference_in_shadow(build: Any, when: str, status: int) -> None:
    settings = EARLY.model_copy(update={"when_reference_fails": when})
    found = await build(lambda call: FrontierUnavailable("down"), settings).ready()
    response = await found.ask("x")
    assert response.status_code in (status, 503)
    if when == "local":
        answer = response.json()
        assert (answer["route"], answer["guarantee"]["evidence"]) == ("local", "suite")
    await found.settle()
    assert found.audits() == []


MARKER = "kestrel-7431"


@pytest.mark.parametrize(
    ("headers", "settings", "tenant"),
    [
        ({"x-narrowgate-route": "local_only"}, {}, {}),
        ({"x-narrowgate-audit": "never"}, {}, {}),
        ({}, {"external": False}, {}),
        ({}, {"providers": ("openai",)}, {}),
        ({}, {}, {"evidence_external": False}),
        ({}, {}, {"evidence_providers": ""}),
    ],
)
async def test_what_is_kept_here_reaches_no_provider(
    build: Any, headers: dict[str, str], settings: dict[str, Any], tenant: dict[str, Any]
) -> None:
    always = EARLY.model_copy(update={"high_rate": 1.0, **settings})
    found = build(says(), always, tenants={"default": Tenant("default", **tenant)})
    await found.ready()
    answer = (await found.ask(f"a text with {MARKER}", headers=headers)).json()
    assert answer["route"] == "local"
    assert answer["guarantee"]["evidence"] != "traffic"
    body = {"model": "task/topic", "messages": [{"role": "user", "content": MARKER}]}
    assert (await found.server.post(CHAT, json=body, headers=headers)).status_code == 200
    await found.settle()
    assert MARKER not in repr(found.server.frontier.calls)
    assert found.audits() == []


async def test_never_in_the_body_is_heard_whatever_the_header_says(build: Any) -> None:
    found = await build(says()).ready()
    body = {"input": MARKER, "audit": "never"}
    response = await found.server.post(
        "/v1/tasks/topic", json=body, headers={"x-narrowgate-audit": "auto"}
    )
    assert response.json()["route"] == "local"
    assert found.server.frontier.calls == []


async def test_equal_calls_get_equal_answers_where_the_client_asks_for_that(build: Any) -> None:
    found = await build(says(OTHER)).ready()
    answer = (
        await found.server.post("/v1/tasks/topic", json={"input": "x", "deterministic": True})
    ).json()
    assert (answer["value"], answer["route"]) == (LABEL, "local")
    assert answer["guarantee"]["evidence"] == "suite"


async def test_claims_that_cannot_be_read_are_not_in_force(build: Any) -> None:
    found = build(says(OTHER))
    await bring(found, ClaimState.HELD)
    found.clock.now_s += 31.0
    answer = (await found.ask("x")).json()
    assert (answer["route"], answer["value"]) == ("frontier", OTHER)


async def test_tenants_do_not_share_claims_unless_pooled(build: Any) -> None:
    from serving.contracts.context import RequestContext
    from serving.contracts.deadline import Deadline
    from serving.contracts.ledger import Caller
    from serving.contracts.routing import RequestOptions

    def names(found: EvidenceServer) -> list[str]:
        bound = found.server.context.tasks["topic"]
        shortcut = found.evidence.local_task(bound.task.spec, "tiny", bound.grant)
        return [
            found.evidence.ruling(
                shortcut,
                RequestContext("r", Caller(tenant), RequestOptions(), Deadline.after(9.0)),
            ).name
            for tenant in ("a", "b", "c")
        ]

    assert len(set(names(build(says())))) == 3
    pooled = EARLY.model_copy(update={"pools": {"ours": ("a", "b")}})
    first, second, third = names(build(says(), pooled))
    assert first == second != third


async def test_a_task_without_a_gated_model_has_no_claim(build: Any) -> None:
    """There is no local answer to compare: the frontier model answers as without evidence."""
    from serving.contracts.errors import TaskNotAttested

    refusal = TaskNotAttested("model 'tiny' does not serve task 'topic'", fix="gate it")
    found = await build(says(), grants={"topic": Grant(None, None, refusal)}).ready()
    answer = (await found.ask("x")).json()
    assert (answer["value"], answer["reason"]) == (LABEL, "not_attested")
    await found.settle()
    assert (found.audits(), found.snapshot.all()) == ([], ())


async def test_thresholds_are_placed_and_the_claim_is_earned(build: Any) -> None:
    """From nothing to a held claim by the rows that shadow writes."""
    found = await build(says()).ready()
    await found.ask("the first input")
    await found.settle()
    name = found.claim.id
    found.store.append([audit(name, number) for number in range(1, 100)])
    await found.worker.round()
    tests = [row for row in found.rows() if isinstance(row, ClaimEvent) and row.kind == "tested"]
    assert tests
    found.store.append([audit(name, number) for number in range(100, 200)])
    await found.worker.round()
    assert found.claim.state is ClaimState.HELD
    assert (await found.ask("x")).json()["guarantee"]["evidence"] == "traffic"


async def test_one_client_within_a_window_is_one_group(build: Any) -> None:
    settings = EARLY.model_copy(update={"group_window_s": 86_400.0})
    found = await build(says(), settings).ready()
    for text in ("a", "b"):
        await found.ask(text)
    await found.server.post("/v1/tasks/topic", json={"input": "c", "user": "someone"})
    await found.settle()
    first, second, third = found.audits()
    assert first.group == second.group != third.group
    assert (first.end_user, third.end_user) == (None, "someone")
    assert len({row.text for row in found.audits()}) == 3


async def test_from_the_first_request_to_a_held_claim_a_restart_and_a_shift(build: Any) -> None:
    """Shadow earns the claim; a new process goes on with it; a shift ends it."""
    settings = EARLY.model_copy(update={"high_rate": 1.0, "lease_s": 0.001})
    wrong = False

    def reply(call: FrontierCall) -> str:
        return json.dumps({"label": OTHER if wrong else LABEL})

    async def ask(found: EvidenceServer, number: int) -> str:
        found.now += timedelta(seconds=1)
        answer = (await found.ask(f"text {number}")).json()
        return str(answer["route"])

    found = await build(reply, settings).ready()
    earned = 0
    for number in range(400):
        await ask(found, number)
        if number % 10 == 9:
            await found.settle()
            if found.claim.state is ClaimState.HELD:
                earned = number + 1
                break
    assert 100 < earned <= 200
    # Another process, which knows the database alone.
    again = build(reply, settings)
    again.now = found.now
    await again.ready()
    assert again.claim == found.claim
    assert [await ask(again, 1000 + number) for number in range(20)] == ["local"] * 20
    await again.settle()
    assert (again.claim.audits, again.claim.observed_error) == (20, 0.0)
    wrong = True
    for number in range(2000, 2060):
        await ask(again, number)
        await again.settle()
        if again.claim.state is ClaimState.SUSPENDED:
            break
    assert again.claim.state is ClaimState.SUSPENDED
    assert again.claim.episode == 2
    assert await ask(again, 3000) == "frontier"
