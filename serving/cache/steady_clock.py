"""A clock that is not set back while the process runs: entries would live longer."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta


def _utc_now() -> datetime:
    return datetime.now(UTC)


class SteadyClock:
    """The machine's clock, or the time since this object was made where that is later.

    A clock that was set forward by mistake holds only until it is set right.
    """

    def __init__(
        self,
        clock: Callable[[], datetime] = _utc_now,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._began = clock()
        self._began_s = monotonic()

    def __call__(self) -> datetime:
        """Return the time."""
        steady = self._began + timedelta(seconds=self._monotonic() - self._began_s)
        return max(self._clock(), steady)
