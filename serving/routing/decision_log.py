"""Logs chats that a frontier model answered, for a person to label and `router train` to train on.

The file contains what users wrote. It exists only where the setting `routing.decisions_log` names
it, and only its owner can read it.
"""

import json
import os
import queue
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from serving.contracts.routing import DecisionLog
from serving.contracts.routing_settings import RoutingSettings

_MAX_QUEUED = 1000
_MAX_ROW_BYTES = 256 * 1024
# The router's decision is not a label. Its names leave `task` and `complexity` to the person.
_RENAMED = {"task": "detected", "complexity": "scored"}


class Observer(Protocol):
    """Counts rows that were not written."""

    def decision_dropped(self) -> None:
        """Count a row that was not written. Called from any thread."""
        ...


def build_decision_log(settings: RoutingSettings, observer: Observer) -> DecisionLog:
    """Return the log in the configured file, or one that writes nothing."""
    if settings.decisions_log is None:
        return NoLog()
    return FileLog(settings.decisions_log, observer)


class NoLog:
    """Implements DecisionLog without a file."""

    def record(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class FileLog:
    """Appends rows to a JSON Lines file in a thread of its own.

    A row is dropped and counted where max_queued rows wait already, where it is larger than 256 KiB
    or cannot be written as JSON, and where writing fails.
    """

    def __init__(self, path: Path, observer: Observer, *, max_queued: int = _MAX_QUEUED) -> None:
        self._path = path
        self._observer = observer
        self._rows: queue.Queue[str | None] = queue.Queue(max_queued)
        self._thread = threading.Thread(target=self._work, name="decision-log", daemon=True)
        self._thread.start()

    def record(self, row: Mapping[str, Any]) -> None:
        """Queue a row. Its task and complexity are written as `detected` and `scored`.

        Neither blocks nor raises.
        """
        line = _line(row)
        if line is None:
            self._observer.decision_dropped()
            return
        try:
            self._rows.put_nowait(line)
        except queue.Full:
            self._observer.decision_dropped()

    def close(self) -> None:
        """Write the queued rows and end the thread. Blocking."""
        self._rows.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (line := self._rows.get()) is not None:
            try:
                self._append(line)
            except OSError:
                # A full disk must not fail requests; the count shows it.
                self._observer.decision_dropped()

    def _append(self, line: str) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            # One write for each row, so that rows of several processes do not mix.
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def _line(row: Mapping[str, Any]) -> str | None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    content = {"time": now} | {_RENAMED.get(name, name): value for name, value in row.items()}
    try:
        # ASCII with escapes: a lone surrogate cannot be written as UTF-8.
        line = json.dumps(content) + "\n"
    except (TypeError, ValueError):
        return None
    return line if len(line) <= _MAX_ROW_BYTES else None
