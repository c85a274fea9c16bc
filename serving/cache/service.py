"""The cache of one process: lookups that fail open, and deletions. One for its event loop."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Literal, Protocol, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from serving.cache.cacheable import Reason
from serving.cache.entry import Entry, PackedEntry
from serving.cache.entry_store import EntryFilter, EntryStore, Size
from serving.cache.flight import Flight, Flights
from serving.cache.steady_clock import SteadyClock
from serving.cache.writer import EntryWriter
from serving.contracts.cache_settings import CacheSettings
from serving.contracts.errors import LedgerUnavailable

logger = logging.getLogger(__name__)
T = TypeVar("T")

Looked = Literal["hit", "miss", "shared", "unavailable"]
"""shared: an equal request was being answered. unavailable: the database did not answer in time."""

_THREADS = 4
_PAUSE_S = 1.0
"""After a failure of the database nothing is looked up for so long."""
_LONGEST_SHARED_S = 1.0
"""A deletion by another replica holds after so long here."""
_SWEEP_S = 30.0
_COUNT_S = 5.0
"""Hits are counted in the database after so long, one row an entry."""


class CacheEvents(Protocol):
    """Counts events of the cache; the gateway's metrics implement it. None may raise."""

    def cache_looked_up(self, kind: str, outcome: Looked, seconds: float | None) -> None:
        """An input was looked up."""
        ...

    def cache_bypassed(self, kind: str, reason: Reason) -> None:
        """An input was neither looked up nor stored."""
        ...

    def cache_not_stored(self, kind: str, reason: Reason) -> None:
        """An answer was not stored."""
        ...

    def cache_written(self, entries: int) -> None:
        """Entries were stored."""
        ...

    def cache_dropped(self, entries: int) -> None:
        """Entries were not stored: the database is unreachable or too slow."""
        ...

    def cache_deleted(self, entries: int, because: Literal["asked", "expired", "limit"]) -> None:
        """Entries were deleted."""
        ...

    def cache_sized(self, sizes: Sequence[Size]) -> None:
        """The sizes of the namespaces were read."""
        ...

    def cache_unreadable(self, entries: int) -> None:
        """Entries could not be decrypted or read; each was a miss."""
        ...

    def cache_feedback(self, *, good: bool) -> None:
        """A client said whether a cached answer was right."""
        ...


class CacheService:
    """Finds, stores and deletes entries. Its watch must run for entries to be written.

    Where the cache is off, no request uses it; what was stored before still expires and can be
    deleted.
    """

    def __init__(
        self,
        store: EntryStore,
        settings: CacheSettings,
        events: CacheEvents,
        now: Callable[[], datetime] | None = None,
    ) -> None:
        now = now or SteadyClock()
        self.settings = settings
        self.events = events
        self.flights = Flights()
        self.now = now
        self.entry_store = store
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="cache")
        self._writer = EntryWriter(
            lambda batch: self._run(store.write, batch),
            lambda hits: self._run(store.used, hits, now()),
            self.flights,
            events,
            min(settings.lookup_timeout_s, _LONGEST_SHARED_S),
        )
        self._paused_until_s = 0.0

    async def start(self) -> None:
        """Check the encryption key. Raises InvalidKey; an unreachable database is no error."""
        if not self.settings.enabled:
            return
        try:
            await self._run(self.entry_store.check_key)
        except (LedgerUnavailable, SQLAlchemyError) as error:
            logger.warning("cache.key_not_checked error=%s", type(error).__name__)

    async def watch(self) -> None:
        """Write, count hits and keep the limits until cancelled; then write what is pending."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._writer.watch())
                group.create_task(_repeat(_COUNT_S, self._writer.count_hits))
                group.create_task(_repeat(_SWEEP_S, self.sweep))
        finally:
            await self._writer.flush()
            await self._writer.count_hits()
            self._threads.shutdown(wait=False)

    async def find(self, keys: Sequence[str]) -> Mapping[str, Entry] | None:
        """Return the entries of keys; None where the database did not answer in time."""
        if time.monotonic() < self._paused_until_s:
            return None
        try:
            async with asyncio.timeout(self.settings.lookup_timeout_s):
                found = await self._run(self.entry_store.find, keys)
        except (LedgerUnavailable, SQLAlchemyError, TimeoutError) as error:
            self._paused_until_s = time.monotonic() + _PAUSE_S
            logger.warning("cache.unavailable error=%s", type(error).__name__)
            return None
        if found.unreadable:
            self.events.cache_unreadable(found.unreadable)
        return found.entries

    def hit(self, entry: Entry) -> None:
        """Count a hit."""
        self._writer.hits[entry.id] += 1

    def store(self, entry: PackedEntry, flight: Flight) -> None:
        """Store an entry soon and then end its flight. Neither waits nor raises.

        Until it is written, equal requests get it from the flight.
        """
        self._writer.submit(entry, flight)

    async def written(self) -> None:
        """Return when everything that was stored before is written or dropped."""
        await self._writer.flush()

    async def delete(self, chosen: EntryFilter) -> int:
        """Delete entries on all replicas; return how many. Raises LedgerUnavailable."""
        await self._writer.flush()
        count = await self._run(self.entry_store.delete, chosen)
        self.flights.retire_answered()
        self.events.cache_deleted(count, "asked")
        return count

    async def read(self, function: Callable[[EntryStore], T]) -> T:
        """Return what a function reads from the store, in a thread. Raises LedgerUnavailable."""
        await self._writer.flush()
        return await self._run(function, self.entry_store)

    async def sweep(self) -> None:
        """Delete expired entries, and the least recently used over the limits."""
        try:
            swept = await self._run(self.entry_store.sweep, self.now(), self.settings)
        except (LedgerUnavailable, SQLAlchemyError) as error:
            logger.warning("cache.sweep_failed error=%s", type(error).__name__)
            return
        self.events.cache_deleted(swept.expired, "expired")
        self.events.cache_deleted(swept.evicted, "limit")
        self.events.cache_sized(swept.sizes)

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, function, *arguments)


async def _repeat(seconds: float, do: Callable[[], Any]) -> None:
    while True:
        await asyncio.sleep(seconds)
        await do()
