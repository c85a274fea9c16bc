"""Fitted candidates under a claim, over HTTP: recalibrated models, label thresholds, newer fits."""

import json

import numpy as np
import pytest

from serving.contracts.evidence import Audit, ClaimState
from serving.contracts.evidence import Candidate as Made
from serving.contracts.task_spec import ClassificationSpec, TaskSpec
from serving.evidence.heads.candidate import Candidate, Provenance
from serving.evidence.heads.head_candidate import HeadCandidate
from serving.evidence.heads.statement import Head, HeadPredicate
from serving.ledger.database import Database
from serving.tasks.grant import Grant

from .attested import result
from .evidence_kit import EvidenceServer, audit, opening
from .scripted import MODEL

LABEL, OTHER = "World", "Sports"
FITTED = "model@1"


@pytest.fixture
def found(specs: dict[str, TaskSpec], database: Database) -> EvidenceServer:
    grants = {"topic": Grant(result(specs["topic"]), "sha256:abc", None)}
    return EvidenceServer(specs, database, grants, reply=lambda call: json.dumps({"label": LABEL}))


def recalibrated(spec: TaskSpec, lowered: str | None = None) -> HeadCandidate:
    """Return `model@1`, which finds OTHER likelier. lowered: a label of low confidence."""
    assert isinstance(spec, ClassificationSpec)
    labels = tuple(label.name for label in spec.labels)
    bias = np.array([5.0 * (label == OTHER) for label in labels], np.float32)
    by_label = np.array([1.0, 0.0, *(-10.0 * (label == lowered) for label in labels)], np.float32)
    made = Candidate(
        "recalibrated", labels, Provenance("s", spec.name, spec.digest()),
        np.arange(len(labels), dtype=np.int16), np.eye(len(labels), dtype=np.float32), bias,
        np.empty((0, 2), np.float32), by_label,
    )  # fmt: skip
    return HeadCandidate(Head(made, HeadPredicate.model_construct(version=1), "key"))


async def begun(found: EvidenceServer) -> str:
    """Send the first input; return the id of the claim that it opens."""
    await found.ready()
    await found.ask("the first input")
    await found.settle()
    return found.claim.id


def rows(name: str, first: int, count: int, hypothesis: int, share: float) -> list[Audit]:
    """Return audits that found no error. share: of them are above the model's own threshold."""
    return [
        audit(
            name, number, origin="accepted" if hypothesis else "shadow", hypothesis=hypothesis,
            candidates=(
                Made("model", 0.9 if number % 100 < 100 * share else 0.1, 0.0),
                Made(FITTED, 0.9, 0.0),
            ),
        )
        for number in range(first, first + count)
    ]  # fmt: skip


async def hold(found: EvidenceServer, candidate: str) -> str:
    name = await begun(found)
    found.store.append(events=[opening(name, candidate=candidate)])
    found.store.append(rows(name, 0, 60, 0, 1.0))
    await found.worker.round()
    assert found.claim.state is ClaimState.HELD
    return name


async def test_a_recalibrated_model_answers_in_the_models_name(
    found: EvidenceServer, specs: dict[str, TaskSpec]
) -> None:
    name = await hold(found, FITTED)
    found.evidence.load(name, [recalibrated(specs["topic"])])
    answer = (await found.ask("x")).json()
    # The engine prefers LABEL; the claimed candidate is what the client gets.
    assert (answer["value"], answer["route"], answer["model"]) == (OTHER, "local", MODEL)
    assert answer["guarantee"]["evidence"] == "traffic"
    assert answer["guarantee"]["claim"] == name
    assert max(answer["label_probabilities"], key=answer["label_probabilities"].get) == OTHER
    assert answer["confidence"] == pytest.approx(answer["label_probabilities"][OTHER])


async def test_a_candidate_that_is_not_loaded_is_not_served(found: EvidenceServer) -> None:
    await hold(found, FITTED)
    answer = (await found.ask("x")).json()
    assert (answer["value"], answer["route"]) == (LABEL, "frontier")
    assert answer["guarantee"]["evidence"] == "none"


@pytest.mark.parametrize(("lowered", "route"), [(OTHER, "frontier"), (LABEL, "local")])
async def test_a_label_has_a_threshold_of_its_own(
    found: EvidenceServer, specs: dict[str, TaskSpec], lowered: str, route: str
) -> None:
    name = await hold(found, FITTED)
    found.evidence.load(name, [recalibrated(specs["topic"], lowered)])
    answer = (await found.ask("x")).json()
    assert answer["route"] == route
    assert answer["value"] == (OTHER if route == "local" else LABEL)


@pytest.mark.parametrize(("covered", "claimed"), [(0.5, FITTED), (0.98, "model")])
async def test_a_newer_fit_replaces_the_claimed_one_once_it_covers_clearly_more(
    found: EvidenceServer, specs: dict[str, TaskSpec], covered: float, claimed: str
) -> None:
    name = await hold(found, "model")
    found.evidence.load(name, [recalibrated(specs["topic"])])
    found.store.append(events=[opening(name, candidate=FITTED)])
    found.store.append(rows(name, 100, 20, 1, covered))
    await found.worker.round()
    # It has not earned the claim yet: the old one answers.
    assert found.claim.action is not None
    assert found.claim.action.candidate == "model"
    assert (await found.ask("between")).json()["value"] == LABEL
    for begin in range(200, 800, 100):
        found.store.append(rows(name, begin, 100, found.claim.action.hypothesis, covered))
        await found.worker.round()
        assert found.claim.state is ClaimState.HELD
    assert found.claim.action.candidate == claimed
    answer = (await found.ask("after")).json()
    assert answer["value"] == (OTHER if claimed == FITTED else LABEL)
    assert answer["guarantee"]["evidence"] == "traffic"
