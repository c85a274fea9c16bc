"""A ledger in memory, which shows its rows and refuses scripted calls."""

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal

from serving.contracts.deadline import Deadline
from serving.contracts.errors import NarrowgateError
from serving.contracts.exits import Endpoint, Exit
from serving.contracts.ledger import CallEnd, Caller, LedgerState

COST = Decimal("0.25")
"""The cost of every provider's call whose usage is known."""

LOCAL_COST = Decimal("0.01")
"""The cost of every local attempt, and of every local answer."""


@dataclass
class BookedCall:
    model: str
    worst_case_usd: Decimal
    end: CallEnd | None = None

    def close(self, end: CallEnd) -> None:
        assert self.end is None, "closed twice"
        self.end = end

    @property
    def cost_usd(self) -> Decimal | None:
        # An abandoned stream may be read on in the background, behind its exit.
        if self.end is None or self.end.usage_source == "unknown":
            return None
        return COST if self.end.usage is not None else Decimal(0)


@dataclass
class Page:
    """One input's entry."""

    caller: Caller
    request_id: str
    endpoint: Endpoint
    task: str | None
    index: int
    refuse: list[NarrowgateError]
    opened_at: datetime | None = None
    calls: list[BookedCall] = field(default_factory=list)
    exit: Exit | None = None

    @property
    def is_recorded(self) -> bool:
        return bool(self.calls)

    @property
    def most_usd(self) -> Decimal:
        costs = (c.worst_case_usd if c.cost_usd is None else c.cost_usd for c in self.calls)
        return sum(costs, Decimal(0))

    async def open_call(
        self, model: str, worst_case_usd: Decimal, deadline: Deadline
    ) -> BookedCall:
        assert self.exit is None, "a call after the exit"
        if self.refuse:
            raise self.refuse.pop(0)
        self.calls.append(BookedCall(model, worst_case_usd))
        return self.calls[-1]

    def close(self, exit_: Exit) -> Decimal | None:
        assert self.exit is None, "left twice"
        self.exit = exit_
        local = [attempt for attempt in exit_.attempts if attempt.replica_s is not None]
        costs = [call.cost_usd for call in self.calls] + [LOCAL_COST] * len(local)
        if exit_.replica_s is not None:
            costs.append(LOCAL_COST)
        known = [cost for cost in costs if cost is not None]
        return sum(known, Decimal(0)) if len(known) == len(costs) else None

    async def written(self) -> None:
        assert self.exit is not None, "nothing was settled"


class MemoryLedger:
    """Implements serving.contracts.ledger.Ledger. refuse: errors of the next calls, in order."""

    def __init__(self) -> None:
        self.pages: list[Page] = []
        self.refuse: list[NarrowgateError] = []

    def entry(
        self,
        caller: Caller,
        request_id: str,
        endpoint: Endpoint,
        task: str | None,
        index: int,
        opened_at: datetime | None = None,
    ) -> Page:
        page = Page(caller, request_id, endpoint, task, index, self.refuse, opened_at)
        self.pages.append(page)
        return page

    @property
    def state(self) -> LedgerState:
        return "up"

    async def start(self) -> None:
        """Nothing is opened."""

    async def aclose(self) -> None:
        """Nothing waits."""

    @property
    def calls(self) -> list[BookedCall]:
        """Every call, in the order of its page and its making."""
        return [call for page in self.pages for call in page.calls]
