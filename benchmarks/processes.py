"""Servers of a benchmark, each a process of its own behind a port of loopback."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout

_STOP_S = 30.0
# What is printed there belongs to the report.
_STANDARD_ERROR = 2


@contextmanager
def reports_only() -> Iterator[None]:
    """Keep standard output for the report: Ray tells there of actors that end with the stack."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def listening(
    command: Sequence[str],
    port: int,
    start_s: float,
    stdin: str | None = None,
    environment: dict[str, str] | None = None,
) -> Iterator[str]:
    """Run a command until it listens on the port and yield its URL; stop it afterwards.

    start_s: how long it may take. stdin: what it reads first. environment: added to
    this process's. Raises EngineFailure where it does not start.
    """
    from serving.contracts.errors import EngineFailure

    process = subprocess.Popen(  # noqa: S603  # our own module
        command,
        stdin=subprocess.PIPE,
        stdout=_STANDARD_ERROR,
        env={**os.environ, **(environment or {})},
    )
    try:
        assert process.stdin is not None
        process.stdin.write((stdin or "").encode())
        process.stdin.close()
        deadline = time.monotonic() + start_s
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise EngineFailure(f"{command[2]} did not start")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def instant_provider() -> Iterator[str]:
    """Yield the URL of a provider that answers at once."""
    from serving.lifecycle import free_port

    port = free_port()
    command = [sys.executable, "-m", "benchmarks.upstream", str(port)]
    with listening(command, port, start_s=30.0) as url:
        yield url


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
