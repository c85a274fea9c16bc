"""Arguments of gate, quantize, keygen and suite: outputs and keys are checked first."""

import json
from pathlib import Path
from typing import Any

import pytest

from quantize.recipe import load_recipe, with_samples
from serving.cli import main

from .checkpoints import write


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    status = main([*map(str, arguments), "--json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "gate.key"
    assert main(["keygen", "--out", str(path)]) == 0
    return path


@pytest.fixture
def gate(tmp_path: Path, key: Path) -> list[object]:
    """Arguments with which only the rest of the command line can be at fault.

    The models are checkpoints of zeros: loading one would fail, with another error.
    """
    folders = [write(tmp_path / name) for name in ("baseline", "candidate")]
    return [
        "gate", "--baseline", folders[0], "--candidate", folders[1], "--suite", "builtin",
        "--task", "topic", "--key", key,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("--min-speed", value) for value in ("nan", "inf", "-inf", "-1", "1e9")),
        *(("--general-margin", value) for value in ("nan", "-0.1", "1.1")),
        *(("--limit", value) for value in ("0", "-5")),
        *(("--seed", value) for value in ("-1", str(2**32))),
    ],
)
def test_numbers_of_a_gate_are_checked_first(
    gate: list[object], capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    capsys.readouterr()
    status, document = run(capsys, *gate, f"{option}={value}")
    assert status == 2
    assert document["error"]["code"] == "invalid_argument"
    assert document["error"]["field"] == option.removeprefix("--").replace("-", "_")
    assert option in document["error"]["message"]


@pytest.mark.parametrize("number", ["1_0", " 1", "+1", "\u0661", "0x1", "1,5", "", "one"])
@pytest.mark.parametrize(
    "words",
    [
        ["gate", "--limit"], ["gate", "--seed"], ["gate", "--min-speed"],
        ["gate", "--general-margin"], ["quantize", "m", "--seed"], ["quantize", "m", "--samples"],
        ["suite", "fetch", "x", "--limit"], ["verify", "m", "--trust", "k", "--max-age-days"],
        ["k8s", "fetch", "--max-age-days"], ["evidence", "label", "c", "--person", "p", "--count"],
        ["router", "evaluate", "--limit"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_number_in_another_notation_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], words: list[str], number: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*words[:-1], f"{words[-1]}={number}"])
    assert caught.value.code == 2
    assert repr(number) in capsys.readouterr().err


@pytest.mark.parametrize(
    "margin", ["topic=0_1", "topic=\u0660", "topic=+0", "topic= 0", "topic=nan"]
)
def test_a_margin_in_another_notation_is_refused(
    gate: list[object], capsys: pytest.CaptureFixture[str], margin: str
) -> None:
    capsys.readouterr()
    status, document = run(capsys, *gate, f"--margin={margin}")
    assert (status, document["error"]["field"]) == (2, "margin")


@pytest.mark.parametrize("days", ["nan", "inf", "-1"])
def test_an_age_that_bounds_nothing_is_refused(
    tmp_path: Path, key: Path, capsys: pytest.CaptureFixture[str], days: str
) -> None:
    capsys.readouterr()
    model, public = write(tmp_path / "model"), f"{key}.pub"
    fetch = ["k8s", "fetch", tmp_path, "--artifact", f"sha256-{'0' * 64}", "--out", tmp_path / "o"]
    for words in (["verify", model], fetch):
        status, document = run(capsys, *words, "--trust", public, f"--max-age-days={days}")
        assert (status, document["error"]["field"]) == (2, "max_age_days")


def test_the_output_of_a_gate_is_checked_first(
    gate: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "used" / "report.html").mkdir(parents=True)
    for out in ("file", "file/below", "nowhere", "x" * 300, "used"):
        capsys.readouterr()
        status, document = run(capsys, *gate, "--out", tmp_path / out)
        assert (status, document["error"]["field"]) == (2, "out"), out


def test_general_tasks_are_checked_first(
    gate: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    status, document = run(capsys, *gate, "--include-path", tmp_path / "nowhere")
    assert (status, document["error"]["field"]) == (2, "include_path")


@pytest.mark.parametrize("out", ["file/x", "file", "file/x/y"])
def test_the_output_of_a_quantization_is_checked_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str
) -> None:
    (tmp_path / "file").touch()
    status, document = run(
        capsys, "quantize", "/nowhere", "--recipe", "/nowhere.yaml", "--out", tmp_path / out
    )
    assert (status, document["error"]["code"]) == (2, "output_in_use")
    assert document["error"]["field"] == "out"
    assert "file" in document["error"]["message"]


@pytest.mark.parametrize("seed", ["-1", str(2**32)])
def test_the_seed_of_a_quantization_is_checked_first(
    capsys: pytest.CaptureFixture[str], seed: str
) -> None:
    status, document = run(capsys, "quantize", "/nowhere", f"--seed={seed}")
    assert (status, document["error"]["field"]) == (2, "seed")


def test_the_number_of_samples_can_be_lowered_for_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = write(tmp_path / "tiny")
    for arguments in (["--samples=0"], ["--recipe", "bnb-nf4", "--samples", "5"]):
        status, document = run(capsys, "quantize", tiny, "--dry-run", *arguments)
        assert (status, document["error"]["field"]) == (2, "samples")
    recipe = load_recipe("int8-w8a8")
    fewer = with_samples(recipe, 96)
    assert recipe.calibration is not None
    assert fewer.calibration == recipe.calibration.model_copy(update={"samples": 96})
    assert fewer.digest() != recipe.digest()
    assert with_samples(recipe, None) is recipe


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"name: caf\xe9\n", "not UTF-8 text (line 1)"),
        (b"name: a\nname: b\n", "'name' is written twice"),
        (b"name: [", "not YAML"),
        (b"[" * 1000, "nested too deeply"),
        (b"name: 2024-99-99", "not readable YAML"),
        (b"name: !!bool maybe", "maybe as true or false"),
        (b"name: !!timestamp soon", "not readable YAML"),
    ],
)
def test_recipes_and_tasks_that_are_not_readable_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, expected: str
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    suite = tmp_path / "suite"
    suite.mkdir()
    (suite / "task.yaml").write_bytes(content)
    for arguments in (
        ["quantize", write(tmp_path / "tiny"), "--recipe", file, "--dry-run"],
        ["tasks", "--tasks-dir", tmp_path],
        ["suite", "check", suite],
    ):
        status, document = run(capsys, *arguments)
        assert status == 2
        assert expected in document["error"]["message"]
        assert ".yaml" in document["error"]["message"]


def test_a_truth_value_in_place_of_a_label_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "spam.yaml").write_text(
        "name: spam\nkind: classification\ninstruction: Is it spam?\nlabels: [yes, no]\n"
    )
    status, document = run(capsys, "tasks", "--tasks-dir", tmp_path)
    assert status == 2
    assert "quotes" in document["error"]["message"]


def test_keys_are_written_both_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "half.pub").touch()
    (tmp_path / "other").touch()
    (tmp_path / "folder.pub").mkdir()
    for out in ("file/key", "half", "other", "folder", "x" * 254, "file"):
        status, document = run(capsys, "keygen", "--out", tmp_path / out)
        assert (status, document["error"]["field"]) == (2, "out"), out
    assert {path.name for path in tmp_path.iterdir()} == {
        "file", "half.pub", "other", "folder.pub"
    }  # fmt: skip
    (tmp_path / "half.pub").unlink()
    assert run(capsys, "keygen", "--out", tmp_path / "half")[0] == 0
    assert run(capsys, "keygen", "--out", "/")[0] == 2
