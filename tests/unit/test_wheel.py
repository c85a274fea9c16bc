"""The built wheel: its files, and a run of its program in an empty folder."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("serving", "quantize", "evals")
NOT_SHIPPED = ("benchmarks", "tests")
BUILD_FILES = ("pyproject.toml", "README.md", "LICENSE")


def run(*command: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A copy: setuptools leaves its work beside the sources.
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, *NOT_SHIPPED):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in BUILD_FILES:
        shutil.copy(ROOT / name, source / name)
    run(
        sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation",
        "--disable-pip-version-check", "--wheel-dir", source / "dist", cwd=source,
    )  # fmt: skip
    (built,) = (source / "dist").glob("narrowgate-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    run(
        sys.executable, "-m", "pip", "install", wheel, "--no-deps", "--no-index", "--quiet",
        "--disable-pip-version-check", "--target", target, cwd=target,
    )  # fmt: skip
    return target


def test_the_wheel_holds_every_file_of_its_packages_and_no_other_package(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == wanted


def test_the_installed_program_runs_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    def narrowgate(*arguments: str) -> str:
        command = (sys.executable, "-m", "serving.cli", *arguments)
        return run(*command, cwd=tmp_path, PYTHONPATH=str(installed))

    code = "import serving, evals, quantize; print(serving.__file__)"
    found = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(installed))
    assert Path(found.strip()).is_relative_to(installed)
    shown = narrowgate("--help")
    for command in ("gate", "quantize", "serve"):
        assert command in shown
    settings = json.loads(narrowgate("config", "--json"))
    assert settings["models"][0]["source"] == "bundled:smollm2-135m-instruct@int8-w8a8"
    assert len(json.loads(narrowgate("tasks", "--json"))) == 4
    assert list(tmp_path.iterdir()) == []
