"""Traffic that changes under a held claim is audited more; costs and frequent errors count."""

import json
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.contracts.evidence import Action, Candidate, Claim, ClaimState, EarnedFrom, Scope
from serving.contracts.task_spec import TaskSpec
from serving.evidence.drift_watch import WINDOW, DriftWatch
from serving.evidence.fold import ClaimFold
from serving.evidence.frequent_errors import MAX_LISTED, FrequentErrors
from serving.evidence.pacing import audit_rate
from serving.evidence.store import EvidenceOwner
from serving.ledger.database import Database
from serving.tasks.grant import Grant

from .attested import result
from .authenticated import opened
from .evidence_kit import AT, EARLY, REFERENCE, EvidenceServer, audit, defined, opening

LABEL, OTHER = "World", "Sports"


@pytest.fixture
def database(state: Path) -> Iterator[Database]:
    found = opened(None, state)
    yield found
    found.close()


@pytest.fixture
def server(specs: dict[str, TaskSpec], database: Database) -> EvidenceServer:
    grants = {"topic": Grant(result(specs["topic"]), "sha256:abc", None)}
    settings = EARLY.model_copy(update={"high_rate": 1.0, "floor_rate": 0.02})
    return EvidenceServer(
        specs, database, grants, settings, lambda call: json.dumps({"label": LABEL})
    )


def made(number: int, label: str = LABEL, **changes: Any) -> Any:
    """Return the number-th audit, whose candidate gave a label."""
    found = audit("c1", number, **changes)
    candidates = tuple(replace(one, label=label) for one in found.candidates)
    return replace(found, candidates=candidates)


def held(labels: dict[str, int], **changes: Any) -> Claim:
    count = sum(labels.values())
    base = Claim(
        "c1", Scope("default", "topic"), "local_task", "exact", 0.15, REFERENCE, ClaimState.HELD,
        AT, action=Action("model", 0.5, {}, 1), earned_at=AT, accepted=10_000,
        since_signal=10_000, earned_from=EarnedFrom(count, count, labels),
    )  # fmt: skip
    return replace(base, **changes)


def look(labels: list[str | None], claim: Claim, vectors: Any = None) -> list[str]:
    watch = DriftWatch(lambda: AT)
    for number, label in enumerate(labels):
        watch.observe("c1", 1, label, None if vectors is None else vectors[number])
    return [event.reason for event in watch.signals([claim])]


def test_what_earned_a_claim_is_in_its_state() -> None:
    fold = ClaimFold(defined(), EARLY).extend([opening("c1")])
    fold.extend(made(n, LABEL if n % 3 else OTHER) for n in range(60))
    earned = fold.claim.earned_from
    assert fold.claim.state is ClaimState.HELD
    assert earned.inputs == earned.accepted == sum(earned.labels.values())
    assert earned.labels[LABEL] > earned.labels[OTHER] > 0


