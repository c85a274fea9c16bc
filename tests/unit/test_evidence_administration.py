"""What people do with claims: admin API, command line, replay, export."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving.artifacts.envelope import signed_envelope
from serving.artifacts.signing_key import load_signer, read_key
from serving.cli import main
from serving.commands import evidence as command
from serving.contracts.errors import InvalidRequest, InvalidSettings, NotFound
from serving.contracts.evidence import ClaimState, claim_id
from serving.evidence.administration import claim_details, document, listed, withdraw
from serving.evidence.export import PREDICATE_TYPE, export_claim
from serving.evidence.page import render_claim
from serving.evidence.replay import Replayed, replay
from serving.evidence.store import EvidenceStore
from serving.ledger.database import Database

from ..provider.server import ProviderServer
from .attested import attest, make_key, predicate, write_model
from .evidence_kit import EARLY, audit, defined, opening, worker


@pytest.fixture
def store(store: EvidenceStore) -> EvidenceStore:
    """The conftest's store with 60 right answers and one wrong accepted answer of ten."""
    store.append(events=[opening("c1")])
    store.append([audit("c1", number, served="World") for number in range(60)])
    store.append([
        audit("c1", 100 + n, float(n == 0), origin="accepted", hypothesis=1, served="World")
        for n in range(10)
    ])  # fmt: skip
    worker(store).round_blocking()
    return store


def test_a_claim_is_shown_with_its_course(store: EvidenceStore) -> None:
    (claim,) = listed(store)
    assert (claim["id"], claim["state"], claim["audits"]) == ("c1", "held", 10)
    found = claim_details(store, "c1", "k1").document()
    assert [event["kind"] for event in found["events"]] == ["tested", "earned"]
    assert found["course"][-1]["audits"] == 10
    assert found["course"][-1]["error"] == pytest.approx(0.1)
    assert found["verdicts"] == {
        "same": 69,
        "different": 1,
        "missing": 0,
        "dropped": 0,
        "awaited": 0,
        "unanswered": 0,
    }
    assert store.acts()[-1][:3] == ("k1", "show", "c1")
    with pytest.raises(NotFound):
        claim_details(store, "c2", "k1")


def test_inputs_that_nothing_local_answered_are_not_counted_as_different(
    store: EvidenceStore,
) -> None:
    store.append([replace(audit("c1", 300), loss=None, verdict="different")])
    verdicts = claim_details(store, "c1", "k1").document()["verdicts"]
    assert (verdicts["different"], verdicts["unanswered"]) == (1, 1)


def test_a_withdrawn_claim_stays_withdrawn(store: EvidenceStore) -> None:
    withdraw(store, "c1", "the prompt was wrong", "k1")
    store.append([audit("c1", number) for number in range(200, 300)])
    again = worker(store)
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


def real_claim(database: Database) -> tuple[EvidenceStore, str]:
    """Return a store with a claim whose id follows from its scope, as a gateway makes it."""
    store, made = EvidenceStore(database), defined()
    name = claim_id(made.scope, "exact", made.target_error, made.reference)
    store.register([replace(made, id=name)])
    worker(store).round_blocking()
    return store, name


