"""Public data sets: from local files and from a hub on a loopback socket to suites that load."""

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.commands import suite as command
from evals.public_sets.catalog import SETS, Row
from evals.public_sets.conversion import mentions
from evals.public_sets.fetch import Origin, datasheet, fetch, origin_of, write_suite
from evals.public_sets.selection import sample
from evals.suite import load_suites
from evals.suite_check import check
from serving.contracts.errors import InvalidSuite, OutputInUse, UnknownTask
from serving.contracts.task_spec import TaskSpec, folded_name

COMMIT = "c0ffee" + "0" * 34


def jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def get(name: str, spec: TaskSpec, *files: Path, limit: int | None = None) -> list[Row]:
    return fetch(name, spec, revision=None, files=files, limit=limit, seed=0)


def test_integers_become_the_labels_they_stand_for(
    tmp_path: Path, specs: dict[str, TaskSpec]
) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"sentence": "a dull tale ", "label": 0},
                                        {"sentence": "a bright tale", "label": 1}])  # fmt: skip
    assert get("sst2", specs["sentiment"], file) == [
        {"id": "sst2-0", "text": "a dull tale", "label": "negative"},
        {"id": "sst2-1", "text": "a bright tale", "label": "positive"},
    ]
    (row,) = get("tweet_eval", specs["sentiment"], jsonl(file, [{"text": "so", "label": 1}]))
    assert row["label"] == "neutral"


def test_files_of_every_kind_and_several_of_them(
    tmp_path: Path, specs: dict[str, TaskSpec]
) -> None:
    table = pa.table({"text": ["Gills grow from stem cells"], "label": [3]})
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text('text,label\n"Boats, sold",2\n', encoding="utf-8")
    (tmp_path / "c.json").write_text('[{"text": "Cup won", "label": "Sports"}]', encoding="utf-8")
    files = [tmp_path / name for name in ("a.parquet", "b.csv", "c.json")]
    rows = get("ag_news", specs["topic"], *files)
    assert [(row["id"], row["label"]) for row in rows] == [
        ("ag_news-0", "Sci-Tech"), ("ag_news-1", "Business"), ("ag_news-2", "Sports"),
    ]  # fmt: skip


def test_tags_become_entities(tmp_path: Path, specs: dict[str, TaskSpec]) -> None:
    record = {"tokens": ["Ada", "Quill", "left", "Port", "Ebb", "."],
              "ner_tags": [1, 2, 0, 5, 6, 0]}  # fmt: skip
    (row,) = get("conll2003", specs["ner"], jsonl(tmp_path / "a.jsonl", [record]))
    assert row == {
        "id": "conll2003-0",
        "text": "Ada Quill left Port Ebb .",
        "entities": [{"text": "Ada Quill", "type": "person"},
                     {"text": "Port Ebb", "type": "location"}],
    }  # fmt: skip
    records = [
        {"tokens": ["Quibo", "sold", "Zap"], "ner_tags": ["B-corporation", "O", "B-product"]},
        {"tokens": ["nothing", "here"], "ner_tags": ["O", "O"]},
    ]
    first, second = get("wnut17", specs["ner"], jsonl(tmp_path / "b.jsonl", records))
    assert [e["type"] for e in first["entities"]] == ["organization", "miscellaneous"]
    assert second["entities"] == []
    given_whole = [{"text": "Quibo sold", "entities": [{"text": "Quibo", "type": "group"}]}]
    (row,) = get("wnut17", specs["ner"], jsonl(tmp_path / "c.jsonl", given_whole))
    assert row["entities"] == [{"text": "Quibo", "type": "organization"}]


tokens = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=6)
tags = st.sampled_from(["O", "B-x", "I-x", "B-y", "I-y"])


@given(st.lists(st.tuples(tokens, tags), max_size=12))
def test_every_entity_occurs_in_the_text_and_in_its_order(pairs: list[tuple[str, str]]) -> None:
    words, marks = [word for word, _ in pairs], [mark for _, mark in pairs]
    text, found = mentions(words, marks)
    assert text == " ".join(words)
    position = 0
    for item in found:
        position = text.index(item["text"], position) + len(item["text"])
    inside = [word for word, mark in pairs if mark != "O"]
    assert " ".join(item["text"] for item in found).split() == inside
    assert sum(mark.startswith("B-") for mark in marks) <= len(found)


