"""Server processes of a benchmark, each on a loopback port."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout

_STOP_S = 30.0
# Standard output belongs to the report.
_STANDARD_ERROR = 2


@contextmanager
def reports_only() -> Iterator[None]:
    """Send what Ray prints to standard error: standard output holds only the report."""
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
    """Start a command, wait until it listens on the port, yield its URL, and stop it at the end.

    start_s: longest time to wait. stdin: text for its standard input. environment: variables added
    to those of this process. Raises EngineFailure if it does not listen in time.
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
                raise EngineFailure(
                    f"{command[2]!r} did not listen on port {port} within {start_s:.0f} s",
                    fix="its messages are above",
                )
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
    """Start the instant provider and yield its URL."""
    from serving.lifecycle.ports import free_port

    port = free_port()
    command = [sys.executable, "-m", "benchmarks.instant_provider", str(port)]
    with listening(command, port, start_s=30.0) as url:
        yield url


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
