"""The 16-bit baseline: live A/B of the served model against it, over HTTP with two engines."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from serving.contracts.evidence import ClaimState
from serving.contracts.task_spec import TaskSpec
from serving.gateway.metrics import Metrics
from serving.ledger.database import Database
from serving.tasks.grant import Grant

from .attested import result
from .authenticated import opened
from .evidence_kit import EARLY, WIDE, EvidenceServer

COMPARED = EARLY.model_copy(update={"baseline": WIDE, "high_rate": 1.0})
LOCAL = {"x-narrowgate-route": "local_only"}


@pytest.fixture
def database(state: Path) -> Iterator[Database]:
    found = opened(None, state)
    yield found
    found.close()


@pytest.fixture
def build(specs: dict[str, TaskSpec], database: Database) -> Any:
    grants = {"topic": Grant(result(specs["topic"]), "sha256:abc", None)}

    def made(reply: Any = None) -> EvidenceServer:
        return EvidenceServer(specs, database, grants, COMPARED, reply)

    return made


async def ask(found: EvidenceServer, count: int, **headers: str) -> list[dict[str, Any]]:
    answers = []
    for number in range(count):
        found.now += timedelta(seconds=1)
        response = await found.ask(f"input {number} at {found.now}", headers=headers)
        assert response.status_code == 200, response.text
        answers.append(response.json())
    await found.settle()
    return answers


async def test_flips_are_counted_on_live_traffic(build: Any) -> None:
    found = build()
    await found.ready()
    found.wide.flips = lambda number: number % 10 == 0
    answers = await ask(found, 100)
    # The client gets the served model's answer; the baseline answers beside it.
    assert {answer["model"] for answer in answers} == {"tiny"}
    claim = found.claim
    assert claim.reference == f"baseline/{WIDE}"
    assert claim.flips is not None
    assert (claim.flips.inputs, claim.flips.share) == (100, pytest.approx(0.1))
    assert claim.flips.interval[0] < 0.1 < claim.flips.interval[1] < 0.25
    shown = (await found.server.client.get(f"/v1/admin/claims/{claim.id}")).json()
    assert shown["claim"]["flips"]["inputs"] == 100
    metrics = Metrics()
    metrics.evidence.claims_changed([claim])
    (line,) = [
        line for line in metrics.exposition({}).decode().splitlines()
        if line.startswith("narrowgate_claim_flips_share{")
    ]  # fmt: skip
    assert float(line.split()[-1]) == pytest.approx(0.1)


async def test_inputs_that_may_not_leave_earn_against_the_baseline(build: Any) -> None:
    found = build(lambda call: json.dumps({"label": "Sports"}))
    await found.ready()
    await ask(found, 110, **LOCAL)
    await ask(found, 150, **LOCAL)
    assert found.server.frontier.calls == []
    assert found.claim.state is ClaimState.HELD
    (answer,) = await ask(found, 1, **LOCAL)
    assert answer["guarantee"]["evidence"] == "traffic"
    assert answer["guarantee"]["reference"] == f"baseline/{WIDE}"


async def test_a_provider_as_reference_does_not_end_the_comparison(build: Any) -> None:
    found = build(lambda call: json.dumps({"label": "World"}))
    await found.ready()
    found.wide.flips = lambda number: True
    await ask(found, 20)
    await found.settle()
    by_reference = {claim.reference: claim for claim in found.snapshot.all()}
    assert len(by_reference) == 2
    compared = by_reference[f"baseline/{WIDE}"]
    assert compared.flips is not None
    assert (compared.flips.inputs, compared.flips.share) == (20, 1.0)
    other = next(claim for name, claim in by_reference.items() if name != compared.reference)
    assert other.flips is None
    assert len(found.server.frontier.calls) == 20
