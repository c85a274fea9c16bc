"""Dockerfile.gpu: its text, and each script that a RUN line calls, run on this machine."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Thread

import pytest

from serving.contracts.settings import GpuAccelerator
from serving.contracts.settings_sources import load_settings
from serving.lifecycle import pod

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "docker"
TEXT = (ROOT / "Dockerfile.gpu").read_text(encoding="utf-8")
# Continued lines joined, comments left out.
LINES = [
    line
    for line in re.sub(r" *\\\n *", " ", re.sub(r"^#.*\n", "", TEXT, flags=re.M)).splitlines()
    if line.strip()
]
BINARIES = Path(sys.executable).parent


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], env={**os.environ, **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def instructions(name: str) -> list[str]:
    return [line.removeprefix(f"{name} ") for line in LINES if line.startswith(f"{name} ")]


def environment() -> dict[str, str]:
    words = " ".join(instructions("ENV")).split()
    return dict(word.split("=", 1) for word in words)


def test_hadolint_reports_nothing() -> None:
    done = run(BINARIES / "hadolint", ROOT / "Dockerfile.gpu")
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_refuses_a_line_that_it_should(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text(TEXT.replace("\nUSER 1000:1000\n", "\nUSER root\n"), encoding="utf-8")
    assert "DL3002" in run(BINARIES / "hadolint", bad).stdout


def test_every_stage_starts_from_the_pinned_base_or_from_another_stage() -> None:
    (base,) = [line for line in instructions("ARG") if line.startswith("BASE=")]
    assert re.fullmatch(r"BASE=[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", base)
    stages = [re.fullmatch(r"(\S+) AS (\S+)", line) for line in instructions("FROM")]
    known = {"${BASE}", "scratch"}
    for stage in stages:
        assert stage is not None
        assert stage[1] in known
        known.add(stage[2])
    # The last one is what `docker build` makes without --target.
    assert stages[-1] is not None
    assert stages[-1].groups() == ("runtime", "serve")


def test_every_run_line_only_calls_scripts_that_exist() -> None:
    called = [part.strip() for line in instructions("RUN") for part in line.split("&&")]
    names = {re.sub(r"^/usr/share/narrowgate/", "", line.split()[0]) for line in called}
    scripts = {f"docker/{path.name}" for path in SCRIPTS.iterdir() if path.suffix != ".yaml"}
    # The health check is a program of the image, not of its build.
    assert names == scripts - {"docker/healthy.py"}
    for name in scripts:
        assert os.access(ROOT / name, os.X_OK), name


def test_shell_scripts_parse_and_stop_at_the_first_error() -> None:
    for path in SCRIPTS.glob("install-*"):
        assert "\nset -eu\n" in path.read_text(encoding="utf-8"), path
        assert run("sh", "-n", path).returncode == 0, path


def test_the_image_installs_the_gpu_requirements_and_nothing_else() -> None:
    installs = [line for line in instructions("RUN") if "install-requirements" in line]
    assert installs == ["docker/install-requirements /opt/narrowgate requirements/gpu.txt"]
    for path in [ROOT / "Dockerfile.gpu", *SCRIPTS.glob("install-*")]:
        for line in path.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
            if re.search(r"pip[\"']? install", line):
                assert "--no-deps" in line, (path, line)


def test_the_engine_of_the_image_is_the_one_that_the_project_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"]
    wanted = dict(
        requirement.split("==")
        for requirement in (*extras["gpu"], *extras["quantize"])
        if requirement.startswith(("ray", "vllm", "torch="))
    )
    locked = (ROOT / "requirements" / "gpu.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", locked, re.MULTILINE))
    for name, wanted_version in wanted.items():
        assert pins[name.partition("[")[0]] == wanted_version
    # CUDA 13, which needs driver R580 or newer: the file says so.
    assert pins["nvidia-cuda-runtime"].startswith("13.")
    assert "R580" in TEXT
    blocks = re.findall(r"^[\w.-]+==.*(?:\n +--hash.*)*", locked, re.MULTILINE)
    assert all("--hash=sha256:" in block for block in blocks)


def test_the_environment_holds_what_fails_without() -> None:
    found = environment()
    # No nvcc: the sampler that FlashInfer compiles would end the engine.
    assert found["VLLM_USE_FLASHINFER_SAMPLER"] == "0"
    assert found["NVIDIA_VISIBLE_DEVICES"] == "all"
    # Ray reads the GPU's name through NVML.
    assert found["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    # Libraries found before the host's driver are error 803.
    assert "LD_LIBRARY_PATH" not in found
    assert "cuda-compat" not in TEXT + (SCRIPTS / "install-system").read_text(encoding="utf-8")


def test_the_image_runs_as_a_user_who_may_write_home_and_state() -> None:
    assert instructions("USER") == ["1000:1000"]
    system = (SCRIPTS / "install-system").read_text(encoding="utf-8")
    owned = re.findall(r"install -d -o 1000 -g 1000 (.*)", system)[0].split()
    found = environment()
    assert found["NARROWGATE_STATE"] in owned
    assert found["XDG_CACHE_HOME"] in owned
    assert instructions("VOLUME") == [found["NARROWGATE_STATE"]]
    # A compiler and the C library's headers, for Triton; the base has Python's.
    assert re.findall(r"--no-install-recommends (.*)", system) == ["gcc libc6-dev"]


def test_the_build_context_holds_what_is_copied_and_no_state() -> None:
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert rules[1] == "*"
    admitted = {line.removeprefix("!") for line in rules if line.startswith("!")}
    assert build_context() == admitted
    assert all((ROOT / name).exists() for name in admitted)


def test_the_default_settings_serve_one_attested_model_from_mounted_files() -> None:
    settings = load_settings(SCRIPTS / "settings.yaml", {}, {})
    (model,) = settings.models
    assert isinstance(model.accelerator, GpuAccelerator)
    assert (model.source, settings.host) == ("/models/model", "0.0.0.0")  # noqa: S104  # a container's
    assert str(settings.state) == environment()["NARROWGATE_STATE"]
    assert settings.attestation.trusted_keys
    assert not settings.attestation.development
    assert settings.auth.mode == "keys"
    (command,) = [line for line in instructions("CMD") if "serve" in line]
    assert json.loads(command) == ["serve", "--config", "/etc/narrowgate/settings.yaml"]
    assert "/etc/narrowgate/settings.yaml" in (SCRIPTS / "install-system").read_text("utf-8")


class Answer(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:  # http.server's name
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # http.server's name
        return


def healthy(url: str) -> int:
    return run(sys.executable, "-IS", SCRIPTS / "healthy.py", url).returncode


def test_the_health_check_passes_only_where_a_gateway_answers() -> None:
    server = HTTPServer(("127.0.0.1", 0), Answer)
    url = f"http://127.0.0.1:{server.server_port}/-/healthz"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        Answer.status = 200
        assert healthy(url) == 0
        # HAProxy's answer while no gateway replica is up.
        Answer.status = 503
        assert healthy(url) == 1
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert healthy(url) == 1


FAKE_UV = """#!/bin/sh
printf '%s\\n' "$*" >> "$VIRTUAL_ENV/calls"
"""


def fake_uv_wheel(folder: Path) -> str:
    """Write a wheel of the name uv, whose program records its arguments; return its digest."""
    name = folder / "uv-0.0.1-py3-none-any.whl"
    info = "uv-0.0.1.dist-info"
    program = zipfile.ZipInfo("uv-0.0.1.data/scripts/uv")
    # A regular file that may be executed: pip looks at both.
    program.external_attr = 0o100755 << 16
    with zipfile.ZipFile(name, "w") as wheel:
        wheel.writestr(program, FAKE_UV)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: uv\nVersion: 0.0.1\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n")
        wheel.writestr(f"{info}/RECORD", "")
    return hashlib.sha256(name.read_bytes()).hexdigest()


# Each makes an environment with pip, which takes seconds.
@pytest.mark.slow
@pytest.mark.parametrize("changed", [False, True])
def test_requirements_are_installed_by_the_locked_uv_checked_against_its_hash(
    tmp_path: Path, changed: bool
) -> None:
    digest = fake_uv_wheel(tmp_path)
    resolved = tmp_path / "gpu.txt"
    digest = "0" * 64 if changed else digest
    resolved.write_text(
        "".join(
            f"{pin} \\\n    --hash=sha256:{pinned}\n"
            for pin, pinned in (("torch==2.13.0", "1" * 64), ("uv==0.0.1", digest))
        ),
        encoding="utf-8",
    )
    done = run(
        SCRIPTS / "install-requirements", tmp_path / "venv", resolved,
        PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path), PATH=f"{BINARIES}:/usr/bin:/bin",
    )  # fmt: skip
    if changed:
        assert done.returncode != 0
        assert "DO NOT MATCH THE HASHES" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    (call,) = (tmp_path / "venv" / "calls").read_text(encoding="utf-8").splitlines()
    assert call == f"pip install --quiet --no-cache --no-deps --require-hashes -r {resolved}"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment into which the scripts have installed the project's wheel."""
    folder = tmp_path_factory.mktemp("image")
    source, venv = folder / "source", folder / "venv"
    shutil.copytree(
        ROOT, source,
        ignore=lambda where, names: (
            [name for name in names if name not in build_context()] if Path(where) == ROOT
            else [name for name in names if name == "__pycache__"]
        ),
    )  # fmt: skip
    assert run(sys.executable, "-m", "venv", "--without-pip", venv).returncode == 0
    # In the image these come from requirements/gpu.txt.
    packages = sysconfig.get_path("purelib", vars={"base": str(venv)})
    Path(packages, "shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    (venv / "bin" / "uv").symlink_to(BINARIES / "uv")
    done = subprocess.run(
        [source / "docker" / "install-wheel", venv, folder / "wheel"], cwd=source,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = run(source / "docker" / "install-proxy", venv)
    assert done.returncode == 0, done.stderr
    return venv


def build_context() -> set[str]:
    return {
        word for line in instructions("COPY") if not line.startswith("--from")
        for word in line.split()[:-1]
    }  # fmt: skip


def test_the_wheel_is_built_from_the_build_context_and_its_program_runs(installed: Path) -> None:
    done = run(installed / "bin" / "narrowgate", "k8s", "--help", PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    assert "narrowgate" in done.stdout


def test_the_proxy_is_haproxy_with_the_limits_of_the_mounted_file(installed: Path) -> None:
    assert pod.LAUNCHER == "/opt/narrowgate/bin/haproxy"
    program = installed / "bin" / "haproxy"
    # Without a configuration (-f) there is nothing to edit.
    assert "HAProxy version" in run(program, "-v").stdout
    assert f"{pod.CONFIG_FOLDER}/{pod.LISTENERS}" in program.read_text("utf-8")


def test_the_bill_of_materials_lists_the_environment(installed: Path, tmp_path: Path) -> None:
    written = []
    for name in ("first.json", "second.json"):
        done = run(sys.executable, "-I", SCRIPTS / "sbom.py", installed, tmp_path / name)
        assert done.returncode == 0, done.stderr
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
    document = json.loads(written[0])
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    found = {component["purl"] for component in document["components"]}
    assert f"pkg:pypi/narrowgate@{version('narrowgate')}" in found
    references = [component["bom-ref"] for component in document["components"]]
    assert len(references) == len(set(references))


@pytest.mark.slow
@pytest.mark.timeout(1200)  # it installs a whole environment
def test_the_quantization_environment_is_made_at_the_named_path(tmp_path: Path) -> None:
    folder = tmp_path / "quantize"
    done = run(SCRIPTS / "install-quantize", Path(sys.prefix), folder, "cpu")
    assert done.returncode == 0, done.stderr
    python = folder / "venv" / "bin" / "python"
    assert run(python, "-c", "import llmcompressor").returncode == 0
