"""Finds the stored answer to a question of the same meaning. Fails open; one for an event loop.

Searching, guards and the database run in threads of their own, so that neither the event loop nor
lookups by key wait for them.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Protocol, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from serving.cache.entry import Entry, Question
from serving.cache.question_store import Asked, QuestionStore
from serving.cache.semantic import CANDIDATES, Candidate, choose
from serving.cache.vector_index import MOST_PARTITIONS, Neighbour, Partition, VectorIndexes
from serving.contracts.answer import CacheKind
from serving.contracts.errors import LedgerUnavailable

logger = logging.getLogger(__name__)
T = TypeVar("T")

_THREADS = 2
_LOAD_WAIT_S = 0.25
"""A lookup waits so long for an index that is being loaded; then it is a miss."""
_PAUSE_S = 1.0
_RECONCILE_S = 30.0
_ROUNDS = 4
_SPARE = 64
"""Deleted questions that an index may hold besides a tenth of its size."""

SimilarOutcome = Literal["hit", "shadow", "refused", "miss", "loading", "unavailable"]
"""hit: served. shadow: found, and answered by the model all the same. refused: a guard refused all
that was near enough. loading: the index was not in memory yet."""


class SimilarEvents(Protocol):
    """Counts events of lookups by meaning; the gateway's metrics implement it. None may raise."""

    def similar_ineligible(self, reason: str) -> None:
        """A chat was not looked up by meaning."""
        ...

    def similar_looked_up(self, outcome: SimilarOutcome, seconds: float) -> None:
        """A chat was looked up by meaning."""
        ...

    def similar_refused(self, guard: str) -> None:
        """A guard refused a question that was near enough."""
        ...

    def similar_compared(self, kind: str, verdict: str) -> None:
        """A hit was compared with a fresh answer."""
        ...

    def answer_refined(self, route: str, kind: str) -> None:
        """A follow-up repeated or corrected the question of an answer."""
        ...


@dataclass(frozen=True, slots=True)
class SimilarMatch:
    """A stored answer that may be served. question: that it was given to."""

    entry: Entry
    question: str
    similarity: float
    kind: CacheKind


@dataclass(frozen=True, slots=True)
class SimilarFound:
    """What a search found. aside: a match that is suspected. refusals: reasons of the guards."""

    match: SimilarMatch | None = None
    aside: SimilarMatch | None = None
    refusals: tuple[str, ...] = ()
    is_loading: bool = False