def test_an_exported_claim_is_verified_by_its_own_key_alone(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, name = real_claim(database)
    pair, other = make_key(tmp_path / "a"), make_key(tmp_path / "b")
    file = tmp_path / "claim.json"
    file.write_bytes(export_claim(store, name, pair.private, "k1"))
    trust = ["--trust", str(pair.public)]
    assert main(["verify", str(file), *trust]) == 0
    assert f"valid: claim {name} on topic" in capsys.readouterr().out
    # A check that cannot be made is no valid claim.
    for option in (["--max-age-days", "0"], ["--probe"], ["--attestation", str(file)]):
        assert main(["verify", str(file), *trust, *option]) == 2
        assert f"{option[0]} checks a model" in capsys.readouterr().err
    assert main(["verify", str(file), "--trust", str(other.public), "--json"]) == 1
    assert "no valid signature of a trusted key" in capsys.readouterr().out
    # Signed, and about something else: a model's attestation is no claim, and a claim no model's.
    model = write_model(tmp_path / "model")
    attest(model, pair, predicate(model, {}))
    assert main(["verify", str(model / "attestation.json"), *trust]) == 1
    assert "urn:narrowgate:gate:v1" in capsys.readouterr().out
    (model / "attestation.json").write_bytes(file.read_bytes())
    assert main(["verify", str(model), *trust]) == 1
    capsys.readouterr()
    # A key's owner cannot give a claim another scope under its id.
    stated = {**document(store.states().claims[name]), "target_error": 0.01}
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "predicateType": PREDICATE_TYPE,
        "subject": [{"name": "claim:topic", "digest": {"claim": name}}],
        "predicate": stated,
    }
    signer = load_signer(read_key(pair.private), "evidence")
    file.write_bytes(signed_envelope(json.dumps(statement).encode(), signer))
    assert main(["verify", str(file), *trust]) == 1
    assert "does not follow" in capsys.readouterr().out


def test_a_page_shows_the_course_without_scripts(
    store: EvidenceStore, state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "claim.html"
    assert run(capsys, state, "show", "c1", "--html", str(file)) == {"file": str(file)}
    page = file.read_text()
    assert "<script" not in page
    assert not re.search(r"""(src|href)=["']?https?:""", page)
    assert "default-src 'none'" in page
    assert 'aria-label="Course of claim c1"' in page
    for words in ("target 15%", "held", "error of accepted answers", "prefers-color-scheme: dark"):
        assert words in page
    assert page == render_claim(claim_details(store, "c1", "k"))


def test_the_history_has_a_period_for_each_state(database: Database) -> None:
    store = EvidenceStore(database)
    store.register([defined()])
    store.append(events=[opening("c1")])
    store.append([audit("c1", number, served="World") for number in range(60)])
    own: dict[str, Any] = {"origin": "accepted", "hypothesis": 1, "accepted": 5}
    store.append([audit("c1", 100 + n, **own) for n in range(20)])
    store.append([audit("c1", 200 + n, origin="escalated", hypothesis=1) for n in range(20)])
    store.append([audit("c1", 300 + n, 1.0, **own) for n in range(60)])
    worker(store).round_blocking()
    periods = claim_details(store, "c1", "k").periods
    assert [period.state for period in periods] == ["shadow", "held", "suspended"]
    held = periods[1]
    assert held.points[-1].error > 0.15
    assert held.points[-1].low > 0.05
    assert held.accepted == 5 * held.points[-1].audits
    assert held.coverage == pytest.approx(held.accepted / (held.accepted + 20))
    assert periods[2].begin == held.points[-1].number


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
        "cached": 0,
    }
    # A withdrawal outlives the evidence.
    (left,) = run(capsys, state, "list")
    assert (left["state"], left["reason"], left["audits"]) == ("withdrawn", "a test", 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--task", "none"), "no task 'none'"),
        (("--task", "topic", "--url", "http://127.0.0.1:1"), "gave no answer: ConnectError"),
        (("--task", "topic", "--url", "http://["), "gave no answer: "),
        (("--task", "topic", "--url", "nowhere"), "gave no answer: UnsupportedProtocol"),
    ],
)
def test_a_replay_that_cannot_begin_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    file = tmp_path / "labelled.jsonl"
    file.write_text('{"text": "A goal.", "label": "Sports"}\n', encoding="utf-8")
    assert main(["evidence", "replay", str(file), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_replay_reads_no_other_servers_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], provider: ProviderServer
) -> None:
    file = tmp_path / "labelled.jsonl"
    file.write_text('{"text": "A goal.", "label": "Sports"}\n', encoding="utf-8")
    words = ["evidence", "replay", str(file), "--task", "topic", "--url", provider.url]
    assert main(words) == 2
    assert "answered 404" in capsys.readouterr().err
