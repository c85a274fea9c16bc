"""Real stacks, started by `make serve` as a user does it, each on a free port.

The files' names put them in an order in which one stack runs at a time: first the one with
nothing set, whose first start makes the quantized model; then the one with a provider and keys;
at last the one for the rest of the session, of the 16-bit model and with the development flag, so
that every task can be tried.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from serving.artifacts.checkpoint import bundled_artifact

ROOT = Path(__file__).parents[2]
STATE = ROOT / ".narrowgate"
MODEL = "smollm2-135m-instruct"
# Not quantized, so that its answers can be compared with other implementations.
BITS_16 = {
    "id": MODEL, "source": "bundled:smollm2-135m-instruct", "accelerator": {"kind": "cpu"},
    "engine_args": {"enforce_eager": True}, "replica_hour_usd": "0.10",
}  # fmt: skip
# The first start writes, quantizes and gates the bundled model.
START_DEADLINE_S = 2400
STOP_DEADLINE_S = 20

# Labels that begin alike, one that begins another: the collisions of label scoring.
COLLIDING = ["card lost", "card stolen", "card", "transfer", "transfer abroad", "balance"]


@dataclass
class Stack:
    """A running `make serve`."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def engine_replicas(self) -> list[psutil.Process]:
        return [p for p in self.descendants() if "ServeReplica:engine:" in _title(p)]

    def gateway_replicas(self) -> list[psutil.Process]:
        return [p for p in self.descendants() if "ServeReplica:narrowgate:Gateway" in _title(p)]

    def metric(self, name: str) -> float:
        """Return the sum of a metric's samples."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        values = [
            float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name)
        ]
        assert values, f"no metric {name}"
        return sum(values)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(log: Path, **environment: str) -> Stack:
    port = free_port()
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["make", "--no-print-directory", "serve", f"PORT={port}"],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A repeated text must reach the model: these tests are not of the cache.
            env={"NARROWGATE_CACHE__ENABLED": "false", **os.environ, **environment},
            start_new_session=True,
        )
    return Stack(f"http://127.0.0.1:{port}", process, log)


def wait_ready(stack: Stack) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    # One client: making one reads the certificates, 70 ms each second of a quarter of an hour.
    with httpx.Client(timeout=5) as client:
        while time.monotonic() < deadline:
            if stack.process.poll() is not None:
                pytest.fail(f"make serve ended early:\n{stack.log.read_text()[-4000:]}")
            with contextlib.suppress(httpx.HTTPError):
                if client.get(f"{stack.url}/readyz").status_code == 200:
                    return
            time.sleep(1)
    pytest.fail(f"not ready after {START_DEADLINE_S} s:\n{stack.log.read_text()[-4000:]}")


def stop_hard(stack: Stack) -> None:
    """End whatever is left, by process id."""
    for process in [*stack.descendants(), psutil.Process(stack.process.pid)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    stack.process.wait(timeout=30)


@pytest.fixture(scope="session")
def tasks_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a task with colliding labels, one with 150."""
    folder = tmp_path_factory.mktemp("tasks")
    common = {"kind": "classification", "floor": 0.1, "target_error": 0.1}
    bank = {
        "name": "bank",
        "instruction": "What does the customer write about? Answer with: " + ", ".join(COLLIDING),
        "labels": COLLIDING,
        "examples": [{"text": "My card is gone.", "label": "card lost"}],
        **common,
    }
    many = {
        "name": "many",
        "instruction": "Choose the number that the text is about.",
        "labels": [f"number {number}" for number in range(150)],
        **common,
    }
    for spec in (bank, many):
        (folder / f"{spec['name']}.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, tasks_dir: Path) -> Iterator[Stack]:
    log = tmp_path_factory.mktemp("stack") / "serve.log"
    yield from served(
        log,
        NARROWGATE_TASKS_DIR=str(tasks_dir),
        NARROWGATE_MODELS=json.dumps([BITS_16]),
        NARROWGATE_ATTESTATION__DEVELOPMENT="true",
    )


@pytest.fixture(scope="module")
def attested_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """What `make serve` starts with nothing set: the first time it makes all that it needs."""
    yield from served(tmp_path_factory.mktemp("attested") / "serve.log")


@pytest.fixture(scope="session")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model in INT8 as the first start made, gated and signed it."""
    folder = bundled_artifact(STATE, "int8-w8a8")
    if not (folder / "attestation.json").is_file():
        # Only where no test before has started the stack.
        for _ in served(tmp_path_factory.mktemp("first") / "serve.log"):
            pass
    return folder


def served(log: Path, **environment: str) -> Iterator[Stack]:
    running = start(log, **environment)
    try:
        wait_ready(running)
        yield running
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.process.wait(timeout=STOP_DEADLINE_S + 10)
    finally:
        if running.process.poll() is None:
            stop_hard(running)


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.url, timeout=120) as session:
        yield session
