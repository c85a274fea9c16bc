"""The events of frontier calls, for metrics."""

from typing import Protocol


class FrontierEvents(Protocol):
    """Called on the event loop; must not block or raise.

    provider names and prefix ids are bounded by the settings. Targets are `provider/model`.
    """

    def called(self, provider: str, model: str, outcome: str, elapsed_s: float) -> None:
        """A call ended. outcome: `ok`, an error's code, `hedge_lost` or `cancelled`."""
        ...

    def retried(self, provider: str, reason: str) -> None:
        """A call is repeated at the same provider. reason: the previous error's code."""
        ...

    def fell_back(self, from_target: str, to_target: str, reason: str) -> None:
        """The next target is called. reason: an error's code, or `hedge`."""
        ...

    def breaker_changed(self, provider: str, state: str) -> None:
        """A circuit breaker is now `closed`, `open` or `half_open`."""
        ...

    def prefix_read(
        self, prefix_id: str, read_tokens: int, written_tokens: int, input_tokens: int
    ) -> None:
        """A request with a prefix was answered: of its input, what was read and written.

        prefix_id: `other` for prefixes used once, and beyond `tracked_prefixes` of them.
        """
        ...

    def prefix_unstable(self, prefix_id: str) -> None:
        """Requests that should share a prefix differ within it.

        prefix_id: of the prefix's place (purpose and position), because its text keeps changing.
        """
        ...
