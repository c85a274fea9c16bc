"""People as a reference: texts kept for them, their labels, and what these say, over HTTP."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from serving.commands import evidence as command
from serving.contracts.errors import InvalidArgument, InvalidRequest
from serving.contracts.evidence import ClaimState
from serving.contracts.task_spec import TaskSpec
from serving.evidence.administration import Label, claim_details, label, sampled
from serving.evidence.heads.cipher import VectorCipher
from serving.evidence.kept_texts import KeptText, KeptTexts, purge_texts
from serving.evidence.statistics.people import agreement
from serving.evidence.store import EvidenceOwner
from serving.ledger.database import Database
from serving.tasks.grant import Grant

from .attested import result
from .authenticated import opened
from .evidence_kit import EARLY, EvidenceServer, audit, defined, opening, worker

KEPT = EARLY.model_copy(update={"keep_texts": 7, "high_rate": 1.0})
LABEL, OTHER = "World", "Sports"
ADMIN = "/v1/admin/claims"


@pytest.fixture
def database(state: Path) -> Iterator[Database]:
    found = opened(None, state)
    yield found
    found.close()


@pytest.fixture
def build(specs: dict[str, TaskSpec], database: Database) -> Any:
    grants = {"topic": Grant(result(specs["topic"]), "sha256:abc", None)}

    def made(reply: Any = None, settings: Any = KEPT) -> EvidenceServer:
        return EvidenceServer(specs, database, grants, settings, reply)

    return made


def says(label: str) -> Any:
    return lambda call: json.dumps({"label": label})


async def hold(found: EvidenceServer) -> str:
    """Bring the claim on `topic` to be held, by rows; return its id."""
    await found.ready()
    await found.ask("the first input")
    await found.settle()
    name = found.claim.id
    found.store.append(events=[opening(name)])
    reference = found.claim.reference
    found.store.append([audit(name, number, reference=reference) for number in range(60)])
    await found.worker.round()
    assert found.claim.state is ClaimState.HELD
    return name


async def labelled(found: EvidenceServer, name: str, say: Any, count: int = 1000) -> int:
    listed = await found.server.client.get(f"{ADMIN}/{name}/texts?count={count}")
    assert listed.status_code == 200, listed.text
    rows = listed.json()["data"]
    labels = [{"input": row["input"], "label": say(row["text"])} for row in rows]
    sent = await found.server.client.post(f"{ADMIN}/{name}/labels", json={"labels": labels})
    assert sent.status_code == 200, sent.text
    await found.worker.round()
    noted: int = sent.json()["labels"]
    return noted


async def test_labels_show_the_error_against_people_and_the_references_own(build: Any) -> None:
    found = build(says(LABEL))
    name = await hold(found)
    for number in range(40):
        answer = await found.ask(f"input {number}")
        assert answer.json()["guarantee"]["people"] is None
        await found.settle()
    # The reference agrees with every answer; people find every fourth wrong.
    wrong = {f"input {number}" for number in range(0, 40, 4)}
    assert await labelled(found, name, lambda text: OTHER if text in wrong else LABEL) == 41
    people = (await found.ask("one more")).json()["guarantee"]["people"]
    assert (people["labels"], people["method"]) == (40, "labels")
    assert people["error"] == pytest.approx(0.25)
    assert people["interval"][0] < 0.25 < people["interval"][1] < 0.42
    assert people["reference_error"] == pytest.approx(10 / 41)
    shown_ = (await found.server.client.get(f"{ADMIN}/{name}")).json()
    assert shown_["people"]["error"] == people
    assert shown_["claim"]["observed_error"] == 0.0


async def test_a_hundred_labels_are_joined_with_the_references_verdicts(build: Any) -> None:
    found = build(says(LABEL))
    name = await hold(found)
    for number in range(260):
        await found.ask(f"input {number}")
    await found.settle()
    wrong = {f"input {number}" for number in range(0, 260, 10)}
    await labelled(found, name, lambda text: OTHER if text in wrong else LABEL, 120)
    people = found.claim.people
    assert people is not None
    assert people.method == "ppi"
    assert people.interval[0] < 0.1 < people.interval[1]


async def test_without_kept_texts_labels_are_refused(build: Any) -> None:
    found = build(says(LABEL), KEPT.model_copy(update={"keep_texts": None}))
    name = await hold(found)
    for method, path, body in (
        ("GET", "texts", None),
        ("POST", "labels", {"labels": [{"input": "i1", "label": LABEL}]}),
    ):
        answer = await found.server.client.request(method, f"{ADMIN}/{name}/{path}", json=body)
        assert answer.status_code == 400
        assert "no text is kept" in answer.json()["error"]["message"]


async def test_people_earn_a_claim_where_no_key_is_set(build: Any) -> None:
    found = build(None)
    await held_by_people(found)
    answer = (await found.ask("now")).json()
    assert answer["guarantee"]["evidence"] == "traffic"
    assert answer["guarantee"]["reference"] == "people"


async def held_by_people(found: EvidenceServer) -> str:
    """Bring a claim that people's labels earn to be held; return its id."""
    await found.ready()
    for number in range(150):
        found.now += timedelta(seconds=1)
        answer = (await found.ask(f"input {number}")).json()
        assert answer["guarantee"]["evidence"] == "suite"
    await found.settle()
    name = found.claim.id
    assert found.claim.reference == "people"
    # Before the labels are there, nothing is known: no verdict is missing.
    assert found.audits() == []
    await labelled(found, name, lambda text: LABEL, 110)
    assert (await found.ask("before")).json()["guarantee"]["evidence"] == "suite"
    for number in range(150, 300):
        found.now += timedelta(seconds=1)
        await found.ask(f"input {number}")
    await found.settle()
    await labelled(found, name, lambda text: LABEL)
    assert found.claim.state is ClaimState.HELD
    return name


