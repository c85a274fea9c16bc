"""The ledger that requests use, on top of the writer."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from uuid import uuid4
from zoneinfo import ZoneInfo

from serving.contracts.deadline import Deadline
from serving.contracts.errors import UnpricedModel
from serving.contracts.exits import Endpoint, Exit
from serving.contracts.ledger import CallEnd, Caller, LedgerState
from serving.contracts.ledger_settings import LedgerSettings
from serving.ledger.operations import Close, Open, RecordExit, Row
from serving.ledger.pricing.cost import Priced
from serving.ledger.rows import (
    ExitHeader,
    LocalShare,
    Prices,
    Sums,
    closed_call,
    closed_exit,
    is_credible,
    local_call,
    local_shares,
    opened_call,
    opened_exit,
    periods_at,
    price_row,
    storable_text,
    unknown_call,
)
from serving.ledger.worker import Answer
from serving.ledger.writer import Writer

_ZERO = Decimal(0)
_WITH_EXIT_S = 0.02
"""How long the end of a call waits for the exit after it; a retry may come first."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class LedgerDeps:
    """Dependencies of entries and calls.

    instance: id of this process's instance. clock: returns the time with its time zone.
    """

    writer: Writer
    prices: Prices
    settings: LedgerSettings
    instance: str
    clock: Callable[[], datetime] = _now
    zone: ZoneInfo = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "zone", ZoneInfo(self.settings.time_zone))


class DatabaseLedger:
    """Implements serving.contracts.ledger.LedgerService for the event loop that starts it."""

    def __init__(self, deps: LedgerDeps) -> None:
        self._deps = deps

    @property
    def state(self) -> LedgerState:
        """Return whether the database accepts writes."""
        return self._deps.writer.state

    async def start(self) -> None:
        """Start to write, also while the database is unreachable.

        Waits at most 10 s for the database. Raises LedgerUnusable for one that can never be used.
        """
        await self._deps.writer.start()

    async def aclose(self) -> None:
        """Write pending rows and stop, within 15 s; the rest stays in files."""
        await self._deps.writer.aclose()

    def entry(
        self,
        caller: Caller,
        request_id: str,
        endpoint: Endpoint,
        task: str | None,
        index: int,
        opened_at: datetime | None = None,
    ) -> "DatabaseEntry":
        """Return the entry of an input; opened_at: when its request arrived, now by default."""
        deps = self._deps
        header = ExitHeader(
            id=uuid4().hex,
            caller=caller,
            request_id=request_id,
            endpoint=endpoint,
            task=task,
            index=index,
            opened_at=opened_at or deps.clock(),
            instance=deps.instance,
        )
        return DatabaseEntry(deps, header)

    def resumed(self, exit_: Row, call: Row) -> "tuple[DatabaseEntry, DatabaseCall]":
        """Return the entry and the open call of rows that this or an earlier process wrote.

        Their end may come hours later: a provider's batch outlives the gateway that sent it.
        """
        deps = self._deps
        header = ExitHeader(
            id=exit_["id"],
            caller=Caller(
                exit_["tenant"], exit_["key_id"], lane=exit_["lane"], purpose=exit_["purpose"]
            ),
            request_id=exit_["request_id"],
            endpoint=exit_["endpoint"],
            task=exit_["task"],
            index=exit_["input_index"],
            opened_at=exit_["opened_at"],
            instance=deps.instance,
        )
        entry = DatabaseEntry(deps, header)
        return entry, entry.resumed(call)