def test_other_label_shares_are_a_signal_and_equal_ones_are_none() -> None:
    claim = held({LABEL: 60, OTHER: 60})
    assert look([LABEL, OTHER] * (WINDOW // 2), claim) == []
    (reason,) = look([OTHER] * WINDOW, claim)
    assert reason == "the label shares of accepted answers changed"
    assert look([OTHER] * (WINDOW - 1), claim) == []


def test_a_surge_of_escalations_is_a_signal() -> None:
    (reason,) = look([LABEL, None] * (WINDOW // 2), held({LABEL: 120}))
    assert reason == "the share of inputs below the threshold rose"


def test_other_texts_are_a_signal() -> None:
    rng = np.random.default_rng(1)
    watch, claim = DriftWatch(lambda: AT), held({})
    for shift, expected in ((0.0, 0), (0.0, 0), (2.0, 1)):
        found = []
        for _ in range(5):
            for vector in rng.normal(shift, 1.0, (WINDOW, 8)).astype(np.float32):
                watch.observe("c1", 1, "", vector)
            found += watch.signals([claim])
        assert bool(found) is bool(expected)


def test_a_window_of_an_earlier_hypothesis_is_no_signal() -> None:
    claim = held({LABEL: 60, OTHER: 60})
    assert look([OTHER] * WINDOW, replace(claim, action=Action("model", 0.5, {}, 2))) == []
    assert look([OTHER] * WINDOW, replace(claim, state=ClaimState.SUSPENDED)) == []


def test_a_signal_raises_the_audit_rate_for_the_next_inputs() -> None:
    fold = ClaimFold(defined(), EARLY).extend([opening("c1")])
    fold.extend(made(n) for n in range(60))
    number = fold.claim.action.hypothesis  # type: ignore[union-attr]
    fold.add(made(100, origin="accepted", hypothesis=number, accepted=9_000))
    before = audit_rate(fold.claim, EARLY, AT)
    watch = DriftWatch(lambda: AT)
    for _ in range(WINDOW):
        watch.observe("c1", number, OTHER)
    (event,) = watch.signals([fold.claim])
    fold.add(event)
    assert before < EARLY.high_rate
    assert fold.claim.since_signal == 0
    assert audit_rate(fold.claim, EARLY, AT) == EARLY.high_rate


async def test_changed_traffic_is_audited_more_over_http(server: EvidenceServer) -> None:
    """The engine answers World; the claim was earned on Sports, so the shares have changed."""
    await server.ready()
    await server.ask("the first input")
    await server.settle()
    name = server.claim.id
    server.store.append(events=[opening(name)])
    server.store.append([
        replace(audit(name, n), candidates=(Candidate("model", 0.9, 0.0, OTHER),))
        for n in range(60)
    ])  # fmt: skip
    await server.worker.round()
    assert server.claim.state is ClaimState.HELD
    number = server.claim.action.hypothesis  # type: ignore[union-attr]
    done = audit(name, 500, origin="accepted", hypothesis=number, accepted=9_000)
    server.store.append([done])
    await server.worker.round()
    assert server.claim.since_signal == 9_000
    for n in range(WINDOW):
        await server.ask(f"text {n}")
    await server.settle()
    await server.worker.round()
    assert server.claim.since_signal < 9_000
    assert "drifted" in [getattr(row, "kind", "") for row in server.rows()]


async def test_a_frequent_wrong_text_goes_to_the_reference(server: EvidenceServer) -> None:
    await server.ready()
    await server.ask("the first input")
    await server.settle()
    name = server.claim.id
    server.store.append(events=[opening(name)])
    server.store.append([audit(name, n) for n in range(60)])
    await server.worker.round()
    answer = (await server.ask("a frequent text")).json()
    assert (answer["route"], answer["below_threshold"]) == ("local", False)
    number = server.claim.action.hypothesis  # type: ignore[union-attr]
    text = server.evidence.text_digest(name, "a frequent text")
    server.store.append([
        audit(name, 200 + n, 1.0, origin="accepted", hypothesis=number, text=text) for n in range(2)
    ])  # fmt: skip
    await server.settle()
    assert server.claim.state is ClaimState.HELD
    answer = (await server.ask("a frequent text")).json()
    assert (answer["route"], answer["reason"]) == ("frontier", "below_threshold")
    assert (await server.ask("another text")).json()["route"] == "local"
    # A new process computes the same list from the rows.
    rows = server.rows()
    definition = server.store.definitions()[0]
    again = ClaimFold(definition, server.evidence.settings).extend(rows)
    assert again.claim.escalate == server.claim.escalate == (text,)
    # It goes with its tenant.
    server.store.delete(EvidenceOwner("default"), "operator")
    await server.worker.round()
    assert len(server.snapshot.all()) == 0
    assert (await server.ask("a frequent text")).json()["guarantee"]["evidence"] == "none"


def test_one_error_or_mostly_right_answers_list_no_text() -> None:
    errors = FrequentErrors()
    errors.add("once", 1.0)
    for loss in (1.0, 0.0, 0.0, 1.0, 0.0):
        errors.add("mostly right", loss)
    assert list(errors.listed) == []
    errors.add("once", 1.0)
    assert errors.listed == ("once",)


def test_the_list_is_bounded() -> None:
    errors = FrequentErrors()
    for n in range(3 * MAX_LISTED):
        for _ in range(2):
            errors.add(str(n), 1.0)
    assert len(errors.listed) == MAX_LISTED
    assert errors.listed[-1] == str(3 * MAX_LISTED - 1)


def costed(max_share: float, audit_usd: str) -> Claim:
    settings = EARLY.model_copy(update={"max_share_of_avoided_cost": max_share})
    fold = ClaimFold(defined(settings=settings), settings).extend([opening("c1")])
    fold.extend(made(n, cost_usd=Decimal("0.001")) for n in range(60))
    number = fold.claim.action.hypothesis  # type: ignore[union-attr]
    for n in range(100, 160):
        fold.add(
            made(n, origin="accepted", hypothesis=number, cost_usd=Decimal(audit_usd), accepted=200)
        )
    return fold.claim


def test_audits_cost_at_most_their_share_of_the_cost_avoided() -> None:
    claim = costed(0.02, "0.00125")
    assert claim.state is ClaimState.HELD
    assert claim.affordable_rate == pytest.approx(0.016)
    busy = replace(claim, since_signal=1_000_000, accepted=1_000_000)
    assert audit_rate(busy, EARLY, AT.replace(day=3)) == pytest.approx(0.016)


def test_a_claim_that_cannot_be_audited_within_its_share_is_suspended() -> None:
    claim = costed(0.02, "0.004")
    assert claim.state is ClaimState.SUSPENDED
    assert "max_share_of_avoided_cost" in claim.reason


async def test_a_target_beyond_the_cap_stays_at_the_reference(
    specs: dict[str, TaskSpec], database: Database
) -> None:
    grants = {"topic": Grant(result(specs["topic"]), "sha256:abc", None)}
    settings = EARLY.model_copy(update={"max_total_error": 0.01})
    found = EvidenceServer(
        specs, database, grants, settings, lambda call: json.dumps({"label": LABEL})
    )
    await found.ready()
    assert (await found.ask("x")).json()["route"] == "frontier"
    answer = (await found.ask("x", headers={"x-narrowgate-route": "local_only"})).json()
    assert (answer["route"], answer["guarantee"]["evidence"]) == ("local", "none")
    await found.settle()
    assert found.audits() == []
