"""The steps of a start: how long each takes, the share that is done, the time that is left."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from serving.contracts.model_status import Progress

_TICK_S = 1.0
# Largest share shown for a running step that reports no progress.
_LONGEST_GUESS = 0.95
# The pace of this machine relative to the expected one is used from this share on.
_PACE_AFTER = 0.05
_SLOWEST, _FASTEST = 5.0, 0.2

ReportProgress = Callable[[float | None, str | None], None]
"""Reports the share of a step that is done, in [0, 1] or None, and its current action."""


@dataclass(slots=True)
class _Step:
    expected_s: float
    began_s: float | None = None
    took_s: float | None = None
    reported: float | None = None
    doing: str | None = None

    def share(self, now_s: float) -> float:
        """Return how much of the step is done, in [0, 1]."""
        if self.took_s is not None:
            return 1.0
        if self.began_s is None:
            return 0.0
        if self.reported is not None:
            return self.reported
        return min((now_s - self.began_s) / self.expected_s, _LONGEST_GUESS)


class Timeline:
    """Measures steps, which may run concurrently. Thread-safe.

    expected_s: every step in order, with the seconds that it takes on two cores. observe: called
    with the progress once a second while the context is open, and at each change. clock: monotonic.
    """

    def __init__(
        self,
        expected_s: Mapping[str, float],
        observe: Callable[[Progress], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._steps = {name: _Step(seconds) for name, seconds in expected_s.items()}
        self._observe = observe
        self._clock = clock
        self._began_s = clock()
        self._lock = threading.Lock()
        self._over = threading.Event()

    @contextmanager
    def ticking(self) -> Iterator[None]:
        """Call the observer once a second while the body runs."""

        def tick() -> None:
            while not self._over.wait(_TICK_S):
                self._notify()

        thread = threading.Thread(target=tick, name="timeline", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    @contextmanager
    def step(self, name: str) -> Iterator[ReportProgress]:
        """Measure a step while the body runs. Yields a function that reports its progress."""
        step = self._steps[name]
        step.began_s = self._clock() - self._began_s
        self._notify()

        def report(share: float | None, doing: str | None) -> None:
            step.reported = None if share is None else min(max(share, 0.0), 1.0)
            step.doing = doing
            self._notify()

        try:
            yield report
        finally:
            step.took_s = self._clock() - self._began_s - step.began_s
            self._notify()

    def progress(self) -> Progress:
        """Return the current progress. The step is the first that runs; left_s is an estimate."""
        now_s = self._clock() - self._began_s
        total_s = sum(step.expected_s for step in self._steps.values())
        done_s = sum(step.expected_s * step.share(now_s) for step in self._steps.values())
        share = done_s / total_s if total_s else 1.0
        pace = 1.0
        if share > _PACE_AFTER:
            pace = min(max(now_s / done_s, _FASTEST), _SLOWEST)
        return Progress(self._current(), share, (total_s - done_s) * pace)

    def report(self) -> dict[str, Any]:
        """Return the begin and duration of each step, and the total, seconds."""
        steps = [
            {"step": name, "began_s": round(step.began_s, 1), "took_s": round(step.took_s, 1)}
            for name, step in self._steps.items()
            if step.began_s is not None and step.took_s is not None
        ]
        return {"total_s": round(self._clock() - self._began_s, 1), "steps": steps}

    def _current(self) -> str:
        for name, step in self._steps.items():
            if step.began_s is not None and step.took_s is None:
                return f"{name}: {step.doing}" if step.doing else name
        waiting = [name for name, step in self._steps.items() if step.began_s is None]
        return waiting[0] if waiting else "done"

    def _notify(self) -> None:
        with self._lock:
            self._observe(self.progress())


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """Return the report as lines of text."""
    lines = ["seconds of each step (steps may overlap):"]
    for step in report["steps"]:
        began_s = step["began_s"]
        lines.append(f"  {step['took_s']:7.1f} s  {step['step']} (began at {began_s:.1f} s)")
    return [*lines, f"  {report['total_s']:7.1f} s  in all"]
