"""The subcommand: plans, errors with their fix, the second environment, progress."""

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pydantic
import pytest

from quantize import job
from quantize.environment import REQUIREMENTS, quantize_python, worker_environment
from quantize.job import Layer, Outliers, Stage
from quantize.progress import RunSteps
from serving.cli import main
from serving.contracts.errors import EnvironmentUnavailable
from serving.host.progress import JsonLines

from .checkpoints import config, tensors, write


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    status = main(["quantize", *map(str, arguments), "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_a_plan_needs_only_headers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert main(["quantize", "--list-recipes"]) == 0
    assert "int8-w8a8" in capsys.readouterr().out
    assert main(["quantize", "--list-recipes", "--json"]) == 0
    assert {"int4-gptq", "bnb-nf4"} <= {row["name"] for row in json.loads(capsys.readouterr().out)}


def test_reports_of_the_worker_become_steps_with_a_share(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reports = [
        Stage(name="load"),
        Stage(name="quantize"),
        Outliers(layers={"model.layers.1.mlp.down_proj": 99.5}),
        *(Layer(index=n, total=30, loss=0.5, memory_bytes=2**30) for n in range(1, 31)),
        Stage(name="save"),
    ]
    with JsonLines() as lines:
        steps = RunSteps(lines, 30)
        steps.begin("fetching")
        for report in reports:
            steps.report(report)
    out, err = capsys.readouterr()
    assert out == ""
    events = [json.loads(line) for line in err.splitlines()]
    assert {event["event"] for event in events} == {"step"}
    shares = [event["share"] for event in events]
    assert shares == sorted(shares)
    assert shares[0] == 0.0
    assert 0.9 < shares[-1] < 1.0
    assert events[3]["kept_16bit"] == {"model.layers.1.mlp.down_proj": 99.5}
    assert (events[4]["index"], events[4]["loss"]) == (1, 0.5)
    assert all("shown" not in event for event in events)


@pytest.fixture
def requirements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Resolved requirements: a package that is installed here, and one from a folder of wheels."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    (tmp_path / "torch-cpu.txt").write_text(f"torch=={version('torch')}\n", encoding="utf-8")
    write_requirements(tmp_path, "1.0")
    return tmp_path


def write_requirements(folder: Path, probe: str) -> None:
    wheel = write_wheel(folder, probe)
    (folder / "cpu.txt").write_text(
        f"pydantic=={version('pydantic')} \\\n    --hash=sha256:{'0' * 64}\n"
        f"probe=={probe} \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n",
        encoding="utf-8",
    )


def write_wheel(folder: Path, version: str) -> Path:
    path = folder / f"probe-{version}-py3-none-any.whl"
    facts = f"probe-{version}.dist-info"
    files = {
        "probe.py": f"VERSION = {version!r}\n",
        f"{facts}/METADATA": f"Metadata-Version: 2.1\nName: probe\nVersion: {version}\n",
        f"{facts}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{facts}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{facts}/RECORD"])
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return path


def python(
    requirements: Path, announced: list[str] | None = None, given: Path | None = None
) -> Path:
    announce = (announced if announced is not None else []).append
    return quantize_python(gpu=False, given=given, announce=announce, requirements=requirements)


def printed(interpreter: Path, code: str, **variables: str) -> str:
    done = subprocess.run(
        [interpreter, "-c", code], capture_output=True, text=True, check=True, cwd="/",
        env={**os.environ, "PYTHONPATH": "", **variables},
    )  # fmt: skip
    return done.stdout.strip()


def test_the_second_environment_is_made_once_and_again_when_it_changes(requirements: Path) -> None:
    announced: list[str] = []
    made = python(requirements, announced)
    assert made.is_relative_to(requirements / "cache" / "narrowgate")
    assert len(announced) == 1
    assert printed(made, "import probe; print(probe.VERSION)") == "1.0"
    assert python(requirements, announced) == made
    assert len(announced) == 1
    write_requirements(requirements, "2.0")
    assert printed(python(requirements, announced), "import probe; print(probe.VERSION)") == "2.0"
    assert len(announced) == 2


def test_fitting_packages_are_shared_and_the_worker_imports_this_process_code(
    requirements: Path, tmp_path: Path
) -> None:
    made = python(requirements)
    with worker_environment(tmp_path) as variables:
        code = "import pydantic, quantize.job as job; print(pydantic.__file__, job.__file__)"
        shared, ours = map(Path, printed(made, code, **variables).split())
        assert ours.resolve() == Path(job.__file__).resolve()
    assert shared.parent == Path(pydantic.__file__).parent.resolve()
    assert "pydantic" not in {path.name for path in made.parent.parent.glob("lib/*/*/*")}
    assert not (tmp_path / "code").exists()


def test_a_failed_installation_is_told_and_tried_again(requirements: Path) -> None:
    wheel = requirements / "probe-1.0-py3-none-any.whl"
    whole = wheel.read_bytes()
    with zipfile.ZipFile(wheel, "a") as altered:
        altered.writestr("more.py", "")
    with pytest.raises(EnvironmentUnavailable, match="Hash mismatch"):
        python(requirements)
    wheel.write_bytes(whole)
    assert python(requirements).exists()


def test_a_cache_that_cannot_be_written_is_named(
    requirements: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (requirements / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(requirements / "file"))
    with pytest.raises(EnvironmentUnavailable, match="file") as caught:
        python(requirements)
    assert "XDG_CACHE_HOME" in (caught.value.fix or "")
    assert "--python" in (caught.value.fix or "")


def test_an_interpreter_that_is_named_is_used_as_it_is(requirements: Path) -> None:
    assert python(requirements, given=Path(sys.executable)) == Path(sys.executable)
    with pytest.raises(EnvironmentUnavailable, match="not an executable file"):
        python(requirements, given=requirements / "none")


@pytest.mark.parametrize("name", ["cpu.txt", "gpu.txt"])
def test_the_shipped_requirements_have_versions_and_hashes(name: str) -> None:
    text = (REQUIREMENTS / name).read_text(encoding="utf-8")
    blocks = [block for block in re.split(r"\n(?=\S)", text.strip()) if block]
    assert len(blocks) > 100
    assert all(re.match(r"^[\w.-]+==\S+ \\\n +--hash=sha256:", block) for block in blocks)
    assert {"llmcompressor", "gptqmodel"} <= {block.partition("==")[0] for block in blocks}
