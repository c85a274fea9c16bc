"""The deadline of a request."""

import time
from dataclasses import dataclass, replace
from typing import Self

from serving.contracts.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point on this process's monotonic clock, seconds. Never crosses a process border.

    total_s: seconds from when the deadline was set.
    """

    at_s: float
    total_s: float = 0.0

    @classmethod
    def after(cls, seconds: float) -> Self:
        """Return the deadline this many seconds from now."""
        return cls(time.monotonic() + seconds, seconds)

    def remaining_s(self) -> float:
        """Return the seconds left, at least 0."""
        return max(0.0, self.at_s - time.monotonic())

    def earlier(self, reserve_s: float) -> Self:
        """Return the deadline, earlier by this many seconds; at most by half of the total time."""
        return replace(self, at_s=self.at_s - min(reserve_s, self.total_s / 2))


def deadline_exceeded() -> DeadlineExceeded:
    """Return the error of a request whose time ran out."""
    return DeadlineExceeded(
        "the request's deadline passed before its answer was ready",
        fix="retry with fewer or shorter inputs, or raise gateway.request_timeout_s",
    )
