"""Runs subcommands as processes."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from serving.contracts.errors import EngineFailure, MaterializationFailed, QuantizationFailed

_STOP_S = 10.0
_SHOWN = 2000
PROGRAM = (sys.executable, "-m", "serving.cli")

Failure = type[MaterializationFailed | QuantizationFailed | EngineFailure]
Observe = Callable[[dict[str, Any]], None]


class Children:
    """Processes that run concurrently and are ended together. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def run(
        self,
        arguments: Sequence[str],
        failure: Failure,
        what: str,
        observe: Observe | None = None,
        expected: Sequence[int] = (0,),
        program: Sequence[str] = PROGRAM,
    ) -> str:
        """Run a subcommand to its end and return what it printed. Blocking.

        failure: raised for an unexpected exit status, with the last lines of output. what: names
        the result in the message. observe: called with each event of the subcommand, one JSON
        object per line.
        """
        process = self._start([*program, *arguments])
        try:
            lines = _read(process, observe)
            status = process.wait()
        finally:
            _end(process)
            with self._lock:
                self._running.discard(process)
        if status not in expected:
            shown = "".join(lines).strip()[-_SHOWN:]
            raise failure(
                f"{what} could not be made (status {status}):\n{shown}",
                fix=f"narrowgate {' '.join(arguments)} shows the whole error",
            )
        return "".join(lines).strip()

    def stop(self) -> None:
        """End every process, and start no more."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.terminate()

    def _start(self, command: Sequence[str]) -> "subprocess.Popen[str]":
        with self._lock:
            if self._stopped:
                raise EngineFailure("the start was stopped")
            process = subprocess.Popen(  # noqa: S603  # our own program
                command,
                env={**os.environ, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
            self._running.add(process)
            return process


def _read(process: "subprocess.Popen[str]", observe: Observe | None) -> list[str]:
    """Return the lines that are not events; pass the events on."""
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        event = _event(line)
        if event is None:
            lines.append(line)
        elif observe is not None:
            observe(event)
    return lines


def _end(process: "subprocess.Popen[str]") -> None:
    """End a process that still runs, and close its pipe."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None
