"""Gives the checks of all tenants turns in one thread: none waits for another's whole file."""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

_TURN_S = 0.1


class CheckTurns:
    """One thread that checks work in, in turns. turn_s: of one check, before the next one's."""

    def __init__(self, turn_s: float = _TURN_S) -> None:
        self._turn_s = turn_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch-check")

    async def run(self, steps: Iterator[None]) -> None:
        """Take a check's steps to their end. Once cancelled, no turn follows the present one.

        Raises what a step raises.
        """
        loop = asyncio.get_running_loop()
        # The thread's queue is the order of turns: a check goes to its end after each.
        while await loop.run_in_executor(self._thread, self._turn, steps):
            pass

    def close(self) -> None:
        """Take no more turns."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _turn(self, steps: Iterator[None]) -> bool:
        """Take steps for one turn; return whether some may be left."""
        until_s = time.monotonic() + self._turn_s
        return any(time.monotonic() >= until_s for _ in steps)