def test_unequal_tokens_and_tags_are_refused(tmp_path: Path, specs: dict[str, TaskSpec]) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"tokens": ["Ada"], "ner_tags": [0, 0]}])
    with pytest.raises(InvalidSuite, match="conll2003, row 0"):
        get("conll2003", specs["ner"], file)


def test_sentences_are_aligned_from_columns_or_tables(
    tmp_path: Path, specs: dict[str, TaskSpec]
) -> None:
    spec = specs["translation"]
    columns = jsonl(tmp_path / "a.jsonl", [
        {"id": 4, "sentence_eng_Latn": "Good day", "sentence_deu_Latn": "Guten Tag"},
        {"id": 5, "en": "Thanks", "fr": "Merci", "it": "Grazie"},
        {"id": 6, "en": "Alone"},
    ])  # fmt: skip
    assert get("flores", spec, columns) == [
        {"id": "flores-4", "en": "Good day", "de": "Guten Tag"},
        {"id": "flores-5", "en": "Thanks", "fr": "Merci"},
    ]
    english = jsonl(tmp_path / "b.jsonl", [{"id": 1, "iso_639_3": "eng", "text": "Good day"}])
    spanish = jsonl(tmp_path / "c.jsonl", [{"id": 1, "iso_639_3": "spa", "text": "Buenos días"}])
    assert get("flores", spec, english, spanish) == [
        {"id": "flores-1", "en": "Good day", "es": "Buenos días"}
    ]


def test_rows_that_a_suite_cannot_hold_are_omitted(
    tmp_path: Path, specs: dict[str, TaskSpec]
) -> None:
    spec = specs["sentiment"]
    shown = spec.examples[0].text  # type: ignore[union-attr]
    texts = [("Fine tea", 2), ("fine  TEA", 2), ("Odd tea", 0), ("odd tea", 1), (" ", 1),
             (shown, 0), ("\x1b", 1), ("\u200b", 1), ("long " * 5000, 1),
             ("Bad tea", 0)]  # fmt: skip
    records = [{"text": text, "label": label} for text, label in texts]
    rows = get("tweet_eval", spec, jsonl(tmp_path / "a.jsonl", records))
    assert [row["text"] for row in rows] == ["Fine tea", "Bad tea"]
    with pytest.raises(InvalidSuite, match="no row that task 'sentiment' can use"):
        get("tweet_eval", spec, jsonl(tmp_path / "a.jsonl", records[4:5]))


def test_sentences_that_a_suite_cannot_hold_are_left_out(
    tmp_path: Path, specs: dict[str, TaskSpec]
) -> None:
    records = [{"id": 1, "en": "\x1b", "de": "Guten Tag"}, {"id": 2, "en": "Hi", "de": "Hallo"}]
    file = jsonl(tmp_path / "a.jsonl", records)
    rows = get("flores", specs["translation"], file)
    assert [row["id"] for row in rows] == ["flores-2"]
    out = tmp_path / "suite"
    write_suite(rows, specs["translation"], out, Origin(SETS["flores"], COMMIT, {}, None, 0))
    assert len(load_suites(out)) == 1


@given(
    st.lists(st.sampled_from("abc"), min_size=1, max_size=60),
    st.integers(1, 70),
    st.integers(0, 3),
)
def test_a_sample_keeps_order_size_and_shares(labels: list[str], limit: int, seed: int) -> None:
    rows: list[Row] = [{"id": number, "label": label} for number, label in enumerate(labels)]
    drawn = sample(rows, limit, seed)
    assert len(drawn) == min(limit, len(rows))
    assert [row["id"] for row in drawn] == sorted({row["id"] for row in drawn})
    assert drawn == sample(rows, limit, seed)
    before, after = Counter(labels), Counter(row["label"] for row in drawn)
    for label, count in before.items():
        assert abs(after[label] - len(drawn) * count / len(rows)) < 1.0


def test_another_seed_draws_others() -> None:
    rows: list[Row] = [{"id": number} for number in range(100)]
    assert sample(rows, 10, 0) != sample(rows, 10, 1)


