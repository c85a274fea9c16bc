"""What people do with claims: admin API, command line, replay, export."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from serving.commands import evidence as command
from serving.contracts.errors import InvalidRequest, InvalidSettings, NotFound
from serving.contracts.evidence import ClaimState
from serving.evidence.administration import listed, shown, withdraw
from serving.evidence.export import export_claim
from serving.evidence.replay import Replayed, replay
from serving.evidence.store import EvidenceStore

from .attested import make_key
from .evidence_kit import EARLY, audit, keeper, opening


@pytest.fixture
def store(store: EvidenceStore) -> EvidenceStore:
    """The conftest's store with 60 right answers and one wrong accepted answer of ten."""
    store.append(events=[opening("c1")])
    store.append([audit("c1", number, served="World") for number in range(60)])
    store.append([
        audit("c1", 100 + n, float(n == 0), origin="accepted", hypothesis=1, served="World")
        for n in range(10)
    ])  # fmt: skip
    keeper(store).round_blocking()
    return store


def test_a_claim_is_shown_with_its_course(store: EvidenceStore) -> None:
    (claim,) = listed(store)
    assert (claim["id"], claim["state"], claim["audits"]) == ("c1", "held", 10)
    found = shown(store, "c1", "k1")
    assert [event["kind"] for event in found["events"]] == ["tested", "earned"]
    assert found["course"][-1]["audits"] == 10
    assert found["course"][-1]["error"] == pytest.approx(0.1)
    assert found["verdicts"] == {"same": 69, "different": 1, "missing": 0, "dropped": 0}
    assert store.acts()[-1][:3] == ("k1", "show", "c1")
    with pytest.raises(NotFound):
        shown(store, "c2", "k1")


def test_a_withdrawn_claim_stays_withdrawn(store: EvidenceStore) -> None:
    withdraw(store, "c1", "the prompt was wrong", "k1")
    store.append([audit("c1", number) for number in range(200, 300)])
    again = keeper(store)
    store.take_lease(again._holder, 0.0)
    assert store.states().claims["c1"].state is ClaimState.WITHDRAWN
    with pytest.raises(InvalidRequest):
        withdraw(store, "c1", "again", "k1")


def test_an_exported_claim_is_signed(store: EvidenceStore, tmp_path: Path) -> None:
    from serving.artifacts.envelope import verified_payload
    from serving.artifacts.trust import trusted_keys

    pair = make_key(tmp_path)
    envelope = export_claim(store, "c1", pair.private, "k1")
    payload, _ = verified_payload(envelope, trusted_keys((pair.public,), "keys"))
    statement = json.loads(payload)
    assert statement["predicateType"] == "urn:narrowgate:evidence:claim:v1"
    assert statement["predicate"]["id"] == "c1"
    with pytest.raises(InvalidSettings):
        export_claim(store, "c1", None, "k1")


def test_a_replay_says_when_a_claim_would_be_earned() -> None:
    draw = random.Random(5)  # noqa: S311  # data of a test
    rows = []
    for number in range(1500):
        confidence = draw.random()
        rows.append(Replayed(f"t{number}", confidence, float(draw.random() > 0.6 + confidence)))
    found = replay(rows, 0.15, EARLY)
    assert found.earned_after is not None
    assert found.earned_after > 100
    assert found.coverage is not None
    assert found.error is not None
    assert found.error < 0.15
    never = replay([Replayed(str(n), 0.9, float(n % 2)) for n in range(600)], 0.15, EARLY)
    assert (never.earned_after, never.coverage) == (None, None)


def run(capsys: pytest.CaptureFixture[str], state: Path, *words: str) -> Any:
    import argparse

    parser = argparse.ArgumentParser()
    command.configure(parser)
    assert command.run(parser.parse_args([*words, "--state", str(state), "--json"])) == 0
    return json.loads(capsys.readouterr().out)


def test_the_command_line(
    store: EvidenceStore, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [claim["id"] for claim in run(capsys, state, "list")] == ["c1"]
    assert run(capsys, state, "show", "c1")["claim"]["state"] == "held"
    assert run(capsys, state, "withdraw", "c1", "--reason", "a test")["state"] == "withdrawn"
    assert run(capsys, state, "delete", "--tenant", "default") == {
        "deleted": 70,
        "examples": 0,
        "texts": 0,
    }
    assert run(capsys, state, "list") == []
