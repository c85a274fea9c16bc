"""The user's own labelled inputs: read, refused with line, value and fix, and recorded."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from evals.population import OwnInputs, file_of_each_task, read_inputs, suite_population
from evals.suite import Suite, built_in_suites, calibration_half
from evals.suite_check import few_shot_digests
from serving.cli import main
from serving.contracts.attestation import Difference, Population
from serving.contracts.errors import InvalidSuite
from serving.contracts.task_spec import ClassificationSpec, TaskSpec

from ..built_in_tasks import BUILT_IN_TASKS

LABELS = ("negative", "neutral", "positive")
GOOD = [{"text": f"Order number {n} came in time.", "label": LABELS[n % 3]} for n in range(40)]


@pytest.fixture(scope="module")
def suites(specs: dict[str, TaskSpec]) -> dict[str, Suite]:
    return {suite.name: suite for suite in built_in_suites(specs)}


def write(folder: Path, rows: list[Mapping[str, Any] | str], name: str = "mine.jsonl") -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refused(path: Path, suite: Suite) -> InvalidSuite:
    with pytest.raises(InvalidSuite) as raised:
        read_inputs(path, suite)
    assert raised.value.field == "examples"
    assert raised.value.fix
    assert len(raised.value.message) < 600
    return raised.value


def test_inputs_of_a_classification(tmp_path: Path, suites: dict[str, Suite]) -> None:
    rows = [{**GOOD[0], "id": 7, "note": "for people"}, "", *GOOD[1:]]
    path = write(tmp_path, rows)
    own = read_inputs(path, suites["sentiment"])
    assert own.suite.spec == suites["sentiment"].spec
    assert len(own.suite.examples) == 40
    first, second = own.suite.examples[:2]
    assert (first.id, first.request.text, first.expected) == (
        "mine.jsonl, 7", GOOD[0]["text"], "negative",
    )  # fmt: skip
    assert second.id == "mine.jsonl, line 3"
    population = own.population
    assert (population.kind, population.name, population.n) == ("file", "mine.jsonl", 40)
    assert population.sentence == "40 inputs of mine.jsonl"
    # What sha256sum prints, so that a reader of the attestation can compare.
    assert population.digest == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_inputs_of_an_extraction_and_of_a_translation(
    tmp_path: Path, suites: dict[str, Suite]
) -> None:
    found = [{"text": f"Nell saw {n} gulls.", "entities": [{"text": "Nell", "type": "person"}]}
             for n in range(40)]  # fmt: skip
    own = read_inputs(write(tmp_path, found), suites["ner"])
    assert own.suite.examples[0].expected == (("Nell", "person"),)
    both = [{"en": f"{n} apples", "de": f"{n} Äpfel"} for n in range(40)]
    own = read_inputs(write(tmp_path, both), suites["translation"])
    assert {example.slice for example in own.suite.examples} == {"en-de", "de-en"}
    assert own.population.n == 80
    assert len({example.group for example in own.suite.examples}) == 40


def test_a_file_as_other_programs_save_it(tmp_path: Path, suites: dict[str, Suite]) -> None:
    content = "\r\n".join(json.dumps(row) for row in GOOD)
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert len(read_inputs(path, suites["sentiment"]).suite.examples) == 40


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"text": "Tea.", "label": "good"},
         "line 3: label 'good' is not one of ['negative', 'neutral', 'positive']"),
        ({"text": "", "label": "neutral"}, "line 3: text '': "),
        ({"text": " \t", "label": "neutral"}, "line 3: text ' \\t': "),
        ({"text": 3, "label": "neutral"}, "line 3: text is 3, not a string"),
        ({"text": "Tea.", "label": None}, "line 3: label None: "),
        ({"text": "Tea."}, "line 3: field 'label' is missing"),
        ({"label": "neutral"}, "line 3: field 'text' is missing"),
        ("text,label", "line 3: 'text,label': it is not JSON"),
        ("[1]", "line 3: "),
        ({"text": "Order number 0 CAME in  time.", "label": "negative"},
         "line 3: text 'Order number 0 CAME in  time.' is that of line 1"),
    ],
)  # fmt: skip
def test_a_bad_line_is_refused_with_its_number_and_value(
    tmp_path: Path, suites: dict[str, Suite], wrong: Mapping[str, Any] | str, said: str
) -> None:
    error = refused(write(tmp_path, [*GOOD[:2], wrong, *GOOD[2:]]), suites["sentiment"])
    assert error.message.startswith("mine.jsonl: ")
    assert said in error.message
    assert "\n" not in error.message
    assert "errors.pydantic.dev" not in error.message


def test_all_bad_lines_are_counted_and_the_first_are_named(
    tmp_path: Path, suites: dict[str, Suite]
) -> None:
    wrong = [{"text": f"Tea {n}.", "label": "good"} for n in range(5)]
    message = refused(write(tmp_path, [*GOOD, *wrong]), suites["sentiment"]).message
    assert "line 41: " in message
    assert "line 43: " in message
    assert "line 44: " not in message
    assert message.endswith("; and 2 more")


def test_repeated_ids_are_refused(tmp_path: Path, suites: dict[str, Suite]) -> None:
    rows = [{**row, "id": number % 39} for number, row in enumerate(GOOD)]
    message = refused(write(tmp_path, rows), suites["sentiment"]).message
    assert "line 40: id '0' is that of line 1" in message


def test_texts_that_tuned_the_task_are_refused(tmp_path: Path, suites: dict[str, Suite]) -> None:
    suite = suites["sentiment"]
    calibrates = next(e for e in suite.examples if calibration_half(e.group))
    compares = next(e for e in suite.examples if not calibration_half(e.group))
    assert isinstance(suite.spec, ClassificationSpec)
    shown = suite.spec.examples[0].text
    assert few_shot_digests(suite.spec)
    rows = [{"text": text, "label": "neutral"}
            for text in (calibrates.request.text.upper(), shown)]  # fmt: skip
    message = refused(write(tmp_path, [*GOOD, *rows]), suite).message
    assert f"line 41: text {calibrates.request.text.upper()[:20]!r}"[:-1] in message
    assert f"is example {calibrates.id!r} of the suite's half on which confidences" in message
    assert "line 42: " in message
    assert "is shown in the task's own prompt" in message
    # The other half of the suite tunes nothing.
    kept = [*GOOD, {"text": compares.request.text, "label": str(compares.expected)}]
    assert read_inputs(write(tmp_path, kept), suite).population.n == 41


def test_too_small_a_file_is_refused_with_the_number_needed(
    tmp_path: Path, suites: dict[str, Suite]
) -> None:
    # A target error of 0.1 takes 29 accepted answers that are all right.
    error = refused(write(tmp_path, list(GOOD[:28])), suites["sentiment"])
    assert "mine.jsonl has 28 inputs, and 29 accepted ones" in error.message
    assert "target error 0.1" in error.message
    assert "add 1 or more" in str(error.fix)
    assert read_inputs(write(tmp_path, list(GOOD[:29])), suites["sentiment"]).population.n == 29
    assert "has 0 inputs" in refused(write(tmp_path, [""]), suites["sentiment"]).message


def test_files_that_cannot_be_read(tmp_path: Path, suites: dict[str, Suite]) -> None:
    assert "cannot be read: No such file" in refused(tmp_path / "no.jsonl", suites["ner"]).message
    assert "cannot be read: Is a directory" in refused(tmp_path, suites["ner"]).message
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"text": "Tea", "label": "neutral"}\n{"text": "caf\xe9"}')
    assert (
        "latin.jsonl: line 2 is not UTF-8 text: byte 0xe9" in refused(path, suites["ner"]).message
    )


def test_which_file_is_for_which_task() -> None:
    assert file_of_each_task(["a=b.jsonl"], ["topic"]) == {"topic": Path("a=b.jsonl")}
    assert file_of_each_task(["topic=b.jsonl"], ["topic"]) == {"topic": Path("b.jsonl")}
    assert file_of_each_task(["ner=x=1.jsonl", "topic=t"], ["ner", "topic"]) == {
        "ner": Path("x=1.jsonl"), "topic": Path("t"),
    }  # fmt: skip
    with pytest.raises(InvalidSuite, match=r"'b\.jsonl' does not say which of 2 tasks") as raised:
        file_of_each_task(["b.jsonl"], ["ner", "topic"])
    assert "TASK=FILE with one of: ner, topic" in str(raised.value.fix)
    with pytest.raises(InvalidSuite, match="two files for task 'ner': 'a' and 'b'"):
        file_of_each_task(["ner=a", "ner=b"], ["ner", "topic"])


def test_the_population_of_a_suite(suites: dict[str, Suite]) -> None:
    suite = suites["topic"]
    population = suite_population(suite)
    assert population.sentence == f"{len(suite.examples)} inputs of suite topic"
    assert population.digest == suite.digest()
    assert Population.of("suite", "topic", "d", 2000).sentence == "2,000 inputs of suite topic"
    assert Population.of("file", "mine.jsonl", "d", 1).sentence == "1 input of mine.jsonl"


def test_only_visible_differences_are_warnings(suites: dict[str, Suite]) -> None:
    seen = Difference(respect="length", distance=0.5, limit=0.2, finding="a median of 9 words")
    same = Difference(respect="labels", distance=0.1, limit=0.2, finding="equal")
    population = OwnInputs(suites["ner"], "sha256:0", (seen, same)).population
    (warning,) = population.warnings
    assert warning == (
        "builtin differs from the suite in length: a median of 9 words (distance 0.500, visible "
        "above 0.200)"
    )
    read_back = Population.model_validate_json(population.model_dump_json())
    assert read_back == population


def test_the_command_refuses_a_bad_file_before_any_model_is_loaded(
    tmp_path: Path, key: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}", encoding="utf-8")
    path = write(tmp_path, [*GOOD, {"text": "Tea.", "label": "good"}])
    command = ["gate", "--baseline", str(model), "--candidate", str(model), "--suite", "builtin",
               "--key", str(key.private), "--json", "--examples", str(path)]  # fmt: skip
    assert main([*command, "--task", "sentiment"]) == 2
    error = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    assert error["code"] == "invalid_suite"
    assert error["message"].startswith("mine.jsonl: line 41: label 'good' is not one of")
    assert main(command) == 2
    error = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    assert f"does not say which of {len(BUILT_IN_TASKS)} tasks" in error["message"]
