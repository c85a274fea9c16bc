"""Suites: every kind of task is read, every mistake is placed, the digest is the examples'."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from evals.suite import Example, Suite, built_in_suites, load_suites, named_suites
from serving.contracts.answer import TaskRequest
from serving.contracts.errors import InvalidSuite, InvalidTaskSpec
from serving.contracts.task_spec import TaskSpec
from serving.tasks.fingerprint import text_digest

from ..built_in_tasks import BUILT_IN_TASKS

ROWS: dict[str, list[dict[str, Any]]] = {
    "sentiment": [
        {"id": "a", "text": "Lovely tea.", "label": "positive", "domain": "cafe"},
        {"text": "The tea is at four.", "label": "neutral"},
    ],
    "ner": [
        {"id": 7, "text": "Nell of Ostby sings.",
         "entities": [{"text": "Ostby", "type": "location"}, {"text": "Nell", "type": "person"}]},
        {"id": "b", "text": "It rained.", "entities": []},
    ],
    "translation": [
        {"id": "a", "en": "Good day", "de": "Guten Tag", "fr": "Bonjour"},
        {"id": "b", "text": "Thanks", "source_language": "en", "target_language": "de",
         "reference": "Danke"},
    ],
}  # fmt: skip


def write(folder: Path, spec: TaskSpec, rows: list[dict[str, Any]] | str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False)
    (folder / "task.yaml").write_text(content, encoding="utf-8")
    lines = rows if isinstance(rows, str) else "\n".join(json.dumps(row) for row in rows)
    (folder / "test.jsonl").write_text(lines, encoding="utf-8")
    return folder


def read(folder: Path, spec: TaskSpec, rows: list[dict[str, Any]] | str) -> Suite:
    (suite,) = load_suites(write(folder, spec, rows))
    return suite


def test_a_classification(tmp_path: Path, specs: dict[str, TaskSpec]) -> None:
    suite = read(tmp_path / "mine", specs["sentiment"], ROWS["sentiment"])
    assert (suite.name, suite.source) == ("sentiment", "mine")
    assert suite.spec == specs["sentiment"]
    assert [(e.id, e.group, e.expected, e.slice) for e in suite.examples] == [
        ("a", "a", "positive", None),
        ("test.jsonl, line 2", "test.jsonl, line 2", "neutral", None),
    ]
    assert suite.examples[0].request == TaskRequest("sentiment", "Lovely tea.")


def test_an_extraction(tmp_path: Path, specs: dict[str, TaskSpec]) -> None:
    suite = read(tmp_path, specs["ner"], ROWS["ner"])
    assert [(e.id, e.expected) for e in suite.examples] == [
        ("7", (("Nell", "person"), ("Ostby", "location"))),
        ("b", ()),
    ]


def test_a_translation_in_every_direction_and_in_one(
    tmp_path: Path, specs: dict[str, TaskSpec]
) -> None:
    suite = read(tmp_path, specs["translation"], ROWS["translation"])
    assert [e.slice for e in suite.examples if e.group == "a"] == [
        "en-de", "en-fr", "de-en", "de-fr", "fr-en", "fr-de",
    ]  # fmt: skip
    first, last = suite.examples[0], suite.examples[-1]
    assert (first.id, first.request.text, first.expected) == ("a/en-de", "Good day", "Guten Tag")
    assert (last.id, last.group, last.slice, last.expected) == ("b", "b", "en-de", "Danke")
    assert suite.text_digests()[text_digest("BONJOUR")] == "a/en-fr"


def test_a_folder_of_suites_and_files_in_their_order(
    tmp_path: Path, specs: dict[str, TaskSpec]
) -> None:
    write(tmp_path / "two", specs["ner"], ROWS["ner"])
    write(tmp_path / "one", specs["sentiment"], ROWS["sentiment"])
    (tmp_path / "one" / "more.jsonl").write_text(
        '\n{"text": "Dreadful tea.", "label": "negative"}\n', encoding="utf-8"
    )
    (tmp_path / "no-suite").mkdir()
    one, two = load_suites(tmp_path)
    assert (one.source, two.source) == ("one", "two")
    assert [e.id for e in one.examples] == ["more.jsonl, line 2", "a", "test.jsonl, line 2"]


WRONG = [
    ("sentiment", "not json"),
    ("sentiment", "[1]"),
    ("sentiment", {"text": "Tea."}),
    ("sentiment", {"text": "", "label": "neutral"}),
    ("sentiment", {"text": "Tea.", "label": "good"}),
    ("sentiment", {"text": 3, "label": "neutral"}),
    ("ner", {"text": "Tea.", "entities": [{"text": "Nell", "type": "person"}]}),
    ("ner", {"text": "Nell", "entities": [{"text": "Nell", "type": "animal"}]}),
    ("ner", {"text": "Nell", "entities": "Nell"}),
    ("translation", {"en": "Good day"}),
    ("translation", {"en": "Good day", "de": 3}),
    ("translation", {"text": "Tea", "source_language": "en", "target_language": "it",
                     "reference": "Tè"}),
    ("translation", {"text": "Tea", "source_language": "en", "target_language": "en",
                     "reference": "Tea"}),
    ("translation", {"text": "Tea", "source_language": "en", "target_language": "de",
                     "reference": ""}),
]  # fmt: skip


@pytest.mark.parametrize(("task", "wrong"), WRONG)
def test_every_mistake_names_file_and_line(
    tmp_path: Path, specs: dict[str, TaskSpec], task: str, wrong: str | dict[str, Any]
) -> None:
    good = json.dumps(ROWS[task][0])
    lines = f"{good}\n\n{wrong if isinstance(wrong, str) else json.dumps(wrong)}\n"
    with pytest.raises(InvalidSuite, match=r"^test\.jsonl, line 3: ") as raised:
        read(tmp_path, specs[task], lines)
    assert raised.value.field == "suite"
    assert raised.value.fix


def test_folders_that_are_not_suites_are_refused(
    tmp_path: Path, specs: dict[str, TaskSpec]
) -> None:
    with pytest.raises(InvalidSuite, match="is not a folder"):
        load_suites(tmp_path / "absent")
    with pytest.raises(InvalidSuite, match=r"has no task\.yaml"):
        load_suites(tmp_path)
    with pytest.raises(InvalidSuite, match="no examples"):
        read(tmp_path / "empty", specs["ner"], "\n\n")
    with pytest.raises(InvalidSuite, match="two examples with id 'b'"):
        read(tmp_path / "twice", specs["ner"], [ROWS["ner"][1], ROWS["ner"][1]])
    (tmp_path / "twice" / "task.yaml").write_text("kind: poetry", encoding="utf-8")
    with pytest.raises(InvalidTaskSpec, match="is not a valid task"):
        load_suites(tmp_path / "twice")
    (tmp_path / "twice" / "task.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(InvalidTaskSpec, match=r"twice/task\.yaml is not YAML"):
        load_suites(tmp_path / "twice")


def test_the_digest_is_that_of_the_examples(tmp_path: Path, specs: dict[str, TaskSpec]) -> None:
    spec, rows = specs["sentiment"], ROWS["sentiment"]
    digest = read(tmp_path / "one", spec, rows).digest()
    described = [{"trait": "plain", **row} for row in rows]
    assert read(tmp_path / "other-name", spec, described).digest() == digest
    # A later version that reads the same suite otherwise must not go unnoticed.
    assert digest == "sha256:c3a73c892bfcc5721117649b0a466a8eb898f62b20c3ea7087dd038b9ffbec34"
    for changed in (
        [{**rows[0], "id": "z"}, rows[1]],
        [{**rows[0], "text": "Lovely tea!"}, rows[1]],
        [{**rows[0], "label": "neutral"}, rows[1]],
        rows[:1],
    ):
        assert read(tmp_path / "changed", spec, changed).digest() != digest


def examples(groups: list[int]) -> tuple[Example, ...]:
    return tuple(
        Example(
            str(number), f"group {group}", TaskRequest("sentiment", f"text {number}"), "neutral"
        )
        for number, group in enumerate(groups)
    )


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(1, 8))
def test_the_first_groups_are_kept_whole(
    specs: dict[str, TaskSpec], groups: list[int], limit: int
) -> None:
    suite = Suite("sentiment", "here", specs["sentiment"], examples(groups))
    first = suite.first(limit)
    kept = {example.group for example in first.examples}
    assert len(kept) == min(limit, len(set(groups)))
    assert first.examples == tuple(e for e in suite.examples if e.group in kept)
    assert first.examples[0] == suite.examples[0]
    assert first.first(limit) == first
    assert suite.first(len(groups)) == suite


def test_built_in_suites_are_those_of_the_given_tasks(specs: dict[str, TaskSpec]) -> None:
    suites = built_in_suites(specs)
    assert [suite.name for suite in suites] == list(BUILT_IN_TASKS)
    assert {suite.source for suite in suites} == {"builtin"}
    (only,) = built_in_suites({"topic": specs["topic"]})
    assert only.spec == specs["topic"]


def test_an_extended_suite_begins_with_the_suite_of_the_first_start(
    specs: dict[str, TaskSpec],
) -> None:
    base = {suite.name: suite.examples for suite in named_suites("builtin", specs)}
    for suite in named_suites("builtin-extended", specs):
        assert suite.source == "builtin-extended"
        assert suite.examples[: len(base[suite.name])] == base[suite.name]
    assert {name: len(examples) for name, examples in base.items()} == {
        "ner": 208, "sentiment": 312, "topic": 312, "translation": 1872,
    }  # fmt: skip
