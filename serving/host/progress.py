"""The progress of a long command: one protocol, a bar for a terminal, JSON lines for programs.

A command reports steps to a `StepObserver`. Both displays write to standard error: standard output
belongs to the command's result.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

from serving.host.terminal import terminal_progress

# An estimate of the time left from less than this share is not useful.
_LEAST_SHARE = 0.02


class StepObserver(Protocol):
    """Receives the steps of a command as they begin and advance."""

    def step(
        self, name: str, done: float = 0, total: float = 0, details: Mapping[str, Any] | None = None
    ) -> None:
        """Report that a step has begun or advanced.

        done, total: the part of the whole command that is finished, in any unit; total is 0 where
        it is unknown. details: facts for programs, and `shown` for people.
        """
        ...


class StepDisplay:
    """A `StepObserver` that shows steps. A context manager. clock: monotonic, seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s = clock()

    def __enter__(self) -> Self:
        """Begin the display."""
        return self

    def __exit__(self, *raised: object) -> None:
        """End the display."""

    def step(
        self, name: str, done: float = 0, total: float = 0, details: Mapping[str, Any] | None = None
    ) -> None:
        """Show a step, the share that is done and the time that is left."""
        share = min(max(done / total, 0.0), 1.0) if total else None
        left_s = None
        if share is not None and share >= _LEAST_SHARE:
            left_s = (self._clock() - self._began_s) * (1.0 - share) / share
        self._show(name, share, left_s, details or {})

    def _show(
        self, name: str, share: float | None, left_s: float | None, details: Mapping[str, Any]
    ) -> None:
        raise NotImplementedError


class Bar(StepDisplay):
    """A bar with the step, the share done and the time left; silent without a terminal."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        from rich.progress import (
            BarColumn,
            SpinnerColumn,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        super().__init__(clock)
        self._bar = terminal_progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
        )
        self._task = self._bar.add_task("checking", total=None, shown="")

    def __enter__(self) -> Self:
        """Begin the display."""
        self._bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        """End the display."""
        self._bar.stop()

    def _show(
        self, name: str, share: float | None, left_s: float | None, details: Mapping[str, Any]
    ) -> None:
        shown = str(details.get("shown", ""))
        if left_s is not None:
            shown = f"{shown}  {round(left_s) // 60}:{round(left_s) % 60:02d} left".strip()
        self._bar.update(
            self._task,
            description=name,
            completed=share or 0.0,
            total=None if share is None else 1.0,
            shown=shown,
        )


class JsonLines(StepDisplay):
    """One JSON object a step: event, step, done, total, share, left_s (seconds), and details."""

    def step(
        self, name: str, done: float = 0, total: float = 0, details: Mapping[str, Any] | None = None
    ) -> None:
        """Print the step."""
        super().step(name, done, total, {**(details or {}), "done": done, "total": total})

    def _show(
        self, name: str, share: float | None, left_s: float | None, details: Mapping[str, Any]
    ) -> None:
        event = {
            "event": "step",
            "step": name,
            "share": None if share is None else round(share, 4),
            "left_s": None if left_s is None else round(left_s, 1),
            **{key: value for key, value in details.items() if key != "shown"},
        }
        sys.stderr.write(json.dumps(event) + "\n")
        sys.stderr.flush()


class StepTimes:
    """A `StepObserver` that measures how long each step takes, and passes it on.

    A step lasts until the next one is reported. observer: receives the same calls.
    """

    def __init__(self, observer: StepObserver, clock: Callable[[], float] = time.monotonic) -> None:
        self._observer = observer
        self._clock = clock
        self._current: str | None = None
        self._since_s = clock()
        self._seconds: dict[str, float] = {}

    def step(
        self, name: str, done: float = 0, total: float = 0, details: Mapping[str, Any] | None = None
    ) -> None:
        """Record the time of the previous step and pass the new one on."""
        self._close()
        self._current = name
        self._observer.step(name, done, total, details)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each step up to now, in the order in which they began."""
        self._close()
        return dict(self._seconds)

    def _close(self) -> None:
        now_s = self._clock()
        if self._current is not None:
            before_s = self._seconds.get(self._current, 0.0)
            self._seconds[self._current] = before_s + now_s - self._since_s
        self._since_s = now_s
