"""`narrowgate cache` on the ledger's database."""

import base64
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.cache.entry import Question
from serving.cache.entry_store import EntryStore
from serving.cache.question_store import QuestionStore
from serving.cache.vector_index import Partition
from serving.cli import build_parser
from serving.commands import cache
from serving.contracts.errors import InvalidArgument, InvalidKey, NotFound
from serving.evidence.heads.cipher import VectorCipher
from serving.ledger.database import Database

from .cache_kit import NOW, packed

KEY = b"k" * 32


@pytest.fixture
def store(database: Database) -> EntryStore:
    found = EntryStore(database, VectorCipher([KEY]))
    found.write([
        packed(1), packed(2, end_user="ann", created_at=NOW + timedelta(seconds=1)),
        packed(3, namespace="tenant/globex", tenant="globex"),
    ])  # fmt: skip
    return found


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    key = tmp_path / "key"
    key.write_bytes(base64.b64encode(KEY))
    key.chmod(0o600)
    file = tmp_path / "settings.yaml"
    file.write_text(f"cache: {{encryption_key_file: '{key}'}}", encoding="utf-8")
    return file


def run(state: Path, *words: str) -> int:
    parser = build_parser("narrowgate", "", {"cache": cache})
    return cache.run(parser.parse_args(["cache", *words, "--state", str(state)]))


def printed(capsys: pytest.CaptureFixture[str], state: Path, *words: str) -> Any:
    assert run(state, *words, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_stats_and_list_show_no_answer(
    store: EntryStore, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stats = printed(capsys, state, "stats")
    assert [(row["namespace"], row["entries"]) for row in stats] == [
        ("tenant/acme", 2), ("tenant/globex", 1)
    ]  # fmt: skip
    rows = printed(capsys, state, "list", "--tenant", "acme")
    assert [row["id"] for row in rows] == ["e2", "e1"]
    assert not {"content", "key"} & set(rows[0])
    assert run(state, "stats") == run(state, "list") == 0
    assert "tenant/globex" in capsys.readouterr().out


def test_show_and_export_decrypt(
    store: EntryStore, state: Path, settings: Path, capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:  # fmt: skip
    config = ("--config", str(settings))
    shown = printed(capsys, state, "show", "e1", *config)
    assert shown["answer"]["choices"][0]["message"]["content"] == "answer 1"
    out = tmp_path / "out.jsonl"
    out.touch(0o644)
    done = printed(capsys, state, "export", "--out", str(out), "--tenant", "acme", *config)
    assert done["entries"] == 2
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [line["id"] for line in lines] == ["e1", "e2"]
    assert lines[1]["end_user"] == "ann"
    assert out.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InvalidArgument, match="cannot be written"):
        run(state, "export", "--out", str(tmp_path / "no" / "file"), *config)
    with pytest.raises(InvalidKey):
        run(state, "show", "e1")
    with pytest.raises(NotFound, match="e9"):
        run(state, "show", "e9", *config)


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["delete", "--entry", "e1"], 1),
        (["delete", "--tenant", "acme", "--end-user", "ann"], 1),
        (["delete", "--request-id", "r3"], 1),
        (["delete", "--tenant", "default"], 0),
        (["clear", "--namespace", "tenant/acme"], 2),
        (["clear"], 3),
    ],
    ids=str,
)
def test_deleting_needs_no_encryption_key(
    store: EntryStore, state: Path, capsys: pytest.CaptureFixture[str], words: list[str], count: int
) -> None:
    assert printed(capsys, state, *words) == {"deleted": count}
    assert sum(size.entries for size in store.sizes().values()) == 3 - count


def test_a_deletion_of_an_unknown_tenants_entries_does_not_look_done(
    state: Path, store: EntryStore
) -> None:
    with pytest.raises(NotFound, match="no tenant 'acmee'"):
        run(state, "delete", "--tenant", "acmee")
    assert sum(size.entries for size in store.sizes().values()) == 3


def test_a_deletion_names_something(state: Path, store: EntryStore) -> None:
    with pytest.raises(InvalidArgument):
        run(state, "delete")


def test_aliases_are_listed_and_removed_with_the_entrys_question(
    store: EntryStore, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vector = np.ones(384, np.float32) / np.sqrt(np.float32(384))
    question = Question("f" * 64, "What is a MARKER?", vector)
    store.write([packed(4, question=question)])
    questions = QuestionStore(store)
    for letter in "ab":
        questions.add_alias(letter * 64, "e4", 0.97, "audit", NOW)
    rows = printed(capsys, state, "aliases", "--entry", "e4")
    assert {(row["key"], row["entry"], row["namespace"]) for row in rows} == {
        ("a" * 64, "e4", "tenant/acme"), ("b" * 64, "e4", "tenant/acme")
    }  # fmt: skip
    assert printed(capsys, state, "aliases", "--namespace", "tenant/globex") == []
    assert run(state, "aliases") == 0
    said = capsys.readouterr().out
    assert "a" * 64 in said
    assert "MARKER" not in said
    done = printed(capsys, state, "aliases", "--remove", "a" * 64)
    assert done == {"key": "a" * 64, "entry": "e4", "removed": 1}
    # The other wordings of a doubtful entry go as well, and it is not found by meaning.
    assert printed(capsys, state, "aliases") == []
    assert questions.rows_after(Partition("tenant/acme", "f" * 64), 0) == []
    assert [row["id"] for row in printed(capsys, state, "list", "--entry", "e4")] == ["e4"]
    with pytest.raises(NotFound, match="no alias"):
        run(state, "aliases", "--remove", "a" * 64)
