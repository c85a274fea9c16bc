"""Task files: validated with the field's name, digests that follow only the content."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from serving.contracts import task_spec
from serving.contracts.errors import InvalidTaskSpec
from serving.contracts.task_spec import MAX_LABELS, TaskSpec, parse_task_spec
from serving.tasks.catalog import load_specs

from ..built_in_tasks import BUILT_IN_TASKS

MINIMAL: dict[str, Any] = {
    "name": "spam",
    "kind": "classification",
    "instruction": "Is this spam?",
    "labels": ["yes", "no"],
    "floor": 0.5,
    "target_error": 0.1,
}


def test_the_built_in_tasks(specs: dict[str, TaskSpec]) -> None:
    assert sorted(specs) == list(BUILT_IN_TASKS)
    assert [label.name for label in specs["sentiment"].labels] == [
        "negative", "neutral", "positive",
    ]  # fmt: skip
    assert [label.name for label in specs["topic"].labels] == [
        "World", "Sports", "Business", "Sci-Tech",
    ]  # fmt: skip
    assert [item.name for item in specs["ner"].entity_types] == [
        "person", "organization", "location", "miscellaneous",
    ]  # fmt: skip
    assert set(specs["translation"].languages) == {"en", "de", "fr", "es"}


def test_the_int4_margin_has_no_default(specs: dict[str, TaskSpec]) -> None:
    assert all(spec.margins.int4 is None for spec in specs.values())


@given(st.permutations(sorted(MINIMAL)))
def test_the_digest_does_not_depend_on_key_order(order: list[str]) -> None:
    shuffled = {key: MINIMAL[key] for key in order}
    assert parse_task_spec(shuffled, "a").digest() == parse_task_spec(MINIMAL, "b").digest()


def test_the_digest_does_not_depend_on_yaml_style() -> None:
    flow = yaml.safe_load("# a comment\n" + yaml.safe_dump(MINIMAL, default_flow_style=True))
    assert parse_task_spec(flow, "a").digest() == parse_task_spec(MINIMAL, "b").digest()


@pytest.mark.parametrize(
    "change",
    [
        {"instruction": "Is this spam? "},
        {"labels": ["yes", "nope"]},
        {"labels": ["no", "yes"]},
        {"labels": [{"name": "yes", "verbalizer": "Yes"}, "no"]},
        {"examples": [{"text": "buy now", "label": "yes"}]},
        {"floor": 0.51},
        {"target_error": 0.05},
        {"margins": {"int8": 0.02, "int4": 0.05}},
        {"max_output_tokens": 31},
    ],
)
def test_the_digest_follows_every_value(change: dict[str, Any]) -> None:
    changed = parse_task_spec({**MINIMAL, **change}, "a")
    assert changed.digest() != parse_task_spec(MINIMAL, "a").digest()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kind": "ranking"}, "kind"),
        ({"name": "Spam!"}, "name"),
        ({"labels": ["yes"]}, "labels"),
        ({"labels": ["yes", "yes"]}, "repeated: ['yes']"),
        ({"labels": [f"label {i}" for i in range(MAX_LABELS + 1)]}, "labels"),
        ({"examples": [{"text": "x", "label": "maybe"}]}, "'maybe'"),
        ({"floor": 1.5}, "floor"),
        ({"target_error": 0}, "target_error"),
        ({"metric": "bleu"}, "metric"),
        ({"colour": "red"}, "colour"),
        ({"labels": None}, "labels: must be a list"),
        ({"labels": ["yes", "Yes"]}, "'yes' and 'Yes'"),
        ({"labels": ["yes", "yes\u200b"]}, "'yes\\u200b'"),
        ({"labels": ["yes", "ye\ufe0fs"]}, "must differ in more than case"),
        ({"labels": ["yes", "ｙｅｓ"]}, "must differ in more than case"),  # noqa: RUF001
        (
            {"labels": [{"name": "a", "verbalizer": "x"}, {"name": "b", "verbalizer": "X"}]},
            "labels (verbalizer) must differ",
        ),
        ({"labels": ["\u3164", "no"]}, "no visible character"),
        ({"labels": [True, False]}, "labels.0: YAML reads this as true"),
        ({"labels": [1, 2]}, "labels.1: YAML reads this as 2"),
        ({"labels": [None, "no"]}, "put it in quotes"),
        ({"instruction": "\u200b"}, "instruction: '\\u200b' has no visible character"),
        ({"max_output_tokens": True}, "max_output_tokens"),
        ({"floor": "0.5"}, "floor"),
    ],
)
def test_a_wrong_spec_is_refused_with_the_field(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidTaskSpec, match=r"mytask\.yaml is not a valid task") as caught:
        parse_task_spec({**MINIMAL, **change}, "mytask.yaml")
    assert named in caught.value.message
    assert caught.value.field == "mytask.yaml"
    for inside in ("Input", "String", "Value error", "pydantic", "type="):
        assert inside not in caught.value.message


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"metric": "bleu"}, "metric: it must be 'accuracy' or 'macro_f1', not 'bleu'"),
        ({"floor": 1.5}, "floor: it must be less than or equal to 1, not 1.5"),
        ({"kind": "regression"}, "its field 'kind' is 'regression'; it must be one of"),
        ({"name": "My task"}, "a letter first, not 'My task'"),
        ({"max_output_tokens": 0}, "it must be greater than or equal to 1, not 0"),
    ],
)
def test_a_wrong_value_is_told_with_what_it_must_be(change: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidTaskSpec) as caught:
        parse_task_spec({**MINIMAL, **change}, "mytask.yaml")
    assert told in caught.value.message


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: (
    st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
), max_leaves=8))  # fmt: skip
def test_any_document_is_a_task_or_a_clear_error(document: object) -> None:
    with pytest.raises(InvalidTaskSpec):
        parse_task_spec(document, "x.yaml")


def test_a_list_at_fault_is_not_also_called_too_short() -> None:
    with pytest.raises(InvalidTaskSpec) as caught:
        parse_task_spec({**MINIMAL, "labels": [True, False]}, "mytask.yaml")
    assert "at least 2" not in caught.value.message


def test_only_a_loss_other_than_the_default_changes_a_digest() -> None:
    entities = {
        "name": "places", "kind": "extraction", "instruction": "Find places.",
        "entity_types": [{"name": "place", "description": "places"}], "max_output_tokens": 64,
        "floor": 0.1, "target_error": 0.1,
    }  # fmt: skip
    digests = {
        loss: parse_task_spec({**entities, **loss_of}, "a").digest()
        for loss, loss_of in {
            "absent": {}, "exact": {"loss": "exact"}, "f1": {"loss": "one_minus_f1"},
        }.items()
    }  # fmt: skip
    assert digests["absent"] == digests["exact"] != digests["f1"]


def test_a_new_prompt_format_changes_only_the_digests_of_its_kind(
    specs: dict[str, TaskSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: spec.digest() for name, spec in specs.items()}
    raised = {**task_spec.PROMPT_FORMATS, "extraction": 99}
    monkeypatch.setattr(task_spec, "PROMPT_FORMATS", raised)
    after = {name: spec.digest() for name, spec in specs.items()}
    assert [name for name in specs if before[name] != after[name]] == ["ner"]


def test_an_entity_of_an_example_must_occur_in_it() -> None:
    with pytest.raises(InvalidTaskSpec, match="'Rome' does not occur"):
        parse_task_spec(
            {
                "name": "places", "kind": "extraction", "instruction": "Find places.",
                "max_output_tokens": 64, "floor": 0.1, "target_error": 0.1,
                "entity_types": [{"name": "place", "description": "places"}],
                "examples": [{"text": "Paris", "entities": [{"text": "Rome", "type": "place"}]}],
            },
            "places.yaml",
        )  # fmt: skip


def test_a_users_folder_adds_and_replaces(tmp_path: Path) -> None:
    (tmp_path / "spam.yaml").write_text(yaml.safe_dump(MINIMAL), encoding="utf-8")
    mine = {**MINIMAL, "name": "sentiment"}
    (tmp_path / "mine.yml").write_text(yaml.safe_dump(mine), encoding="utf-8")
    specs = load_specs(tmp_path)
    assert sorted(specs) == sorted([*BUILT_IN_TASKS, "spam"])
    assert specs["sentiment"].instruction == "Is this spam?"


def test_two_files_for_one_task_are_refused(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(yaml.safe_dump(MINIMAL), encoding="utf-8")
    with pytest.raises(InvalidTaskSpec, match=r"b\.yaml and a\.yaml both describe task 'spam'"):
        load_specs(tmp_path)


def test_broken_yaml_and_a_missing_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: [", encoding="utf-8")
    with pytest.raises(InvalidTaskSpec, match=r"bad\.yaml is not YAML"):
        load_specs(tmp_path)
    with pytest.raises(InvalidTaskSpec, match="not a folder"):
        load_specs(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: spam\ndescription: caf\xe9\n", "UTF-8"),
        (b"name: spam\nname: ham\n", "name"),
        (yaml.safe_dump(MINIMAL).replace("'yes'", "yes").encode(), "put it in quotes"),
    ],
)
def test_a_task_file_at_fault_is_named_in_one_sentence(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(InvalidTaskSpec, match=r"mine\.yaml") as caught:
        load_specs(tmp_path)
    assert message in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("labels", ["[yes, no]", "[true, false]", "[1, 2]"])
def test_labels_that_yaml_does_not_read_as_text_must_be_quoted(tmp_path: Path, labels: str) -> None:
    text = "name: it\nkind: classification\ninstruction: x\nfloor: 0.1\ntarget_error: 0.1\n"
    (tmp_path / "it.yaml").write_text(text + f"labels: {labels}\n", encoding="utf-8")
    with pytest.raises(InvalidTaskSpec, match="quote") as caught:
        load_specs(tmp_path)
    assert "YAML reads" in caught.value.message
    assert "Label" not in caught.value.message
    (tmp_path / "it.yaml").write_text(text + "labels: ['yes', 'no']\n", encoding="utf-8")
    assert "it" in load_specs(tmp_path)


def test_a_key_that_is_written_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "it.yaml").write_text("name: it\nname: other\n", encoding="utf-8")
    with pytest.raises(InvalidTaskSpec, match=r"'name' is written twice \(line 2"):
        load_specs(tmp_path)