@pytest.mark.parametrize(
    ("name", "task", "options", "field"),
    [
        ("imdb", "sentiment", {}, "name"),
        ("sst2", "sentiment", {"files": []}, "revision"),
        ("sst2", "sentiment", {"revision": COMMIT}, "revision"),
        ("sst2", "sentiment", {"files": [], "revision": "main"}, "revision"),
        ("sst2", "sentiment", {"files": [], "revision": COMMIT.upper()}, "revision"),
        ("sst2", "sentiment", {"files": ["absent.jsonl"]}, "file"),
        ("sst2", "sentiment", {"files": ["a.txt"]}, "file"),
        ("sst2", "sentiment", {"files": ["broken.jsonl"]}, "suite"),
        ("sst2", "sentiment", {"files": ["withheld.jsonl"]}, "suite"),
        ("sst2", "sentiment", {"files": ["columns.jsonl"]}, "suite"),
        ("sst2", "topic", {}, "suite"),
        ("sst2", "ner", {}, "task"),
        ("sst2", "sentiment", {"limit": 0}, "limit"),
    ],
)
def test_sets_that_cannot_be_fetched_are_refused(
    tmp_path: Path,
    specs: dict[str, TaskSpec],
    name: str,
    task: str,
    options: dict[str, Any],
    field: str,
) -> None:
    jsonl(tmp_path / "a.jsonl", [{"text": "tea", "label": 1}])
    jsonl(tmp_path / "withheld.jsonl", [{"text": "tea", "label": -1}])
    jsonl(tmp_path / "columns.jsonl", [{"words": "tea", "label": 1}])
    (tmp_path / "a.txt").write_text("tea", encoding="utf-8")
    (tmp_path / "broken.jsonl").write_text('{"text": ', encoding="utf-8")
    files = [tmp_path / file for file in options.get("files", ["a.jsonl"])]
    with pytest.raises(InvalidSuite) as raised:
        fetch(name, specs[task], revision=options.get("revision"), files=files,
              limit=options.get("limit"), seed=0)  # fmt: skip
    assert raised.value.field == field


@given(st.lists(st.text(min_size=1).filter(folded_name), min_size=1, max_size=5, unique=True))
def test_a_written_suite_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, specs: dict[str, TaskSpec], texts: list[str]
) -> None:
    rows: list[Row] = [
        {"id": f"x-{number}", "text": text, "label": "neutral"} for number, text in enumerate(texts)
    ]
    out = tmp_path_factory.mktemp("suite") / "new"
    write_suite(rows, specs["sentiment"], out, Origin(SETS["sst2"], COMMIT, {}, None, 0))
    (suite,) = load_suites(out)
    assert [(e.id, e.request.text) for e in suite.examples] == [(r["id"], r["text"]) for r in rows]
    assert suite.spec.digest() == specs["sentiment"].digest()


def test_the_datasheet_names_the_source_of_the_rows(
    tmp_path: Path, specs: dict[str, TaskSpec]
) -> None:
    file = jsonl(tmp_path / "tea.jsonl", [{"text": "tea", "label": 1}])
    origin = origin_of("sst2", revision=None, files=[file], limit=5, seed=3)
    shown = datasheet(origin, 1, specs["sentiment"])
    assert f"`tea.jsonl`, SHA-256 `{hashlib.sha256(file.read_bytes()).hexdigest()}`" in shown
    assert "examples: 1 (at most 5, drawn with seed 3" in shown
    assert "licence: check it at the source" in shown
    origin = origin_of("tweet_eval", revision=COMMIT, files=[], limit=None, seed=0)
    shown = datasheet(origin, 2, specs["sentiment"])
    assert "hub: `cardiffnlp/tweet_eval`, sentiment, split test" in shown
    assert f"revision: `{COMMIT}`" in shown


def run(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    command.configure(parser)
    return command.run(parser.parse_args(arguments))


def test_the_subcommand_makes_a_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    topics = ("World", "Sports", "Business", "Sci/Tech")
    records = [{"text": f"{t} news", "label": n} for n, t in enumerate(topics)]
    file, out = jsonl(tmp_path / "a.jsonl", records), tmp_path / "suite"
    arguments = ["fetch", "ag_news", "--file", str(file), "--out", str(out)]
    assert run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["out"], document["examples"]) == (str(out), 4)
    (suite,) = load_suites(out)
    assert check(suite).digest == document["digest"]
    assert sorted(path.name for path in out.iterdir()) == [
        "datasheet.md", "task.yaml", "test.jsonl",
    ]  # fmt: skip
    with pytest.raises(OutputInUse, match="is not empty"):
        run(arguments)
    with pytest.raises(UnknownTask):
        run([*arguments[:-1], str(tmp_path / "other"), "--task", "poetry"])
    assert run(["list", "--json"]) == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(SETS)
