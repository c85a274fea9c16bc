"""Keeps requests that were sent elsewhere, for a person to label and `router train` to learn from.

The file holds what users wrote: it exists only where `routing.decisions_log` names it, readable by
its owner alone.
"""

import json
import os
import queue
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

_MAX_QUEUED = 1000
_MAX_ROW_BYTES = 256 * 1024
# What the router thought is no label: it moves out of the way of what a person fills in.
_RENAMED = {"task": "detected", "complexity": "scored"}


class Observer(Protocol):
    """Counts rows that were lost."""

    def decision_dropped(self) -> None:
        """A row was not written. Called from any thread."""
        ...


class NoLog:
    """Keeps nothing."""

    def record(self, row: Mapping[str, Any]) -> None:
        """Forget the row."""

    def close(self) -> None:
        """Do nothing."""


class FileLog:
    """Appends rows to a JSON Lines file on a thread of its own.

    A row is dropped and counted where as many as max_queued wait, where it is larger than 256 KiB
    or no JSON, and where the disk refuses it.
    """

    def __init__(self, path: Path, observer: Observer, *, max_queued: int = _MAX_QUEUED) -> None:
        self._path = path
        self._observer = observer
        self._rows: queue.Queue[str | None] = queue.Queue(max_queued)
        self._thread = threading.Thread(target=self._work, name="decision-log", daemon=True)
        self._thread.start()

    def record(self, row: Mapping[str, Any]) -> None:
        """Queue a row; its task and complexity are written as `detected` and `scored`.

        Never blocks and never raises.
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
        """Write what is queued and end the thread. Blocking."""
        self._rows.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (line := self._rows.get()) is not None:
            try:
                self._append(line)
            except OSError:
                # The disk is full or the folder gone: requests go on, and the count shows it.
                self._observer.decision_dropped()

    def _append(self, line: str) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            # One write: rows of several processes do not mix.
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)


def _line(row: Mapping[str, Any]) -> str | None:
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    content = {"time": now} | {_RENAMED.get(name, name): value for name, value in row.items()}
    try:
        # Escaped, not UTF-8: lone surrogates stay writable.
        line = json.dumps(content) + "\n"
    except (TypeError, ValueError):
        return None
    return line if len(line) <= _MAX_ROW_BYTES else None
