"""What one attempt of a line brings to the request path beside its request, and what it leaves."""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from serving.batch.provider_batches import ProviderLineResult, checked_spent
from serving.contracts.answer import Usage
from serving.contracts.deadline import Deadline
from serving.contracts.errors import MaxCostExceeded
from serving.contracts.exits import DEFERRED, Endpoint, Exit
from serving.contracts.frontier import Completion
from serving.contracts.ledger import CallEnd, Caller, Entry, Ledger, OpenCall
from serving.contracts.openai import openai_usage
from serving.contracts.prices import BATCH
from serving.frontier.provider_api import WholeAnswer
from serving.frontier.spent import RequestFacts, Spent, spent_on

Fence = Callable[[], Awaitable[None]]

Defer = Callable[[str], bool]
"""Returns whether a call of a `provider/model` waits for the provider's batch."""

Reserve = Callable[[Decimal], Awaitable[None]]
"""Reserves what all calls of a line may cost together. Raises MaxCostExceeded."""


class ProvidedAnswer:
    """The answer of a provider's batch to a line, with the line's entry and call in the ledger.

    entry, call: None where an earlier process has closed them. cost_usd: what they cost then.
    elapsed_s: since the line was sent. is_taken: a step has got the answer. is_closed: the entry
    has its exit.
    """

    def __init__(
        self,
        target: str,
        result: ProviderLineResult,
        elapsed_s: float,
        entry: Entry | None,
        call: OpenCall | None,
        cost_usd: Decimal | None = None,
    ) -> None:
        assert result.document is not None
        self.target = target
        self._result = result
        self.elapsed_s = elapsed_s
        self.entry = entry
        self.cost_usd = cost_usd
        self._call = call
        self.is_taken = False
        self.is_closed = False

    def taken(self, facts: RequestFacts | None) -> Completion:
        """Return the answer, with an estimated usage where none is known.

        facts: of its request; None where that can no longer be made.
        """
        self.is_taken = True
        assert self._result.document is not None
        document = {**self._result.document, "model": self.target}
        spent = self._result.spent
        if facts is not None:
            spent = checked_spent(self._result, facts)
        self.settle(spent)
        usage = spent.usage
        if usage is None and facts is not None:
            usage = spent_on(WholeAnswer(document, None, BATCH), facts).usage
        # In our shape, as where it is asked synchronously.
        document["usage"] = None if usage is None else openai_usage(usage)
        return Completion(
            document,
            self.target,
            usage or Usage(uncached_input_tokens=0, output_tokens=0),
            service_tier=BATCH,
        )

    def settle(self, spent: Spent | None = None) -> None:
        """Close the call in the ledger; once. spent: what the provider reported by default."""
        if self._call is None:
            return
        call, self._call = self._call, None
        spent = spent or self._result.spent
        call.close(CallEnd("ok", spent.usage, spent.source, self.elapsed_s, BATCH))


@dataclass(slots=True)
class LineWork:
    """One attempt. defer: None where every call is made now. provided: the answer of the first.

    room_usd: the most that a call may cost by the batch's limit; None without one. reserve: asked
    before each call. is_refused: the batch's limit had no room for a call.
    """

    defer: Defer | None = None
    provided: ProvidedAnswer | None = None
    room_usd: Decimal | None = None
    reserve: Reserve | None = None
    is_refused: bool = False
    entries: list[Entry] = field(default_factory=list)
    _opening_usd: Decimal = Decimal(0)

    @contextmanager
    def opening(self, worst_usd: Decimal) -> Iterator[None]:
        """Count a call until its entry does."""
        self._opening_usd += worst_usd
        try:
            yield
        finally:
            self._opening_usd -= worst_usd

    async def require_room(self) -> None:
        """Reserve what the calls may cost, those that are being opened too.

        Raises MaxCostExceeded.
        """
        if self.reserve is None:
            return
        most = sum((entry.most_usd for entry in self.entries), self._opening_usd)
        try:
            await self.reserve(most)
        except MaxCostExceeded:
            self.is_refused = True
            raise