class DatabaseEntry:
    """Implements serving.contracts.ledger.Entry."""

    def __init__(self, deps: LedgerDeps, header: ExitHeader) -> None:
        self._deps = deps
        self._header = header
        self._calls: list[DatabaseCall] = []
        self._ended: list[Close] = []
        self._tried = False
        self._left: asyncio.Future[Answer] | None = None
        waited_s = (deps.clock() - header.opened_at).total_seconds()
        # From here on the clock may be set, which must not count as latency.
        self._arrived_s = time.monotonic() - max(0.0, waited_s)

    @property
    def is_recorded(self) -> bool:
        """Return whether the input is on disk already, which its first paid call sees to."""
        return bool(self._calls)

    @property
    def most_usd(self) -> Decimal:
        """Return what its paid calls can have cost: the worst case of those of unknown cost."""
        costs = (call.held_usd if call.cost_usd is None else call.cost_usd for call in self._calls)
        return sum(costs, _ZERO)

    async def open_call(
        self, model: str, worst_case_usd: Decimal, deadline: Deadline
    ) -> "DatabaseCall":
        """Record a call and hold its worst case; only then may the call be made.

        model: `provider/model`. Raises BudgetExceeded; LedgerUnavailable where the call cannot be
        recorded within call_wait_s; DeadlineExceeded where the request has less time left than
        that. A call that is not returned holds nothing.
        """
        assert self._left is None, "a call was opened after its exit"
        deps = self._deps
        now = deps.clock()
        call = opened_call(self._header, model, worst_case_usd, periods_at(now, deps.zone), now)
        operation = Open(opened_exit(self._header), call, first=not self._tried)
        self._tried = True
        await deps.writer.open(operation, deps.settings.call_wait_s, deadline)
        self._calls.append(DatabaseCall(self, deps.prices, call))
        return self._calls[-1]

    def resumed(self, call: Row) -> "DatabaseCall":
        """Return an open call of this entry, whose row another process may have written."""
        self._tried = True
        self._calls.append(DatabaseCall(self, self._deps.prices, call))
        return self._calls[-1]

    def add_end(self, operation: Close) -> None:
        """Write the end of a call, together with the exit where the exit follows soon.

        One transaction takes half the time of two.
        """
        if self._left is not None:
            self._deps.writer.submit(operation, is_awaited=False)
            return
        if not self._ended:
            self._deps.writer.later(_WITH_EXIT_S, self._write_ended)
        self._ended.append(operation)

    def _write_ended(self) -> None:
        for operation in self._ended:
            self._deps.writer.submit(operation, is_awaited=False)
        self._ended.clear()

    def close(self, exit_: Exit) -> Decimal | None:
        """Write the exit of the input. At most once; does not raise or block.

        Returns the cost of all its calls, US dollars; None where a call's cost is unknown.
        """
        assert self._left is None, "an entry was closed twice"
        priced = [(share, self._priced(share)) for share in local_shares(exit_)]
        costs = [None if price is None else price.cost_usd for _, price in priced]
        costs += [call.cost_usd for call in self._calls]
        known = [cost for cost in costs if cost is not None]
        sums = Sums(
            sum(known, _ZERO),
            sum((call.held_usd for call in self._calls), _ZERO),
            self._reference_usd(exit_),
        )
        exit_ = replace(exit_, elapsed_s=max(exit_.elapsed_s, self._age_s()))
        self._write_ended()
        record = self._exit_record(exit_, sums, priced)
        # Clients wait only for exits without a paid call: a paid call is on disk before it is made.
        self._left = self._deps.writer.submit(record, is_awaited=not record.paid)
        return sums.cost_usd if len(known) == len(costs) else None

    async def written(self) -> None:
        """Return when the exit is on disk, or after commit_wait_s."""
        assert self._left is not None, "the entry was not closed"
        self._deps.writer.hurry()
        await asyncio.wait([self._left], timeout=self._deps.settings.commit_wait_s)

    def _age_s(self) -> float:
        """Return the seconds since the request arrived, the queue included."""
        return time.monotonic() - self._arrived_s

    def _exit_record(
        self, exit_: Exit, sums: Sums, priced: list[tuple[LocalShare, Priced | None]]
    ) -> RecordExit:
        header, deps, paid = self._header, self._deps, bool(self._calls)
        periods = periods_at(header.opened_at, deps.zone)
        return RecordExit(
            exit=closed_exit(header, exit_, sums, deps.settings.reference_model, paid=paid),
            calls=tuple(local_call(header, share, price, periods) for share, price in priced),
            prices=tuple(price_row(price.price) for _, price in priced if price is not None),
            paid=paid,
        )

    def _priced(self, share: LocalShare) -> Priced | None:
        try:
            return self._deps.prices.local(share.model, share.replica_s)
        except UnpricedModel:
            return None

    def _reference_usd(self, exit_: Exit) -> Decimal | None:
        usage = exit_.reference_usage or exit_.usage
        if exit_.error is not None or usage is None:
            return None
        try:
            return self._deps.prices.reference(usage, self._header.opened_at)
        except UnpricedModel:
            return None


class DatabaseCall:
    """Implements serving.contracts.ledger.OpenCall.

    cost_usd: None while the call is open and where its cost is unknown; held_usd is then its worst
    case.
    """

    def __init__(self, entry: DatabaseEntry, prices: Prices, call: Row) -> None:
        self._entry = entry
        self._prices = prices
        self._call = call
        self._closed = False
        self.cost_usd: Decimal | None = None
        self.held_usd: Decimal = call["held_usd"]

    def close(self, end: CallEnd) -> None:
        """Record how the call ended. At most once; does not raise or block.

        A call stays charged at its worst case where its usage is `unknown` or not credible, and
        where its model no longer has a price.
        """
        assert not self._closed, "a call was closed twice"
        self._closed = True
        try:
            operation = self._ended(end)
        except UnpricedModel:
            operation = Close(unknown_call(self._call, end))
        self.cost_usd = operation.call.get("cost_usd")
        self.held_usd = operation.call["held_usd"]
        self._entry.add_end(operation)

    def _ended(self, end: CallEnd) -> Close:
        if end.usage_source == "unknown" or (end.usage and not is_credible(end.usage)):
            return Close(unknown_call(self._call, replace(end, usage=None)))
        if end.usage is None:
            return Close(closed_call(self._call, end, None))
        priced = self._prices.frontier(
            self._call["model"],
            end.usage,
            storable_text(end.service_tier),
            self._call["opened_at"],
        )
        return Close(closed_call(self._call, end, priced), (price_row(priced.price),))
