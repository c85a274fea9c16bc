"""`narrowgate serve` as a process of its own, on the models of another state folder."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psutil

GATEWAY = "ray::ServeReplica:narrowgate"
"""How the processes of the gateway's replicas are named; the deployment's name follows."""

_START_S = 900.0
_STOP_S = 60.0
_SHOWN_BYTES = 4000
_PROCESS_SHOWN = 60

Process = tuple[int, float]
"""A process id, and when the process began: ids are used again."""


@contextmanager
def linked(state: Path) -> Iterator[Path]:
    """Yield a temporary state folder with links to the models of another, and its own ledger."""
    from benchmarks.temporary_ledger import link_state
    from serving.contracts.errors import InvalidArgument

    if not any((state / "artifacts").glob("*/attestation.json")):
        raise InvalidArgument(
            f"{str(state)!r} holds no attested model",
            field="--stack",
            fix=f"narrowgate serve --state {state} makes it at its first start",
        )
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        link_state(state, Path(name))
        yield Path(name)


@dataclass(slots=True)
class ServedStack:
    """A running `narrowgate serve`. seen: every process below it, so far, by its beginning."""

    url: str
    tasks: list[str]
    process: "subprocess.Popen[bytes]"
    gateway: "psutil.Process"
    seen: "dict[Process, psutil.Process]" = field(default_factory=dict)

    def look(self) -> None:
        """Remember the processes below this one."""
        for child in descendants(self.process.pid):
            self.seen.setdefault((child.pid, child.create_time()), child)

    def stop(self) -> None:
        """Send SIGTERM and wait. Blocking, up to a minute."""
        self.look()
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_STOP_S)

    def left(self) -> list[str]:
        """Return the commands of processes that still run."""
        found = [shown(child) for child in self.seen.values() if runs(child)]
        return found + (["narrowgate serve"] if self.process.poll() is None else [])


def descendants(pid: int) -> "list[psutil.Process]":
    """Return the processes below one, without those that have ended meanwhile."""
    import psutil

    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def runs(process: "psutil.Process") -> bool:
    """Return whether a process still runs. A zombie has ended."""
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def shown(process: "psutil.Process") -> str:
    """Return a process's command, shortened."""
    import psutil

    try:
        return " ".join(process.cmdline())[:_PROCESS_SHOWN] or process.name()
    except psutil.NoSuchProcess:
        return str(process.pid)


def replicas(pid: int, name: str) -> "list[psutil.Process]":
    """Return the replicas below a process whose name begins so."""
    return [child for child in descendants(pid) if runs(child) and shown(child).startswith(name)]


@contextmanager
def serving(state: Path) -> Iterator[ServedStack]:
    """Start `narrowgate serve`, yield it once it is ready, and end all of its processes."""
    from serving.contracts.errors import EngineFailure
    from serving.lifecycle.ports import free_port

    port = free_port()
    command = [sys.executable, "-m", "serving.cli", "serve", "--state", str(state), "--json",
               "--port", str(port), "--auth", "off"]  # fmt: skip
    # A cached answer would not reach the engine; without evidence attested thresholds decide.
    environment = {"NARROWGATE_CACHE__ENABLED": "false", "NARROWGATE_EVIDENCE__ENABLED": "false"}
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(  # noqa: S603  # our own command
            command, stdout=subprocess.PIPE, stderr=printed, env={**os.environ, **environment}
        )
        seen: dict[Process, psutil.Process] = {}
        try:
            ready = _first_line(process)
            if ready is None:
                printed.seek(max(0, printed.seek(0, os.SEEK_END) - _SHOWN_BYTES))
                sys.stderr.write(printed.read().decode(errors="replace"))
                raise EngineFailure(
                    f"narrowgate serve was not ready within {_START_S:.0f} s",
                    fix="its messages are above",
                )
            (gateway,) = replicas(process.pid, GATEWAY)
            stack = ServedStack(ready["url"], sorted(ready["tasks"]), process, gateway, seen)
            if not stack.tasks:
                raise EngineFailure(
                    "no task is served locally", fix="serve --state STATE prints the reasons"
                )
            yield stack
        finally:
            _end(process, seen)


def _first_line(process: "subprocess.Popen[bytes]") -> dict[str, Any] | None:
    """Return the document that serve prints when it is ready; None where it does not."""
    import select

    assert process.stdout is not None
    if not select.select([process.stdout], [], [], _START_S)[0]:
        return None
    line = process.stdout.readline()
    document = json.loads(line) if line else {}
    return document if "url" in document else None


def _end(process: "subprocess.Popen[bytes]", seen: "dict[Process, psutil.Process]") -> None:
    """End everything that this run started, by process id."""
    below = descendants(process.pid)
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
    if process.poll() is None:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
    for child in [*below, *seen.values()]:
        if runs(child):
            child.kill()
