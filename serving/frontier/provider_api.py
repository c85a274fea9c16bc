"""The protocol of a wire format: one whole answer, or a stream of chunks."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from serving.contracts.answer import Usage
from serving.frontier.cache_policy import Ttl
from serving.frontier.prompt_cache import Prefix


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """An OpenAI `chat.completion`.

    Each choice has a `message`. usage: None where it was not reported or is malformed.
    service_tier: as the provider names it, if it does.
    """

    body: dict[str, Any]
    usage: Usage | None
    service_tier: str | None = None


@dataclass(frozen=True, slots=True)
class StreamPart:
    """One step of a stream.

    chunk: an OpenAI `chat.completion.chunk` without usage, each choice with a `delta`; None for an
    event that has nothing for the client. usage: as far as it is known, where this event reported
    some. is_finished: every choice has its finish reason. is_cut: the stream broke off after that,
    so that usage which was still to come is lost.
    """

    chunk: dict[str, Any] | None
    usage: Usage | None = None
    service_tier: str | None = None
    is_finished: bool = False
    is_cut: bool = False


KEEP_ALIVE = StreamPart(None)
"""An event without content or a comment: the provider is at work."""


@dataclass(frozen=True, slots=True)
class CachePlan:
    """Prefixes to cache. routing_digest: of the longest prefix worth routing by, if any."""

    breakpoints: tuple[tuple[Prefix, Ttl], ...] = ()
    routing_digest: str | None = None


class ProviderApi(Protocol):
    """One provider's wire format and connection. Raises only FrontierErrors.

    thinks_by_default: its models reason by default, and it accepts `reasoning_effort`.
    """

    thinks_by_default: bool

    def request(self, body: Mapping[str, Any], model: str, plan: CachePlan) -> dict[str, Any]:
        """Return the provider's own request for a bounded body without markers.

        Raises FrontierRejected for a field that the wire format cannot express.
        """
        ...

    async def whole(self, request: dict[str, Any]) -> WholeAnswer:
        """Send a request and read its answer. Cancelling closes the connection."""
        ...

    def stream(self, request: dict[str, Any]) -> AsyncGenerator[StreamPart, None]:
        """Send a request and yield its parts.

        A part without a chunk before the first chunk says only that the provider is at work.
        Closing the generator closes the connection. Raises FrontierStreamBroken where the answer
        ends before it is finished.
        """
        ...

    async def aclose(self) -> None:
        """Close all connections."""
        ...
