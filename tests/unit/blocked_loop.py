"""Finds what blocks an event loop: callbacks that compute for long, and calls that sleep.

Processor time is counted, not time on the clock: a busy machine makes no callback longer.
"""

import asyncio
import time
from types import TracebackType
from typing import Any, Self

BOUND_S = 1.0
"""Processor seconds of one callback. Generous: a test's own setup runs in callbacks, too."""


class LoopWatch:
    """Counts what blocks event loops while it is entered. Watches may be nested."""

    def __init__(self, bound_s: float = BOUND_S) -> None:
        self._bound_s = bound_s
        self._run: Any = None
        self._sleep: Any = None
        self.blocked: list[str] = []

    def __enter__(self) -> Self:
        run, sleep = asyncio.Handle._run, time.sleep
        self._run, self._sleep = run, sleep

        def watched_run(handle: asyncio.Handle) -> None:
            before_s = time.thread_time()
            # The task, where the callback is one step of it.
            callback = getattr(handle._callback, "__self__", handle)
            run(handle)
            took_s = time.thread_time() - before_s
            if took_s > self._bound_s:
                self.blocked.append(f"{callback!r} computed for {took_s:.1f} s")

        def watched_sleep(seconds: float) -> None:
            if seconds and asyncio._get_running_loop() is not None:
                self.blocked.append(f"time.sleep({seconds}) on the event loop")
            sleep(seconds)

        asyncio.Handle._run, time.sleep = watched_run, watched_sleep  # type: ignore[method-assign]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        asyncio.Handle._run, time.sleep = self._run, self._sleep  # type: ignore[method-assign]
