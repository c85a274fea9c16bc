"""A circuit breaker: stops calls to a provider that keeps failing. No I/O, no tasks."""

import time
from collections.abc import Callable
from typing import Literal

from serving.contracts.frontier_settings import BreakerSettings

BreakerState = Literal["closed", "open", "half_open"]


class Breaker:
    """Closed until a number of calls in a row fail; then open; then one call probes.

    Every call takes a ticket and reports with it. Reports of calls that began before the last
    change of state are ignored: they describe the provider's earlier state.
    """

    def __init__(
        self,
        settings: BreakerSettings,
        on_change: Callable[[BreakerState], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._on_change = on_change
        self._clock = clock
        self._era = 0
        self._failures = 0
        self._open_until_s = 0.0
        self.state: BreakerState = "closed"

    def enter(self) -> int | None:
        """Return a ticket for one call, or None where none may be made now."""
        if self.state == "open" and self._clock() >= self._open_until_s:
            self._change("half_open")
            return self._era
        return self._era if self.state == "closed" else None

    def retry_after_s(self) -> float:
        """Return the seconds until a call may probe; 0 where one may be made."""
        return max(0.0, self._open_until_s - self._clock()) if self.state == "open" else 0.0

    def succeeded(self, ticket: int) -> None:
        """Report that the provider answered, possibly with a refusal."""
        if ticket != self._era:
            return
        self._failures = 0
        if self.state == "half_open":
            self._change("closed")

    def failed(self, ticket: int) -> None:
        """Report a failure of the provider itself."""
        if ticket != self._era:
            return
        self._failures += 1
        if self.state == "half_open" or self._failures >= self._settings.failures:
            self._open_until_s = self._clock() + self._settings.open_s
            self._change("open")

    def abandoned(self, ticket: int) -> None:
        """Report a call that was cancelled: it has no result, and the next call may probe."""
        if ticket == self._era and self.state == "half_open":
            self._open_until_s = self._clock()
            self._change("open")

    def _change(self, state: BreakerState) -> None:
        self.state = state
        self._era += 1
        self._failures = 0
        self._on_change(state)