class NotedLedger:
    """Passes entries on, and keeps those that the attempts of lines closed until they are taken.

    fence: returns while this process runs batches, and raises LeaseLost once it does not: no paid
    call is opened then. works: of the attempts in progress, by request id.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self.fence: Fence | None = None
        self.works: dict[str, LineWork] = {}
        self._closed: defaultdict[str, list[Entry]] = defaultdict(list)

    def entry(
        self,
        caller: Caller,
        request_id: str,
        endpoint: Endpoint,
        task: str | None,
        index: int,
        opened_at: datetime | None = None,
    ) -> Entry:
        """Return the entry of an input; that of its call where a provider's batch answered it."""
        if caller.lane != "batch" or endpoint == "audit":
            return self._ledger.entry(caller, request_id, endpoint, task, index, opened_at)
        work = self.works.get(request_id)
        entry = None if work is None or work.provided is None else work.provided.entry
        if entry is None:
            entry = self._ledger.entry(caller, request_id, endpoint, task, index, opened_at)
        found = entry
        if work is not None:
            work.entries.append(found)
        return NotedEntry(entry, work, self.fence, lambda: self._closed[request_id].append(found))

    async def written(self, request_id: str) -> None:
        """Return when what an attempt closed is on disk, or after the ledger's longest wait."""
        for entry in self._closed.pop(request_id, []):
            await entry.written()

    def forget(self, request_id: str) -> None:
        """Forget an attempt."""
        self._closed.pop(request_id, None)


class NotedEntry:
    """Implements serving.contracts.ledger.Entry. closed: called when it was closed.

    work: of its attempt; None where it has none.
    """

    def __init__(
        self,
        entry: Entry,
        work: LineWork | None,
        fence: Fence | None,
        closed: Callable[[], None],
    ) -> None:
        self._entry = entry
        self.work = work
        self._fence = fence
        self._closed = closed
        self._is_left_out = False

    @property
    def is_recorded(self) -> bool:
        """Return whether the input is on disk."""
        return self._entry.is_recorded

    @property
    def most_usd(self) -> Decimal:
        """Return what its paid calls can have cost."""
        return self._entry.most_usd

    async def open_call(self, model: str, worst_case_usd: Decimal, deadline: Deadline) -> OpenCall:
        """Record a call, where this process runs batches and the batch's limit has room for it.

        Raises MaxCostExceeded where it has none.
        """
        if self.work is None:
            return await self._fenced(model, worst_case_usd, deadline)
        with self.work.opening(worst_case_usd):
            await self.work.require_room()
            return await self._fenced(model, worst_case_usd, deadline)

    async def _fenced(self, model: str, worst_case_usd: Decimal, deadline: Deadline) -> OpenCall:
        if self._fence is None:
            return await self._entry.open_call(model, worst_case_usd, deadline)
        await self._fence()
        call = await self._entry.open_call(model, worst_case_usd, deadline)
        try:
            await self._fence()
        except BaseException:  # cancellation too; re-raised
            # Whoever took over before the call was on disk repeats the line: it is not made here.
            call.close(CallEnd("cancelled", None, "reported", 0.0))
            raise
        return call

    def close(self, exit_: Exit) -> Decimal | None:
        """Write the exit, unless nothing was used for it or it is there already."""
        provided = None if self.work is None else self.work.provided
        if provided is not None:
            # The exit sums its calls up.
            provided.settle()
            provided.is_closed = True
            if provided.entry is None:
                # An earlier process wrote it.
                self._is_left_out = True
                return provided.cost_usd
        if exit_.error == DEFERRED and not any(one.replica_s for one in exit_.attempts):
            # No model was used for it.
            self._is_left_out = True
            return Decimal(0)
        cost_usd = self._entry.close(exit_)
        self._closed()
        return cost_usd

    async def written(self) -> None:
        """Return when the exit is on disk, or after a bounded wait."""
        if not self._is_left_out:
            await self._entry.written()
