"""Times lookups by meaning, and what a tenant's misses tell of other tenants' entries."""

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.cache_lookups import packed_entry
from benchmarks.load import percentile

if TYPE_CHECKING:
    from serving.cache.entry import PackedEntry, Question
    from serving.cache.entry_store import EntryStore
    from serving.cache.similar import SimilarEntries

_BATCH = 2000
_DIMENSIONS = 384
_COSINE = 0.95
_THRESHOLD = 0.90
_FINGERPRINT = "f" * 64
_LOAD_S = 600.0
_MEAN = 0.35
_DECAY = 1 / 62
_SPREAD = np.exp(-_DECAY * np.arange(_DIMENSIONS))
_SPREAD *= ((1 - _MEAN**2) / np.sum(_SPREAD**2)) ** 0.5


@dataclass(frozen=True, slots=True)
class Similar:
    """Times of lookups by meaning among so many questions. Seconds, one a lookup.

    fill_s: of the database. load_s: of the index from the database. index_bytes: what the process
    grew by meanwhile. hits: lookups of `hit_s` that found the stored question; the index is
    approximate.
    """

    entries: int
    fill_s: float
    load_s: float
    index_bytes: int
    hits: int
    hit_s: list[float]
    miss_s: list[float]

    def document(self) -> dict[str, float]:
        """Return the percentiles in milliseconds."""
        return {
            "entries": self.entries,
            "fill_s": self.fill_s,
            "load_s": self.load_s,
            "index_mib": self.index_bytes / 2**20,
            "found": self.hits,
            "asked": len(self.hit_s),
            **_percentiles("hit", self.hit_s),
            **_percentiles("miss", self.miss_s),
        }


@dataclass(frozen=True, slots=True)
class Namespaces:
    """Times of one tenant's misses. Seconds, one a lookup, taken in turn.

    stored_s: of chats that another tenant has stored. new_s: of chats that nobody has.
    """

    stored_s: list[float]
    new_s: list[float]

    def document(self) -> dict[str, float]:
        """Return percentiles, and the difference of the medians with its 95 % interval, in ms."""
        low, high = _difference(self.stored_s, self.new_s)
        medians = [statistics.median(times) for times in (self.stored_s, self.new_s)]
        return {
            **_percentiles("stored", self.stored_s),
            **_percentiles("new", self.new_s),
            "difference_ms": (medians[0] - medians[1]) * 1000,
            "difference_low_ms": low * 1000,
            "difference_high_ms": high * 1000,
        }


def time_similar(entries: int, lookups: int) -> Similar:
    """Look up questions near stored ones, and far from all, in a new SQLite database."""
    import psutil

    filling = time.perf_counter()
    with _filled(entries, "tenant/a") as store:
        fill_s = time.perf_counter() - filling
        before = psutil.Process().memory_info().rss
        similar = _similar(store)
        started = time.perf_counter()
        asyncio.run(_wait_for_index(similar, entries))
        load_s = time.perf_counter() - started
        grown = psutil.Process().memory_info().rss - before
        hits, hit_s, miss_s = asyncio.run(_time_similar(similar, entries, lookups))
    return Similar(entries, fill_s, load_s, max(0, grown), hits, hit_s, miss_s)


def time_namespaces(entries: int, lookups: int) -> Namespaces:
    """Time misses of a tenant whose neighbour has stored half of the questions."""
    with _filled(entries, "tenant/a") as store:
        similar = _similar(store)
        asyncio.run(_wait_for_index(similar, entries))
        return asyncio.run(_time_namespaces(similar, entries, lookups))


@contextmanager
def _filled(entries: int, namespace: str) -> "Iterator[EntryStore]":
    from serving.cache.entry_store import EntryStore
    from serving.ledger.database import Database, database_url
    from serving.ledger.migrate import migrate

    with tempfile.TemporaryDirectory(prefix="narrowgate-") as name:
        database = Database(database_url(None, Path(name)), is_synced=False)
        migrate(database)
        store = EntryStore(database)
        for start in range(0, entries, _BATCH):
            numbers = range(start, min(entries, start + _BATCH))
            store.write([_entry(number, namespace) for number in numbers])
        yield store
        database.close()


def _similar(store: "EntryStore") -> "SimilarEntries":
    from serving.cache.question_store import QuestionStore
    from serving.cache.similar import SimilarEntries

    return SimilarEntries(QuestionStore(store), _DIMENSIONS, timeout_s=30.0)


