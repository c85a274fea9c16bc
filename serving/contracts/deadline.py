"""How much time a request has left."""

import time
from dataclasses import dataclass

from serving.contracts.errors import DeadlineExceeded


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point on this process's monotonic clock, in seconds. Never crosses a process border."""

    at_s: float

    @classmethod
    def after(cls, seconds: float) -> "Deadline":
        """Return the deadline that many seconds from now."""
        return cls(time.monotonic() + seconds)

    def remaining_s(self) -> float:
        """Return the seconds left, at least 0."""
        return max(0.0, self.at_s - time.monotonic())


def deadline_exceeded() -> DeadlineExceeded:
    """Return the error of a request whose time ran out."""
    return DeadlineExceeded(
        "the request's deadline passed before its answer was ready",
        fix="retry with fewer or shorter inputs, or raise gateway.request_timeout_s",
    )
