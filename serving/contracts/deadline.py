"""The deadline of a request."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Self

from serving.contracts.errors import DeadlineExceeded


@dataclass(slots=True)
class Extension:
    """How much later a deadline was made after it was set. moved: called after each change."""

    by_s: float = 0.0
    moved: list[Callable[[], None]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point on this process's monotonic clock, seconds. Never crosses a process border.

    total_s: seconds from when the deadline was set. extension: None where it cannot be extended.
    """

    at_s: float
    total_s: float = 0.0
    extension: Extension | None = None

    @classmethod
    def after(cls, seconds: float) -> Self:
        """Return the deadline this many seconds from now."""
        return cls(time.monotonic() + seconds, seconds)

    @classmethod
    def latest(cls, deadlines: Iterable["Deadline"]) -> "Deadline":
        """Return the latest of some deadlines; it is extended with them."""
        every = list(deadlines)
        found = cls(max(each.ends_s for each in every)).extensible()
        for each in every:
            if each.extension is not None:
                each.extension.moved.append(lambda each=each: found.extend_to(each))  # type: ignore[misc]
        return found

    @property
    def ends_s(self) -> float:
        """Return the point at which the time is up, with the extension."""
        return self.at_s + (0.0 if self.extension is None else self.extension.by_s)

    @property
    def is_extended(self) -> bool:
        """Return whether the deadline is later than it was set."""
        return self.extension is not None and self.extension.by_s > 0

    def remaining_s(self) -> float:
        """Return the seconds left, at least 0."""
        return max(0.0, self.ends_s - time.monotonic())

    def earlier(self, reserve_s: float) -> Self:
        """Return the deadline, earlier by this many seconds; at most by half of the total time.

        It is not extended with this one.
        """
        return replace(self, at_s=self.at_s - min(reserve_s, self.total_s / 2), extension=None)

    def extensible(self) -> Self:
        """Return the same deadline, which can be extended; this one is not."""
        return replace(self, at_s=self.ends_s, extension=Extension())

    def extend_to(self, other: "Deadline") -> None:
        """Make an extensible deadline as late as another; not one whose time is already up."""
        extension = self.extension
        if extension is None or other.ends_s <= self.ends_s or not self.remaining_s():
            return
        extension.by_s = other.ends_s - self.at_s
        for moved in list(extension.moved):
            moved()

    @asynccontextmanager
    async def timeout(self, limit_s: float = math.inf) -> AsyncIterator[None]:
        """Raise TimeoutError in the body at the deadline or after limit_s, the earlier of the two.

        The deadline may be extended while the body runs.
        """
        limit_at_s = time.monotonic() + limit_s
        async with asyncio.timeout(min(limit_s, self.remaining_s())) as timeout:
            if self.extension is None:
                yield
                return

            def moved() -> None:
                if not timeout.expired():
                    left_s = min(limit_at_s - time.monotonic(), self.remaining_s())
                    timeout.reschedule(asyncio.get_running_loop().time() + left_s)

            self.extension.moved.append(moved)
            try:
                yield
            finally:
                self.extension.moved.remove(moved)


def deadline_exceeded() -> DeadlineExceeded:
    """Return the error of a request whose time ran out."""
    return DeadlineExceeded(
        "the request's deadline passed before its answer was ready",
        fix="retry with fewer or shorter inputs, or raise gateway.request_timeout_s",
    )