async def test_a_claim_that_nobody_labels_any_more_ends_after_the_longest_silence(
    build: Any,
) -> None:
    found = build(None)
    name = await held_by_people(found)
    found.now += timedelta(hours=20)
    await found.worker.round()
    # Without inputs no label was due.
    assert found.claim.state is ClaimState.HELD
    await found.ask("due 1")
    await found.settle()
    found.now += timedelta(hours=5)
    # A label that comes in time keeps the claim.
    await labelled(found, name, lambda text: LABEL)
    found.now += timedelta(hours=2)
    await found.worker.round()
    assert found.claim.state is ClaimState.HELD
    await found.ask("due 2")
    await found.settle()
    shown_ = (await found.server.client.get(f"{ADMIN}/{name}")).json()
    assert shown_["verdicts"]["awaited"] == 1
    found.now += timedelta(hours=5)
    await found.worker.round()
    assert found.claim.state is ClaimState.HELD
    found.now += timedelta(hours=2)
    await found.worker.round()
    answer = (await found.ask("after it")).json()
    assert answer["guarantee"]["evidence"] == "none"
    assert answer["below_threshold"] is True
    assert (found.claim.state, found.claim.reason) == (
        ClaimState.SUSPENDED, "no audit for 6 h although some were due"
    )  # fmt: skip


async def test_texts_are_not_kept_against_the_clients_will(build: Any) -> None:
    found = build(says(LABEL))
    name = await hold(found)
    before = found.texts.count(name)
    for headers in ({"x-narrowgate-audit": "never"}, {"x-narrowgate-route": "local_only"}):
        await found.ask("private words", headers=headers)
        await found.settle()
    assert found.texts.count(name) == before


async def test_reading_and_labelling_are_logged(build: Any) -> None:
    found = build(says(LABEL))
    name = await hold(found)
    await labelled(found, name, lambda text: LABEL)
    acts = [act for _, act, subject, _ in found.store.acts() if subject == name]
    assert acts == ["read 1 texts", "label 1"]


async def test_deleting_an_end_user_deletes_the_texts(build: Any) -> None:
    found = build(says(LABEL))
    name = await hold(found)
    await found.ask("of somebody", headers={"x-narrowgate-user": "u1"})
    await found.settle()
    assert found.texts.count(name) == 2
    url = "/v1/admin/evidence?tenant=default"
    answer = await found.server.client.delete(f"{url}&end_user=u1")
    assert answer.json()["texts"] == 1
    assert (await found.server.client.delete(url)).json()["texts"] == 1


def text(number: int, words: str = "", **changes: Any) -> KeptText:
    row = audit("c1", number, origin="accepted", hypothesis=1, served=LABEL, label=LABEL)
    return KeptText(row, words or f"text {number}", (LABEL, OTHER))


@pytest.fixture
def texts(database: Database) -> KeptTexts:
    return KeptTexts(database, VectorCipher([b"v" * 32]))


def test_texts_are_encrypted_bounded_and_deleted_after_their_days(
    texts: KeptTexts, database: Database, state: Path
) -> None:
    texts.keep(text(0, "a marker word: xylograph"))
    assert [one.text for one in texts.sample("c1", "ann", 5)] == ["a marker word: xylograph"]
    with database.read() as connection:
        raw = connection.exec_driver_sql("SELECT content FROM evidence_texts").scalar_one()
    assert b"xylograph" not in raw
    other = KeptTexts(database, VectorCipher([b"w" * 32]))
    assert other.sample("c1", "ann", 5) == []
    bounded = KeptTexts(database, VectorCipher([b"v" * 32]), most=10)
    for number in range(1, 50):
        bounded.keep(text(number))
    assert bounded.count("c1") == 10
    assert purge_texts(database, 1) == 0
    assert purge_texts(database, None) == 10


