"""Finds what blocks an event loop: callbacks that compute for long, and calls that sleep.

Processor time of the thread is counted, not elapsed time, and without garbage collection: neither
depends on the callback. A virtual machine still counts the time that its host took away, so the
bound is far above what any callback needs.
"""

import asyncio
import gc
import time
from types import TracebackType
from typing import Any, Self

BOUND_S = 3.0
"""Processor seconds of one callback. Generous: a test's own setup runs in callbacks, too."""


class LoopWatch:
    """Counts what blocks event loops while it is entered. Watches may be nested."""

    def __init__(self, bound_s: float = BOUND_S) -> None:
        self._bound_s = bound_s
        self._run: Any = None
        self._sleep: Any = None
        self._collecting_since_s = 0.0
        self._collected_s = 0.0
        self.blocked: list[str] = []

    def __enter__(self) -> Self:
        run, sleep = asyncio.Handle._run, time.sleep
        self._run, self._sleep = run, sleep

        def watched_run(handle: asyncio.Handle) -> None:
            before_s = time.thread_time() - self._collected_s
            # The task, where the callback is one step of it.
            callback = getattr(handle._callback, "__self__", handle)
            run(handle)
            took_s = time.thread_time() - self._collected_s - before_s
            if took_s > self._bound_s:
                self.blocked.append(f"{callback!r} computed for {took_s:.1f} s")

        def watched_sleep(seconds: float) -> None:
            if seconds and asyncio._get_running_loop() is not None:
                self.blocked.append(f"time.sleep({seconds}) on the event loop")
            sleep(seconds)

        asyncio.Handle._run, time.sleep = watched_run, watched_sleep  # type: ignore[method-assign]
        gc.callbacks.append(self._count_collection)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        gc.callbacks.remove(self._count_collection)
        asyncio.Handle._run, time.sleep = self._run, self._sleep  # type: ignore[method-assign]

    def _count_collection(self, phase: str, _info: dict[str, int]) -> None:
        if phase == "start":
            self._collecting_since_s = time.thread_time()
        else:
            self._collected_s += time.thread_time() - self._collecting_since_s
