"""The subcommand: plans, errors with their fix, the second environment, progress."""

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from quantize import environment
from quantize.environment import quantize_python
from quantize.job import Layer, Outliers, Stage
from quantize.progress import Bar, JsonLines
from serving.cli import main
from serving.contracts.errors import EnvironmentUnavailable

from .checkpoints import config, tensors, write


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    status = main(["quantize", *map(str, arguments), "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_a_plan_needs_headers_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "tiny")
    status, plan = run(capsys, folder, "--recipe", "bnb-int8", "--dry-run", "--device", "cpu")
    assert status == 0
    assert plan["model"] == "tiny"
    assert len(plan["layers"]) == 14
    assert plan["size_after_bytes"] < plan["size_before_bytes"]
    assert main(["quantize", str(folder), "--recipe", "bnb-nf4", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "down_proj" in shown
    assert "64 x 192" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "field"),
    [
        (["--recipe", "bnb-int8", "--dry-run"], "unsuitable_model", "model"),
        (["TINY", "--dry-run"], "invalid_recipe", "recipe"),
        (["TINY", "--recipe", "bnb-int8"], "output_in_use", "out"),
        (["TINY", "--recipe", "bnb-int8", "--out", "TINY"], "output_in_use", "out"),
        (["TINY", "--recipe", "int3", "--dry-run"], "invalid_recipe", "recipe"),
        (["TINY", "--recipe", "int8-w8a8", "--target", "v100", "--dry-run"],
         "unsuitable_target", "target"),
        (["owner/name", "--recipe", "bnb-int8", "--dry-run"], "unsuitable_model", "revision"),
        (["TINY", "--recipe", "int8-w8a8", "--target", "a10g", "--held-out", "/nowhere.jsonl",
          "--dry-run"], "invalid_calibration", "held_out"),
        (["TINY", "--recipe", "int8-w8a8", "--calibration", "/nowhere.jsonl", "--dry-run",
          "--target", "a10g"], "invalid_calibration", "calibration"),
        (["--compare", "TINY"], "unsuitable_model", "model"),
        (["--compare", "/nowhere"], "unsuitable_model", "compare"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_field(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: str,
    field: str,
) -> None:
    folder = str(write(tmp_path / "tiny"))
    given = [folder if argument == "TINY" else argument for argument in arguments]
    status, document = run(capsys, *given)
    assert status == 2
    assert (document["error"]["code"], document["error"]["field"]) == (code, field)


def test_group_sizes_are_refused_before_any_text_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"hidden": 64, "intermediate": 144}
    folder = write(tmp_path / "odd", tensors(**sizes), config(**sizes))
    status, document = run(
        capsys, folder, "--recipe", "int4-w4a16-gptq", "--dry-run", "--calibration", "/nowhere"
    )
    assert status == 2
    assert document["error"]["field"] == "group_size"
    assert "down_proj (144 inputs)" in document["error"]["message"]
    assert "16" in document["error"]["fix"]


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "--recipes"]) == 0
    assert "int8-w8a8" in capsys.readouterr().out
    assert main(["quantize", "--recipes", "--json"]) == 0
    assert {"int4-gptq", "bnb-nf4"} <= {row["name"] for row in json.loads(capsys.readouterr().out)}


def test_progress_is_silent_in_a_pipe_and_json_on_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reports = [
        Stage(name="quantize"),
        Outliers(layers={"model.layers.1.mlp.down_proj": 99.5}),
        Layer(index=1, total=30, loss=0.5, memory_bytes=2**30),
    ]
    with Bar() as bar:
        for report in reports:
            bar.report(report)
    assert capsys.readouterr() == ("", "")
    lines = JsonLines()
    lines.say("checking")
    for report in reports:
        lines.report(report)
    out, err = capsys.readouterr()
    assert out == ""
    events = [json.loads(line) for line in err.splitlines()]
    assert [event["event"] for event in events] == ["step", "stage", "outliers", "layer"]
    assert events[3]["loss"] == 0.5


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay a source checkout whose install script makes an interpreter and counts its runs."""
    root = tmp_path / "project"
    (root / "requirements").mkdir(parents=True)
    (root / "pyproject.toml").write_text("", encoding="utf-8")
    (root / "requirements" / "quantize-cpu.txt").write_text("a==1", encoding="utf-8")
    install = root / "requirements" / "install"
    install.write_text(
        '#!/bin/sh\nset -e\n[ ! -f fail ] || { echo "no index" >&2; exit 1; }\n'
        'mkdir -p "$1/bin"\ntouch "$1/bin/python"\necho run >> runs\n',
        encoding="utf-8",
    )
    install.chmod(install.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(environment, "_ROOT", root)
    monkeypatch.setattr(environment, "_INSTALL", install)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    return root


def python(said: list[str] | None = None, given: Path | None = None) -> Path:
    return quantize_python(
        gpu=False, given=given, announce=(said if said is not None else []).append
    )


def test_the_second_environment_is_made_once_and_again_when_it_changes(project: Path) -> None:
    said: list[str] = []
    assert python(said) == project.parent / "venv-quantize" / "bin" / "python"
    assert len(said) == 1
    python(said)
    assert (project / "runs").read_text().split() == ["run"]
    (project / "requirements" / "quantize-cpu.txt").write_text("a==2", encoding="utf-8")
    python(said)
    assert (project / "runs").read_text().split() == ["run", "run"]


def test_a_failed_installation_is_told_and_tried_again(project: Path) -> None:
    (project / "fail").touch()
    with pytest.raises(EnvironmentUnavailable, match="no index"):
        python()
    (project / "fail").unlink()
    assert python().exists()


def test_without_a_checkout_an_interpreter_must_be_named(project: Path) -> None:
    (project / "requirements" / "quantize-cpu.txt").unlink()
    with pytest.raises(EnvironmentUnavailable) as caught:
        python()
    assert "--python" in (caught.value.fix or "")
    assert python(given=Path(sys.executable)) == Path(sys.executable)
    with pytest.raises(EnvironmentUnavailable, match="no interpreter"):
        python(given=project / "none")