def test_two_people_label_the_same_inputs_first(texts: KeptTexts, database: Database) -> None:
    store = keeper_store(database)
    for number in range(20):
        texts.keep(text(number))
    ann = sampled(store, texts, "c1", "ann", 10)
    bob = sampled(store, texts, "c1", "bob", 10)
    assert [one.audit.input for one in ann] == [one.audit.input for one in bob]
    assert label(store, texts, "c1", [Label(one.audit.input, LABEL) for one in ann], "ann") == 10
    # The same person's second label of an input is not another one.
    assert label(store, texts, "c1", [Label(ann[0].audit.input, OTHER)], "ann") == 0
    said = [Label(one.audit.input, OTHER if n < 2 else LABEL) for n, one in enumerate(bob)]
    assert label(store, texts, "c1", said, "bob") == 10
    assert len(sampled(store, texts, "c1", "ann", 20)) == 10
    found = claim_details(store, "c1", "k", texts).people
    assert found["agreement"]["inputs"] == 10
    assert found["agreement"]["share"] == pytest.approx(0.8)
    assert found["agreement"]["interval"][0] == pytest.approx(0.4439, abs=1e-3)
    with pytest.raises(InvalidRequest, match="no label 'Weather'"):
        label(store, texts, "c1", [Label(ann[0].audit.input, "Weather")], "ann")
    with pytest.raises(InvalidRequest, match="no kept text"):
        label(store, texts, "c1", [Label("never", LABEL)], "ann")


def test_kappa_is_of_two_people_whoever_labelled_first(
    texts: KeptTexts, database: Database
) -> None:
    store = keeper_store(database)
    for number in range(40):
        texts.keep(text(number))
    names = [one.audit.input for one in sampled(store, texts, "c1", "ann", 40)]
    # Ann says one label for nine inputs of ten, Bob for one, and neither looks at the input.
    says = {
        "ann": [OTHER if n % 10 else LABEL for n in range(40)],
        "bob": [OTHER if n % 10 == n // 10 else LABEL for n in range(40)],
    }
    for number, name in enumerate(names):
        order = ("ann", "bob") if number % 2 else ("bob", "ann")
        for person in order:
            label(store, texts, "c1", [Label(name, says[person][number])], person)
        if number < 3:
            label(store, texts, "c1", [Label(name, LABEL)], "aaron")
    found = claim_details(store, "c1", "k", texts).people["agreement"]
    assert (found["people"], found["inputs"]) == (("ann", "bob"), 40)
    assert found["kappa"] == pytest.approx(
        agreement(list(zip(says["ann"], says["bob"], strict=True))).kappa
    )
    # What two people said of an erased input is gone, and no agreement.
    store.delete(EvidenceOwner("default", request_id=f"r{names[0][1:]}"), "k")
    erased = claim_details(store, "c1", "k", texts).people
    assert erased["agreement"]["inputs"] == 39
    assert erased["labels"] == 83


def test_a_person_is_not_named_like_a_state_of_an_input(
    texts: KeptTexts, database: Database
) -> None:
    store = keeper_store(database)
    texts.keep(text(1))
    for name in ("awaited", "", "a/b", "a\nb", "\x1b[31m", "x" * 201):
        with pytest.raises(InvalidRequest, match="not a person's name"):
            sampled(store, texts, "c1", name, 5)
        with pytest.raises(InvalidRequest, match="not a person's name"):
            label(store, texts, "c1", [Label("i1", LABEL)], name)


def keeper_store(database: Database) -> Any:
    from serving.evidence.store import EvidenceStore

    store = EvidenceStore(database)
    store.register([defined()])
    worker(store).round_blocking()
    return store


def run(capsys: pytest.CaptureFixture[str], config: Path, state: Path, *words: str) -> Any:
    import argparse

    parser = argparse.ArgumentParser()
    command.configure(parser)
    options = ["--state", str(state), "--config", str(config), "--json"]
    assert command.run(parser.parse_args([*words, *options])) == 0
    return json.loads(capsys.readouterr().out)


def test_texts_are_exported_filled_in_and_imported(
    database: Database,
    state: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from serving.evidence.heads.keys import vector_cipher

    keeper_store(database)
    kept = KeptTexts(database, vector_cipher(state))
    for number in range(5):
        kept.keep(text(number))
    config, file = tmp_path / "settings.yaml", tmp_path / "texts.jsonl"
    config.write_text("evidence: {keep_texts: 7}\n")
    who = ("--person", "ann")
    file.touch(0o644)
    assert run(capsys, config, state, "label", "c1", "--export", str(file), *who) == {"texts": 5}
    assert file.stat().st_mode & 0o777 == 0o600
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert set(rows[0]) == {"input", "text", "labels", "label"}
    for row in rows[:3]:
        row["label"] = LABEL
    file.write_text("\n".join(map(json.dumps, rows)))
    assert run(capsys, config, state, "label", "c1", str(file), *who) == {"labels": 3}
    with pytest.raises(InvalidArgument, match="no terminal"):
        run(capsys, config, state, "label", "c1", *who)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    typed = iter(["9", "2", "q"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    import argparse

    parser = argparse.ArgumentParser()
    command.configure(parser)
    words = ["label", "c1", *who, "--config", str(config), "--state", str(state)]
    args = parser.parse_args(words)
    args.json = False
    assert command.run(args) == 0
    out = capsys.readouterr().out
    assert "'9' is not a label" in out
    assert "1 labels noted" in out
    config.write_text("evidence: {}\n")
    with pytest.raises(InvalidRequest, match="no text is kept"):
        run(capsys, config, state, "label", "c1", str(file), *who)
