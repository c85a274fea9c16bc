"""Server processes of a benchmark, each on a loopback port."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout

_STOP_S = 30.0
_SHOWN_BYTES = 4000


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

    What it prints, such as a line for each request, goes to a file without a name, and is shown
    where it does not listen. start_s: longest time to wait. stdin: text for its standard input.
    environment: variables added to those of this process. Raises EngineFailure if it does not
    listen in time.
    """
    from serving.contracts.errors import EngineFailure

    with ExitStack() as closing:
        printed = closing.enter_context(tempfile.TemporaryFile())
        process = subprocess.Popen(  # noqa: S603  # our own module
            command,
            stdin=subprocess.PIPE,
            stdout=printed,
            stderr=printed,
            env={**os.environ, **(environment or {})},
        )
        closing.callback(_stop, process)
        assert process.stdin is not None
        process.stdin.write((stdin or "").encode())
        process.stdin.close()
        deadline = time.monotonic() + start_s
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                printed.seek(max(0, printed.seek(0, os.SEEK_END) - _SHOWN_BYTES))
                sys.stderr.write(printed.read().decode(errors="replace"))
                raise EngineFailure(
                    f"{command[2]!r} did not listen on port {port} within {start_s:.0f} s",
                    fix="its messages are above",
                )
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def instant_provider(delay_ms: float = 0.0) -> Iterator[str]:
    """Start the instant provider and yield its URL. delay_ms: what it takes for an answer."""
    from serving.lifecycle.ports import free_port

    port = free_port()
    command = [sys.executable, "-m", "benchmarks.instant_provider", str(port), str(delay_ms)]
    with listening(command, port, start_s=30.0) as url:
        yield url


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
