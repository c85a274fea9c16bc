"""The cost replay's ledger in memory: what each call cost, for the client or behind it."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from serving.contracts.deadline import Deadline
from serving.contracts.exits import Endpoint, Exit
from serving.contracts.ledger import Caller
from tests.unit.memory_ledger import BookedCall, MemoryLedger, Page

if TYPE_CHECKING:
    from serving.contracts.prices import PriceList


@dataclass
class _Call(BookedCall):
    book: "PriceList | None" = None

    @property
    def cost_usd(self) -> Decimal | None:
        end = self.end
        if end is None or end.usage is None or self.book is None:
            return Decimal(0)
        prices = self.book.of(self.model)
        return None if prices is None else prices.base.cost(end.usage)


@dataclass
class _Page(Page):
    book: "PriceList | None" = None

    async def open_call(
        self, model: str, worst_case_usd: Decimal, deadline: Deadline
    ) -> BookedCall:
        """Allow every call."""
        self.calls.append(_Call(model, worst_case_usd, book=self.book))
        return self.calls[-1]

    def close(self, exit_: Exit) -> Decimal | None:
        """Return what the entry's calls cost."""
        self.exit = exit_
        costs = [call.cost_usd for call in self.calls]
        return None if None in costs else sum((c for c in costs if c is not None), Decimal(0))


class PricedLedger(MemoryLedger):
    """A ledger whose calls cost what they cost."""

    def __init__(self, book: "PriceList") -> None:
        super().__init__()
        self._book = book

    def entry(
        self,
        caller: Caller,
        request_id: str,
        endpoint: Endpoint,
        task: str | None,
        index: int,
        opened_at: datetime | None = None,
    ) -> Page:
        """Open an entry."""
        page = _Page(
            caller, request_id, endpoint, task, index, self.refuse, opened_at, book=self._book
        )
        self.pages.append(page)
        return page