async def _find(similar: "SimilarEntries", namespace: str, key: str, asked: "Question") -> Any:
    found = await similar.find(key, namespace, asked, _THRESHOLD, lambda _: True)
    assert found is not None
    return found


async def _wait_for_index(similar: "SimilarEntries", entries: int) -> None:
    deadline = time.monotonic() + _LOAD_S
    for namespace in ("tenant/a", "tenant/b"):
        while (await _find(similar, namespace, "k", _question(entries))).is_loading:
            assert time.monotonic() < deadline, "the index was not loaded in time"
            await asyncio.sleep(0.05)


async def _time_similar(
    similar: "SimilarEntries", entries: int, lookups: int
) -> tuple[int, list[float], list[float]]:
    numbers = random.Random(1)  # noqa: S311  # the order of a benchmark
    hits = 0
    hit_s: list[float] = []
    miss_s: list[float] = []
    for _ in range(lookups):
        near, far = numbers.randrange(entries), entries + numbers.randrange(entries)
        for times, number in ((hit_s, near), (miss_s, far)):
            asked = _near(number) if number < entries else _question(number)
            started = time.perf_counter()
            found = await _find(similar, "tenant/a", f"k{number}", asked)
            times.append(time.perf_counter() - started)
            if found.match is not None:
                # What is far from every stored question has no hit, and what is near has its own.
                assert number < entries, f"a hit for a question at a cosine of {_THRESHOLD} to none"
                assert found.match.entry.request_id == f"r{number}"
                hits += 1
    return hits, hit_s, miss_s


async def _time_namespaces(similar: "SimilarEntries", entries: int, lookups: int) -> Namespaces:
    numbers = random.Random(1)  # noqa: S311  # the order of a benchmark
    stored_s: list[float] = []
    new_s: list[float] = []
    for _ in range(lookups):
        number = numbers.randrange(entries)
        turns = [(stored_s, number), (new_s, entries + number)]
        # In either order, so that what comes second is not always the same.
        numbers.shuffle(turns)
        for times, one in turns:
            asked = _question(one)
            started = time.perf_counter()
            found = await _find(similar, "tenant/b", f"k{one}", asked)
            times.append(time.perf_counter() - started)
            assert found.match is None
    return Namespaces(stored_s, new_s)


def _entry(number: int, namespace: str) -> "PackedEntry":
    packed = packed_entry(f"k{number}-{namespace}", namespace, number)
    return replace(packed, question=_question(number))


def _question(number: int) -> "Question":
    from serving.cache.entry import Question

    text = f"How does one take care of the violin number {number} in a lesson of an hour?"
    return Question(_FINGERPRINT, text, _vector(number))


def _near(number: int) -> "Question":
    """Return a question of the stored one's text, at a cosine of 0.95."""
    from serving.cache.entry import Question

    stored = _question(number)
    other = _vector(-1 - number)
    other = other - (other @ stored.vector) * stored.vector
    other = other / np.linalg.norm(other)
    vector = _COSINE * stored.vector + (1 - _COSINE**2) ** 0.5 * other
    return Question(_FINGERPRINT, stored.text, vector.astype(np.float32))


def _vector(number: int) -> "np.ndarray[Any, np.dtype[np.float32]]":
    """Return a vector that is spread as the shipped encoder's vectors of questions are.

    Those of the project's pairs have a mean of length 0.35 and variances of 62 effective dimensions
    (the square of their sum over the sum of their squares).
    """
    values = np.random.default_rng(abs(number) * 2 + (number < 0)).standard_normal(_DIMENSIONS)
    values = values * _SPREAD
    values[-1] += _MEAN
    unit: np.ndarray[Any, np.dtype[np.float32]] = values / np.linalg.norm(values)
    return unit.astype(np.float32)


def _percentiles(name: str, values: list[float]) -> dict[str, float]:
    return {
        f"{name}_{label}_ms": percentile(values, share) * 1000
        for label, share in (("p50", 0.5), ("p99", 0.99))
    }


def _difference(one: list[float], other: list[float]) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two medians, by 1,000 resamples of pairs."""
    rng = np.random.default_rng(1)
    first, second = np.array(one), np.array(other)
    drawn = [rng.integers(0, len(first), len(first)) for _ in range(1000)]
    differences = [float(np.median(first[n]) - np.median(second[n])) for n in drawn]
    return float(np.quantile(differences, 0.025)), float(np.quantile(differences, 0.975))
