"""The books as requests see them, on top of the writer."""

import asyncio
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
from serving.ledger.operations import Close, Leave, Open, Row
from serving.ledger.periods import periods_at
from serving.ledger.pricing.cost import Priced
from serving.ledger.rows import (
    LocalShare,
    Page,
    Prices,
    Sums,
    closed_call,
    closed_exit,
    local_call,
    local_shares,
    opened_call,
    opened_exit,
    price_row,
    unknown_call,
)
from serving.ledger.worker import Answer
from serving.ledger.writer import Writer

_ZERO = Decimal(0)
_WITH_EXIT_S = 0.02
"""How long a call's end waits for the exit that follows it; a retry may come between."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class LedgerDeps:
    """What entries and calls work with. instance: id of this process's. clock: with its zone."""

    writer: Writer
    prices: Prices
    settings: LedgerSettings
    instance: str
    clock: Callable[[], datetime] = _now
    zone: ZoneInfo = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "zone", ZoneInfo(self.settings.time_zone))


class DatabaseLedger:
    """Implements serving.contracts.ledger.Ledger. For the event loop that starts it."""

    def __init__(self, desk: LedgerDeps) -> None:
        self._desk = desk

    @property
    def state(self) -> LedgerState:
        """Return whether the database takes what is written."""
        return self._desk.writer.state

    async def start(self) -> None:
        """Begin to write; also where the database is away, and then without it.

        Waits for it for 10 s at most. Raises LedgerUnusable for one that will never do.
        """
        await self._desk.writer.start()

    async def aclose(self) -> None:
        """Write what waits and end, within 15 s; what the database does not take stays in files."""
        await self._desk.writer.aclose()

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
        desk = self._desk
        page = Page(
            id=uuid4().hex,
            caller=caller,
            request_id=request_id,
            endpoint=endpoint,
            task=task,
            index=index,
            opened_at=opened_at or desk.clock(),
            instance=desk.instance,
        )
        return DatabaseEntry(desk, page)


class DatabaseEntry:
    """Implements serving.contracts.ledger.Entry."""

    def __init__(self, desk: LedgerDeps, page: Page) -> None:
        self._desk = desk
        self._page = page
        self._calls: list[BookCall] = []
        self._ended: list[Close] = []
        self._tried = False
        self._left: asyncio.Future[Answer] | None = None

    @property
    def booked(self) -> bool:
        """Return whether the input is on disk already: its paid calls are, and it with them."""
        return bool(self._calls)

    async def open_call(
        self, model: str, worst_case_usd: Decimal, deadline: Deadline
    ) -> "BookCall":
        """Write a call into the books and hold its worst case; only then may it be made.

        model: `provider/model`. Raises BudgetExceeded; LedgerUnavailable where the books cannot be
        written within call_wait_s; DeadlineExceeded where the request has less time than that. A
        call that was not returned holds nothing.
        """
        assert self._left is None, "a call was opened after its exit"
        desk = self._desk
        now = desk.clock()
        call = opened_call(self._page, model, worst_case_usd, periods_at(now, desk.zone), now)
        operation = Open(opened_exit(self._page), call, first=not self._tried)
        self._tried = True
        await desk.writer.open(operation, desk.settings.call_wait_s, deadline)
        self._calls.append(BookCall(self, desk.prices, call))
        return self._calls[-1]

    def hand_in(self, operation: Close) -> None:
        """Write the end of a call: with the exit, which follows most of them at once.

        One transaction takes half the time of two, and the next request waits for it.
        """
        if self._left is not None:
            self._desk.writer.submit(operation)
            return
        if not self._ended:
            self._desk.writer.later(_WITH_EXIT_S, self._write_ended)
        self._ended.append(operation)

    def _write_ended(self) -> None:
        for operation in self._ended:
            self._desk.writer.submit(operation)
        self._ended.clear()

    def close(self, exit_: Exit) -> Decimal | None:
        """Write how the input left; at most once. Never raises or waits.

        Returns what it cost in all, US dollars; None where a call's cost is unknown.
        """
        assert self._left is None, "an input left twice"
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
        self._left = self._desk.writer.submit(self._leave(exit_, sums, priced))
        return sums.cost_usd if len(known) == len(costs) else None

    async def written(self) -> None:
        """Return when the exit is on disk, or after commit_wait_s."""
        assert self._left is not None, "the input has not left"
        await asyncio.wait([self._left], timeout=self._desk.settings.commit_wait_s)

    def _age_s(self) -> float:
        """Return the seconds since the request arrived, the queue included."""
        return (self._desk.clock() - self._page.opened_at).total_seconds()

    def _leave(
        self, exit_: Exit, sums: Sums, priced: list[tuple[LocalShare, Priced | None]]
    ) -> Leave:
        page, desk, paid = self._page, self._desk, bool(self._calls)
        periods = periods_at(page.opened_at, desk.zone)
        return Leave(
            exit=closed_exit(page, exit_, sums, desk.settings.reference_model, paid=paid),
            calls=tuple(local_call(page, share, price, periods) for share, price in priced),
            prices=tuple(price_row(price.price) for _, price in priced if price is not None),
            paid=paid,
        )

    def _priced(self, share: LocalShare) -> Priced | None:
        try:
            return self._desk.prices.local(share.model, share.replica_s)
        except UnpricedModel:
            return None

    def _reference_usd(self, exit_: Exit) -> Decimal | None:
        if exit_.error is not None or exit_.usage is None:
            return None
        try:
            return self._desk.prices.reference(exit_.usage, self._page.opened_at)
        except UnpricedModel:
            return None


class BookCall:
    """Implements serving.contracts.ledger.OpenCall.

    cost_usd: None until it ended, and where nobody told. held_usd: its worst case for as long.
    """

    def __init__(self, entry: DatabaseEntry, prices: Prices, call: Row) -> None:
        self._entry = entry
        self._prices = prices
        self._call = call
        self._closed = False
        self.cost_usd: Decimal | None = None
        self.held_usd: Decimal = call["held_usd"]

    def close(self, end: CallEnd) -> None:
        """Say how it ended; at most once. Never raises or waits.

        A call whose usage is `unknown`, or whose model has lost its price, stays charged at its
        worst case.
        """
        assert not self._closed, "a call was closed twice"
        self._closed = True
        try:
            operation = self._ended(end)
        except UnpricedModel:
            operation = Close(unknown_call(self._call, end))
        self.cost_usd = operation.call.get("cost_usd")
        self.held_usd = operation.call["held_usd"]
        self._entry.hand_in(operation)

    def _ended(self, end: CallEnd) -> Close:
        if end.usage_source == "unknown":
            return Close(unknown_call(self._call, end))
        if end.usage is None:
            return Close(closed_call(self._call, end, None))
        priced = self._prices.frontier(
            self._call["model"], end.usage, end.service_tier, self._call["opened_at"]
        )
        return Close(closed_call(self._call, end, priced), (price_row(priced.price),))
