"""Writes entries and counts hits behind the requests; drops what the database does not take."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Literal, Protocol

from sqlalchemy.exc import SQLAlchemyError

from serving.cache.entry import PackedEntry
from serving.cache.flight import Flight, Flights
from serving.contracts.errors import LedgerUnavailable

logger = logging.getLogger(__name__)

_MOST_PENDING = 1000
_MOST_PENDING_BYTES = 64 * 2**20
_BATCH = 64
_PAUSE_S = 0.05
"""Between two batches: SQLite has one writer at a time, and paid calls wait for their rows."""


class WriteEvents(Protocol):
    """The events of CacheEvents that a writer causes."""

    def cache_written(self, entries: int) -> None:
        """Entries were stored."""
        ...

    def cache_dropped(self, entries: int) -> None:
        """Entries were not stored."""
        ...

    def cache_deleted(self, entries: int, because: Literal["asked", "expired", "limit"]) -> None:
        """Entries were deleted."""
        ...


class EntryWriter:
    """Holds entries until they are written, in batches. hits: not yet counted, by entry.

    write: stores entries and returns how many were left out. count: counts hits by entry. Both
    raise LedgerUnavailable. lookup_s: a lookup takes at most so long; one that began before a write
    must find the flight.
    """

    def __init__(
        self,
        write: Callable[[Sequence[PackedEntry]], Awaitable[int]],
        count: Callable[[Mapping[str, int]], Awaitable[None]],
        flights: Flights,
        events: WriteEvents,
        lookup_s: float,
    ) -> None:
        self.hits: Counter[str] = Counter()
        self._write = write
        self._count = count
        self._flights = flights
        self._events = events
        self._lookup_s = lookup_s
        self._pending: deque[tuple[PackedEntry, Flight]] = deque()
        self._pending_bytes = 0
        self._writing = asyncio.Lock()
        self._woken = asyncio.Event()

    async def watch(self) -> None:
        """Write what is submitted until cancelled."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._pending:
                async with self._writing:
                    # A flush may have written all of it in the meantime.
                    if self._pending:
                        await self._write_batch()
                await asyncio.sleep(_PAUSE_S)

    def submit(self, packed: PackedEntry, flight: Flight) -> None:
        """Write an entry soon and then end its flight; drop it where too many are pending."""
        size = len(packed.data)
        is_full = len(self._pending) >= _MOST_PENDING
        if is_full or self._pending_bytes + size > _MOST_PENDING_BYTES:
            self._events.cache_dropped(1)
            self._flights.retire(flight)
            return
        self._pending.append((packed, flight))
        self._pending_bytes += size
        self._woken.set()

    async def flush(self) -> None:
        """Return when everything submitted before is written or dropped."""
        # Also without anything pending: a batch may be on its way to the database.
        async with self._writing:
            while self._pending:
                await self._write_batch()

    async def _write_batch(self) -> None:
        batch = [self._pending.popleft() for _ in range(min(_BATCH, len(self._pending)))]
        try:
            left_out = await self._write([packed for packed, _ in batch])
            self._events.cache_written(len(batch) - left_out)
            self._events.cache_deleted(left_out, "asked")
            for _, flight in batch:
                flight.is_written = True
        except (LedgerUnavailable, SQLAlchemyError) as error:
            # A cache that cannot be written is a cache that misses.
            self._events.cache_dropped(len(batch))
            logger.warning("cache.write_failed error=%s", type(error).__name__)
        finally:
            for packed, flight in batch:
                self._pending_bytes -= len(packed.data)
                self._flights.retire_later(flight, self._lookup_s)

    async def count_hits(self) -> None:
        """Count new hits in the database; while it is unreachable they are lost."""
        hits, self.hits = self.hits, Counter()
        if not hits:
            return
        try:
            await self._count(hits)
        except (LedgerUnavailable, SQLAlchemyError) as error:
            logger.warning("cache.hits_not_counted error=%s", type(error).__name__)
