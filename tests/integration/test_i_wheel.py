"""The wheel, installed into an environment of its own: `narrowgate serve` in an empty folder."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from .conftest import ROOT, START_DEADLINE_S, STOP_DEADLINE_S, free_port

pytestmark = [pytest.mark.stack, pytest.mark.slow, pytest.mark.timeout(2400)]


def run(*command: object, cwd: Path, **environment: str) -> None:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def installed(folder: Path) -> Path:
    """Return the program in a new environment: only the locked requirements and the wheel."""
    environment = folder / "venv"
    run(
        ROOT / "requirements" / "install", environment, ROOT / "requirements" / "cpu.txt",
        cwd=ROOT, UV_LINK_MODE="hardlink",
    )  # fmt: skip
    uv = environment / "bin" / "uv"
    variables = {"VIRTUAL_ENV": str(environment)}
    # The script installs the checkout last.
    run(uv, "pip", "uninstall", "narrowgate", cwd=folder, **variables)
    run(
        sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "--no-build-isolation",
        "--wheel-dir", folder / "dist", cwd=folder,
    )  # fmt: skip
    (wheel,) = (folder / "dist").glob("narrowgate-*.whl")
    run(uv, "pip", "install", "--no-deps", "--no-index", wheel, cwd=folder, **variables)
    return environment / "bin" / "narrowgate"


def test_the_whole_first_start_works_from_a_wheel(tmp_path: Path) -> None:
    program = installed(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    log = tmp_path / "serve.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [program, "serve", "--port", str(port), "--auth", "off"],
            cwd=empty, env=environment, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        seen = follow(process, url, log)
        assert "preparing" in seen
        answer = httpx.post(f"{url}/v1/tasks/topic", json={"input": "The striker scored twice."})
        assert answer.status_code == 200, answer.text
        while not (empty / ".narrowgate" / "first_start.json").is_file():
            time.sleep(0.5)
        report = json.loads((empty / ".narrowgate" / "first_start.json").read_text("utf-8"))
        print(json.dumps(report, indent=1))
        assert len(report["steps"]) == 6
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_DEADLINE_S + 10)
        except subprocess.TimeoutExpired:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
    assert [path.name for path in empty.iterdir()] == [".narrowgate"]


def follow(process: "subprocess.Popen[bytes]", url: str, log: Path) -> set[str]:
    """Return the states that /readyz told of the model until it served."""
    seen: set[str] = set()
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text("utf-8")[-4000:]
        try:
            ready = httpx.get(f"{url}/readyz", timeout=60)
        except httpx.HTTPError:
            # Polls a start that takes minutes.
            time.sleep(1)
            continue
        if "models" in ready.json():
            seen |= {model["state"] for model in ready.json()["models"].values()}
        if ready.status_code == 200:
            return seen
        if "preparing" in seen:
            task = httpx.post(f"{url}/v1/tasks/topic", json={"input": "a text"}, timeout=60)
            if task.status_code == 503:
                assert task.json()["error"]["code"] == "model_preparing"
                assert int(task.headers["retry-after"]) >= 1
        # Polls a start that takes minutes.
        time.sleep(2)
    pytest.fail(f"not ready after {START_DEADLINE_S} s:\n{log.read_text('utf-8')[-4000:]}")