class SimilarEntries:
    """Searches questions, and changes the state of their entries. Its watch loads the index.

    timeout_s: longest wait for a search.
    """

    def __init__(self, store: QuestionStore, dimensions: int, timeout_s: float) -> None:
        self._store = store
        self._indexes = VectorIndexes(store, dimensions)
        self._timeout_s = timeout_s
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="similar")
        # One for what a lookup waits for, one for what is loaded at the start.
        self._loader = ThreadPoolExecutor(2, thread_name_prefix="similar-index")
        self._loading: dict[Partition, asyncio.Future[Any]] = {}
        self._paused_until_s = 0.0

    async def watch(self) -> None:
        """Load the newest indexes, then forget what was deleted, until cancelled."""
        try:
            await self._quietly(self._load_newest)
            while True:
                await asyncio.sleep(_RECONCILE_S)
                await self._quietly(self.reconcile)
        finally:
            self._loader.shutdown(wait=False, cancel_futures=True)
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def find(
        self,
        key: str,
        namespace: str,
        question: Question,
        threshold: float,
        is_servable: Callable[[Entry], bool],
    ) -> SimilarFound | None:
        """Return what may answer a question; None where the database did not answer in time.

        is_servable: called in a thread.
        """
        if time.monotonic() < self._paused_until_s:
            return None
        partition = Partition(namespace, question.fingerprint)
        try:
            if not await self._is_loaded(partition):
                return SimilarFound(is_loading=True)
            async with asyncio.timeout(self._timeout_s):
                return await self._run(
                    self._search, key, partition, question, threshold, is_servable
                )
        except (LedgerUnavailable, SQLAlchemyError, TimeoutError) as error:
            self._paused_until_s = time.monotonic() + _PAUSE_S
            logger.warning("cache.similar_unavailable error=%s", type(error).__name__)
            return None

    async def asked(self, entry: str) -> Asked | None:
        """Return an entry with its question; None where there is none that can be read."""
        try:
            return await self._run(self._asked, entry)
        except (LedgerUnavailable, SQLAlchemyError) as error:
            logger.warning("cache.similar_unread error=%s", type(error).__name__)
            return None

    def _asked(self, entry: str) -> Asked | None:
        with self._store.read() as reader:
            return reader.asked([entry]).get(entry)

    async def add_alias(self, key: str, match: SimilarMatch, now: datetime) -> None:
        """Note that an audit accepted a wording."""
        await self._change(
            self._store.add_alias, key, match.entry.id, match.similarity, "audit", now
        )

    async def unlist(self, entry: str) -> None:
        """Let an entry be found by its own key alone."""
        await self._change(self._store.unlist, entry)

    async def set_aside(self, reason: str, entry: str | None, key: str) -> None:
        """Put an entry aside; entry: None where its key names it."""
        await self._change(lambda: self._store.set_aside(reason, entry=entry, key=key))

    async def settle(self, entry: str, *, is_right: bool) -> None:
        """Take an entry back that was put aside, or delete it."""
        if is_right:
            await self._change(lambda: self._store.set_aside(None, entry=entry))
        else:
            await self._change(self._store.drop, entry)

    def reconcile(self) -> None:
        """Forget deleted questions where an index holds many. Blocking."""
        for partition in self._indexes.known():
            size = self._indexes.size(partition)
            if size > 1.1 * self._store.count(partition) + _SPARE:
                self._indexes.keep(partition, self._store.alive(partition))

    def _load_newest(self) -> None:
        # The oldest first: the index keeps those that were searched last.
        for partition in reversed(self._store.newest(MOST_PARTITIONS)):
            self._indexes.follow(partition)

    async def _is_loaded(self, partition: Partition) -> bool:
        if self._indexes.is_complete(partition):
            return True
        loading = self._loading.get(partition)
        if loading is None:
            loop = asyncio.get_running_loop()
            loading = loop.run_in_executor(self._loader, self._indexes.follow, partition)
            self._loading[partition] = loading
            loading.add_done_callback(lambda done: self._loaded(partition, done))
        await asyncio.wait({loading}, timeout=_LOAD_WAIT_S)
        if not loading.done():
            return False
        await loading
        return True

    def _loaded(self, partition: Partition, done: "asyncio.Future[Any]") -> None:
        self._loading.pop(partition, None)
        if not done.cancelled():
            # A lookup that waits gets the error; without one it is nobody's.
            done.exception()

    def _search(
        self,
        key: str,
        partition: Partition,
        question: Question,
        threshold: float,
        is_servable: Callable[[Entry], bool],
    ) -> SimilarFound:
        with self._store.read() as reader:
            known = reader.alias(key)
            if known is not None and known.similarity is not None and is_servable(known.entry):
                return _known(known, known.similarity)
            for _ in range(_ROUNDS):
                near = self._indexes.nearest(
                    partition, question.vector, CANDIDATES, threshold, reader
                )
                asked = reader.asked([one.entry for one in near]) if near else {}
                gone = [one.entry for one in near if one.entry not in asked]
                if not gone:
                    break
                self._indexes.forget(partition, gone)
        return _chosen(question.text, near, asked, threshold, is_servable)

    async def _change(self, change: Callable[..., Any], *arguments: Any) -> None:
        try:
            await self._run(change, *arguments)
        except (LedgerUnavailable, SQLAlchemyError) as error:
            logger.warning("cache.similar_unchanged error=%s", type(error).__name__)

    async def _quietly(self, work: Callable[[], None]) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._loader, work)
        except (LedgerUnavailable, SQLAlchemyError) as error:
            logger.warning("cache.index_not_read error=%s", type(error).__name__)

    async def _run(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)


def _known(asked: Asked, similarity: float) -> SimilarFound:
    match = SimilarMatch(asked.entry, asked.question, similarity, "alias")
    if asked.entry.aside is not None:
        return SimilarFound(aside=match)
    return SimilarFound(match)


def _chosen(
    text: str,
    near: list[Neighbour],
    asked: dict[str, Asked],
    threshold: float,
    is_servable: Callable[[Entry], bool],
) -> SimilarFound:
    candidates = [
        Candidate(
            one.entry,
            asked[one.entry].question,
            one.similarity,
            is_aside=asked[one.entry].entry.aside is not None,
        )
        for one in near
        if one.entry in asked and is_servable(asked[one.entry].entry)
    ]
    choice = choose(text, candidates, threshold)
    found: dict[str, SimilarMatch] = {
        one.entry: SimilarMatch(
            asked[one.entry].entry, asked[one.entry].question, one.similarity, "semantic"
        )
        for one in near
        if one.entry in asked
    }
    reasons = tuple(reason for _, reason in choice.refusals)
    if choice.match is not None:
        return SimilarFound(found[choice.match.entry], None, reasons)
    for entry, reason in choice.refusals:
        if reason == "aside":
            return SimilarFound(None, found[entry], reasons)
    return SimilarFound(None, None, reasons)
