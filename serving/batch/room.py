"""What further calls of one batch may cost under its max_cost_usd."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from decimal import Decimal

from serving.batch.store import ClaimedLine
from serving.contracts.errors import MaxCostExceeded

Committed = Callable[[], Awaitable[Decimal]]
"""Returns what ended lines cost, and those in providers' batches may cost, US dollars."""


class BatchRoom:
    """Shares a batch's limit among its lines. limit_usd: None without one.

    claiming: held from the reading of `free_usd` until what was begun with it counts, in the
    database or by `begin`. Without it two claims would use the same room.
    """

    def __init__(self, limit_usd: Decimal | None, committed: Committed) -> None:
        self.limit_usd = limit_usd
        self.claiming = asyncio.Lock()
        self._committed = committed
        self._reserved: dict[int, Decimal] = {}

    async def free_usd(self) -> Decimal | None:
        """Return what is left, US dollars; None without a limit. Call it under `claiming`."""
        if self.limit_usd is None:
            return None
        # Summed before the database is read: what ends meanwhile counts twice, and not at all else.
        reserved = sum(self._reserved.values(), Decimal(0))
        return self.limit_usd - reserved - await self._committed()

    def begin(
        self, lines: Iterable[ClaimedLine], free_usd: Decimal | None, *, in_batch: bool
    ) -> None:
        """Reserve the worst cases of lines that begin to run; all of the room for an unknown one.

        free_usd: that they were claimed with. in_batch: the price that they were claimed at.
        """
        if free_usd is not None:
            for line in lines:
                usd = line.most_usd(in_batch=in_batch)
                self._reserved[line.number] = free_usd if usd is None else usd

    async def require(self, number: int, usd: Decimal) -> None:
        """Reserve up to so much for a line, beyond what the database counts for it.

        Raises MaxCostExceeded where the batch has no room for it.
        """
        if self.limit_usd is None or usd <= self._reserved.get(number, Decimal(0)):
            return
        async with self.claiming:
            free = await self.free_usd()
            before = self._reserved.get(number, Decimal(0))
            if free is not None and usd - before > free:
                raise MaxCostExceeded(
                    f"the batch's max_cost_usd is {self.limit_usd:f}, and a call that may cost "
                    f"{usd - before:f} more does not fit what is left of it",
                    field="metadata.max_cost_usd",
                    fix="raise it",
                )
            self._reserved[number] = max(before, usd)

    def release(self, number: int) -> None:
        """Forget what is reserved for a line: it has ended, or the database counts all of it."""
        self._reserved.pop(number, None)
