"""The steps of the job `gate`, run as GitHub runs them, with the bundled model."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / ".github" / "workflows" / "model-gate.yml"
SUITE = ROOT / "evals" / "suites" / "topic"
TASK = ROOT / "serving" / "tasks" / "builtin" / "topic.yaml"
OVERLAY = "k8s/overlays/cpu-dev"

# It quantizes and gates: about 12 minutes on two idle cores.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def own_repository(folder: Path) -> None:
    """Write the repository of a user whose only task is the one that the bundled model passes."""
    for name in ("tasks", "suites/topic"):
        (folder / name).mkdir(parents=True)
    shutil.copy(TASK, folder / "tasks" / "topic.yaml")
    for file in SUITE.glob("*.jsonl"):
        shutil.copy(file, folder / "suites" / "topic")
    (folder / "suites" / "topic" / "task.yaml").symlink_to("../../tasks/topic.yaml")
    shutil.copytree(ROOT / OVERLAY, folder / OVERLAY)


def test_the_gates_steps_make_a_model_that_a_cluster_may_serve(tmp_path: Path) -> None:
    checkout, temp = tmp_path / "checkout", tmp_path / "temp"
    temp.mkdir()
    own_repository(checkout)
    key = tmp_path / "gate"
    binaries = ROOT / ".venv" / "bin"
    environment = {
        **os.environ,
        "PATH": f"{binaries}:{os.environ['PATH']}",
        "RUNNER_TEMP": str(temp),
        "GITHUB_OUTPUT": str(tmp_path / "output"),
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"),
        "MODEL": "bundled:smollm2-135m-instruct", "REVISION": "", "RECIPE": "int8-w8a8",
        "MARGINS": "", "CONFIG": "", "HF_TOKEN": "", "STORE": "/store", "OVERLAY": OVERLAY,
        "UPLOAD": f'mkdir "{tmp_path}/store"; cp -r "$1" "{tmp_path}/store/$2"',
        "NARROWGATE_STATE": str(tmp_path / "state"),
    }  # fmt: skip
    made = subprocess.run([binaries / "narrowgate", "keygen", "--out", key], check=False)
    assert made.returncode == 0
    environment["SIGNING_KEY"] = key.read_text(encoding="utf-8").rstrip("\n")
    environment["PUBLIC_KEY"] = Path(f"{key}.pub").read_text(encoding="utf-8").rstrip("\n")

    steps = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]["gate"]["steps"]
    for step in steps:
        if "run" not in step:
            continue
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
            env={**environment, **outputs(tmp_path)},
            cwd=checkout, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (step["name"], done.stdout[-2000:], done.stderr[-2000:])

    artifact = outputs(tmp_path)["ARTIFACT"]
    assert artifact.startswith("sha256-")
    assert not (temp / "narrowgate.key").exists()
    assert "topic" in (tmp_path / "summary").read_text(encoding="utf-8")
    # A pod's init container fetches the uploaded model.
    fetched = subprocess.run(
        [
            binaries / "narrowgate", "k8s", "fetch", tmp_path / "store", "--artifact", artifact,
            "--trust", f"{key}.pub", "--out", tmp_path / "models", "--json",
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert fetched.returncode == 0, fetched.stderr
    assert Path(json.loads(fetched.stdout)["folder"], "model.safetensors").is_file()
    rendered = (temp / "overlay" / "rayservice.yaml").read_text(encoding="utf-8")
    assert f"narrowgate.dev/artifact: {artifact}" in rendered


def outputs(folder: Path) -> dict[str, str]:
    """Return the variables that later steps take from the outputs of earlier ones."""
    file = folder / "output"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    found = dict(line.split("=", 1) for line in lines)
    names = {"folder": "BASELINE", "artifact": "ARTIFACT"}
    return {names[name]: value for name, value in found.items()}
