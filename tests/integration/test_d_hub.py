"""A model by hub id and commit, fetched over HTTP by the hub's own client."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import ROOT
from .hub import serve_hub

pytestmark = pytest.mark.timeout(300)

BASELINE = ROOT / ".narrowgate" / "models" / "smollm2-135m-instruct"
REPO, COMMIT = "someone/small-llama", "c0ffee" + "0" * 34


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with serve_hub({REPO: BASELINE}, COMMIT) as url:
        yield url


def run(endpoint: str, cache: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, "-m", "serving.cli", "quantize", *map(str, arguments), "--json"],
        capture_output=True, text=True, check=False, cwd=ROOT,
        env=environment,
    )  # fmt: skip


def test_a_plan_fetches_no_weights(endpoint: str, tmp_path: Path) -> None:
    done = run(endpoint, tmp_path, REPO, "--revision", COMMIT, "--recipe", "int4-w4a16-gptq",
               "--dry-run")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    plan = json.loads(done.stdout)
    assert plan["group_size"] == 64
    assert len(plan["layers"]) == 210
    assert not list(tmp_path.rglob("*.safetensors"))


def test_an_artifact_names_its_commit(endpoint: str, tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    done = run(endpoint, tmp_path, REPO, "--revision", COMMIT, "--recipe", "bnb-int8", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((out / "provenance.json").read_text(encoding="utf-8"))
    assert facts["base"]["id"] == REPO
    assert facts["base"]["revision"] == COMMIT
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"base_model: {REPO}" in card


def test_an_unknown_hub_model_is_an_error_with_its_name(endpoint: str, tmp_path: Path) -> None:
    done = run(endpoint, tmp_path, "someone/else", "--revision", COMMIT, "--recipe", "bnb-int8",
               "--dry-run")  # fmt: skip
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "unsuitable_model"
    assert "someone/else" in error["message"]
