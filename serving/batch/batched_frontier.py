"""Leaves calls of lines to their providers' batches, and answers them with what those returned."""

from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from serving.batch.line_work import LineWork, NotedEntry
from serving.contracts.batch import Deferred
from serving.contracts.errors import NarrowgateError
from serving.contracts.frontier import Completion, CompletionStream, FrontierCall
from serving.frontier.frontier import BatchRequest, FrontierStack


class BatchedFrontier:
    """Implements serving.contracts.frontier.Frontier.

    Calls of other requests are the frontier's own: they take no step here.
    """

    def __init__(self, frontier: FrontierStack) -> None:
        self._frontier = frontier

    def configured(self, targets: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of the targets whose provider has a key (or needs none)."""
        return self._frontier.configured(targets)

    def complete(self, call: FrontierCall) -> Coroutine[Any, Any, Completion]:
        """Return an answer as the frontier does. Raises Deferred where a batch will answer."""
        work = call.entry.work if isinstance(call.entry, NotedEntry) else None
        return self._frontier.complete(call) if work is None else self._complete_line(call, work)

    def stream(self, call: FrontierCall) -> Coroutine[Any, Any, CompletionStream]:
        """Return an answer as the frontier does: lines do not stream."""
        return self._frontier.stream(call)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._frontier.aclose()

    async def _complete_line(self, call: FrontierCall, work: LineWork) -> Completion:
        if work.provided is not None and not work.provided.is_taken:
            # Whatever has changed since it was sent: the first call gets it.
            request = self._request(replace(call, max_cost_usd=None), (work.provided.target,))
            return work.provided.taken(None if request is None else request.facts)
        limits = [usd for usd in (call.max_cost_usd, work.room_usd) if usd is not None]
        call = replace(call, max_cost_usd=min(limits, default=None))
        request = self._deferred(call, work)
        if request is not None:
            raise Deferred(request.target, request.body, request.worst_case_usd)
        return await self._frontier.complete(call)

    def _deferred(self, call: FrontierCall, work: LineWork) -> BatchRequest | None:
        """Return the call as a line of its first target's batch; None where it is made now."""
        first = self._frontier.configured(call.targets)[:1]
        if work.defer is None or not first or not work.defer(first[0]):
            return None
        return self._request(call, first)

    def _request(self, call: FrontierCall, targets: tuple[str, ...]) -> BatchRequest | None:
        try:
            return self._frontier.batch_request(replace(call, targets=targets))
        except NarrowgateError:
            # Asked at once it is refused for the same reason, or accepted, as with a service tier.
            return None
