"""How many lines may run beside interactive requests, by how long those wait for their turn."""

import asyncio
import time
from collections.abc import Callable, Sequence

from serving.contracts.batch_settings import BatchSettings
from serving.pipeline.admission import AdmissionQueue

_STEP_S = 0.25
_SHARE = 3.0
"""Beside interactive requests a thread that works waits for so many times as long."""
_LONGEST_BREATH_S = 0.05


class Slack:
    """Limits the lane: all of it while no client waits, little of it else.

    Beside interactive requests the limit grows by one in each step, up to busy_concurrent_lines,
    and is halved when one of them waited longer than max_queue_delay_s: additive increase,
    multiplicative decrease, as TCP shares a link.
    """

    def __init__(
        self,
        settings: BatchSettings,
        queues: Sequence[AdmissionQueue],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._queues = queues
        self._clock = clock
        self._busy = settings.busy_concurrent_lines
        self._stepped_at_s = -_STEP_S

    @property
    def is_quiet(self) -> bool:
        """Return whether no interactive request came for a while. For any thread."""
        return min(queue.idle_s() for queue in self._queues) >= self._settings.quiet_s

    def breathe(self, worked_s: float) -> None:
        """Let interactive requests go first; blocking. worked_s: of the calling thread."""
        if not self.is_quiet:
            time.sleep(min(_SHARE * worked_s, _LONGEST_BREATH_S))

    async def rest(self, worked_s: float) -> None:
        """As `breathe`, on the event loop."""
        if not self.is_quiet:
            await asyncio.sleep(min(_SHARE * worked_s, _LONGEST_BREATH_S))

    def limit(self) -> int:
        """Return how many lines may be in progress now."""
        settings = self._settings
        if any(queue.queued for queue in self._queues):
            return 0
        if self.is_quiet:
            self._busy = settings.busy_concurrent_lines
            return settings.max_concurrent_lines
        if self._clock() >= self._stepped_at_s + _STEP_S:
            self._stepped_at_s = self._clock()
            waited_s = max(queue.take_longest_wait_s() for queue in self._queues)
            late = waited_s > settings.max_queue_delay_s
            grown = min(self._busy + 1, settings.busy_concurrent_lines)
            self._busy = self._busy // 2 if late else grown
        return self._busy
