"""Times lookups in caches of several sizes, in the process that looks up."""

import asyncio
import random
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from benchmarks.load import percentile

if TYPE_CHECKING:
    from serving.cache.entry import PackedEntry
    from serving.cache.service import CacheService

_BATCH = 2000
_LOOKUP_S = 10.0


@dataclass(frozen=True, slots=True)
class Lookups:
    """Times of lookups in a cache of so many entries. hit_s, miss_s: seconds, one a lookup."""

    entries: int
    fill_s: float
    database_bytes: int
    hit_s: list[float]
    miss_s: list[float]

    def document(self) -> dict[str, float]:
        """Return the percentiles in milliseconds."""
        return {
            "entries": self.entries,
            "fill_s": self.fill_s,
            "database_mib": self.database_bytes / 2**20,
            **{
                f"{name}_{label}_ms": percentile(values, share) * 1000
                for name, values in (("hit", self.hit_s), ("miss", self.miss_s))
                for label, share in (("p50", 0.5), ("p99", 0.99))
            },
        }


def time_lookups(entries: int, lookups: int) -> Lookups:
    """Fill a cache in a new SQLite database, and look entries up one after another."""
    from pydantic import SecretStr

    from serving.cache.entry_store import EntryStore
    from serving.cache.service import CacheService
    from serving.contracts.cache_settings import CacheSettings
    from serving.gateway.metrics import Metrics
    from serving.ledger.database import Database, database_url
    from serving.ledger.migrate import migrate

    url: SecretStr | None = None
    with tempfile.TemporaryDirectory(prefix="narrowgate-") as name:
        state = Path(name)
        database = Database(database_url(url, state), is_synced=False)
        migrate(database)
        store = EntryStore(database)
        started = time.perf_counter()
        for batch in _batches(entries):
            store.write(batch)
        fill_s = time.perf_counter() - started
        service = CacheService(store, CacheSettings(lookup_timeout_s=_LOOKUP_S), Metrics().cache)
        hit_s, miss_s = asyncio.run(_timed(service, entries, lookups))
        size = sum(file.stat().st_size for file in (state / "ledger").iterdir())
        database.close()
    return Lookups(entries, fill_s, size, hit_s, miss_s)


async def _timed(
    service: "CacheService", entries: int, lookups: int
) -> tuple[list[float], list[float]]:
    numbers = random.Random(1)  # noqa: S311  # the order of a benchmark
    hit_s: list[float] = []
    miss_s: list[float] = []
    # Hits and misses in turn, so that a slower machine slows both.
    for _ in range(lookups):
        for times, number in (
            (hit_s, numbers.randrange(entries)),
            (miss_s, entries + numbers.randrange(entries)),
        ):
            started = time.perf_counter()
            found = await service.find([_key(number)])
            times.append(time.perf_counter() - started)
            assert found is not None
            assert len(found) == (number < entries)
    return hit_s, miss_s


def _batches(entries: int) -> "Iterator[list[PackedEntry]]":
    for start in range(0, entries, _BATCH):
        yield [_entry(number) for number in range(start, min(entries, start + _BATCH))]


def _entry(number: int) -> "PackedEntry":
    return packed_entry(_key(number), "tenant/bench", number)


def packed_entry(key: str, namespace: str, number: int) -> "PackedEntry":
    """Return an entry that differs from the others in all but its answer, which is packed once."""
    packed = _packed()
    entry = replace(
        packed.entry, key=key, namespace=namespace, request_id=f"r{number}", id=uuid4().hex
    )
    return replace(packed, entry=entry)


@cache
def _packed() -> "PackedEntry":
    from serving.cache.entry import AnswerOrigin, Content, Entry, PackedEntry
    from serving.contracts.answer import Usage

    usage = Usage(uncached_input_tokens=200, output_tokens=80)
    message = {"role": "assistant", "content": "123456 is a number. " * 15}
    document = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {}}
    now = datetime.now(UTC)
    return PackedEntry.of(
        Entry(
            "", "", "bench", "", "chat", AnswerOrigin("frontier", "openai/bench"),
            Content(document, usage), now, now + timedelta(days=1),
        ),
        now,
    )  # fmt: skip


def _key(number: int) -> str:
    # Spread as digests are: keys in order would keep the index's pages in memory.
    return f"{random.Random(number).getrandbits(256):064x}"  # noqa: S311  # not a secret
