"""Questions of two tenants, two gateways over one database, encrypted rows, and a kill."""

import asyncio
import multiprocessing
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from sqlalchemy import select

from serving.cache.entry import Question
from serving.cache.entry_store import EVERY_ENTRY, EntryFilter, EntryStore
from serving.cache.flight import Flight
from serving.cache.question_store import Asked, QuestionStore
from serving.cache.schema import cache_entries, cache_questions
from serving.cache.service import CacheService
from serving.cache.similar import SimilarEntries, SimilarFound
from serving.cache.sketched_vectors import MOST_COMPARED
from serving.cache.vector_index import Partition
from serving.contracts.cache_settings import CacheSettings
from serving.contracts.errors import LedgerUnavailable
from serving.contracts.task_spec import TaskSpec
from serving.evidence.heads.cipher import VectorCipher
from serving.gateway.metrics import Metrics
from serving.ledger import erasures
from serving.ledger.database import Database, database_url

from ..provider.server import ProviderServer
from .authenticated import KeyedServer, opened
from .cache_kit import NOW, packed, state_of, text_of
from .chat_kit import CHAT, chat_body
from .database import insist
from .frontier_kit import OPENAI, frontier, settings
from .patience import GUARD_S
from .scripted import Server
from .similar_kit import OTHER, PAIR, Model, SimilarServer, similar

ENTRY = "x-narrowgate-cache-entry"
DIMENSIONS = 8
PLACE = Partition("tenant/acme", "f" * 64)


async def embed(text: str) -> Any:
    """Return a vector by the noun alone: to a cosine, all questions about an egg are the same."""
    vector = np.zeros(384, np.float32)
    vector[0 if "egg" in text else 1 + len(text) % 300] = 1.0
    return vector


@pytest.fixture(autouse=True)
def one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gateways and PostgreSQL have one clock here: what is asked after a deletion is stored."""
    monkeypatch.setattr(erasures, "_SKEW", timedelta(0))


@pytest.fixture
def model(provider: ProviderServer) -> Model:
    found = Model()
    provider.script.answer = found
    return found


@pytest.fixture
def databases(ledger_url: SecretStr | None, state: Path) -> Iterator[tuple[Database, Database]]:
    one = opened(ledger_url, state)
    other = Database(database_url(ledger_url, state))
    yield one, other
    one.close()
    other.close()


@dataclass(frozen=True, slots=True)
class Replicas:
    one: SimilarServer
    other: SimilarServer


@pytest.fixture
async def replicas(
    specs: dict[str, TaskSpec], databases: tuple[Database, Database], provider: ProviderServer,
    model: Model,
) -> AsyncIterator[Replicas]:  # fmt: skip
    async with AsyncExitStack() as stack:
        providers = await stack.enter_async_context(frontier(settings(provider)))
        made = []
        for database in databases:
            server = await Server(specs, frontier=providers).ready()
            gateway = similar(server, database, embed, reference=None, semantic="on")
            made.append(await stack.enter_async_context(gateway))
        yield Replicas(*made)


async def becomes(found: SimilarServer, state: str, text: str) -> Any:
    """Look a chat up, without storing, until the cache does so; fail after GUARD_S."""
    until_s = time.monotonic() + GUARD_S
    while True:
        response = await found.cached.chat(text, headers={"x-narrowgate-cache": "no-store"})
        if state_of(response) == state:
            return response
        # The last look counts however long a busy machine took for it.
        assert time.monotonic() < until_s, state
        await asyncio.sleep(0.02)


async def test_a_question_of_one_replica_is_found_by_the_other(replicas: Replicas) -> None:
    # The other one has loaded the partition before there is anything in it.
    await becomes(replicas.other, "miss", PAIR[1])
    made = await replicas.one.cached.chat(PAIR[0])
    hit = await becomes(replicas.other, "hit", PAIR[1])
    assert text_of(hit) == text_of(made)
    assert hit.json()["narrowgate"]["cache"]["kind"] == "semantic"


@pytest.mark.parametrize("how", ["entry", "namespace", "feedback", "admin"])
async def test_a_deletion_holds_on_both(replicas: Replicas, how: str) -> None:
    await replicas.one.cached.chat(PAIR[0])
    entry = (await becomes(replicas.other, "hit", PAIR[1])).headers[ENTRY]
    await becomes(replicas.one, "hit", PAIR[1])
    client = replicas.other.cached.server.client
    match how:
        case "entry":
            gone = await client.delete(f"/v1/cache/entries/{entry}")
        case "namespace":
            gone = await client.delete("/v1/cache", params={"namespace": "default"})
        case "feedback":
            gone = await client.post("/v1/cache/feedback", json={"id": entry, "good": False})
        case _:
            gone = await client.delete("/v1/admin/cache", params={"tenant": "default"})
    assert gone.json()["deleted"] == 1
    # At once: each hit reads the entry.
    for found in (replicas.one, replicas.other):
        headers = {"x-narrowgate-cache": "no-store"}
        assert state_of(await found.cached.chat(PAIR[1], headers=headers)) == "miss"


async def test_two_tenants_repeat_paraphrase_and_contradict(
    specs: dict[str, TaskSpec], databases: tuple[Database, Database], provider: ProviderServer,
    model: Model,
) -> None:  # fmt: skip
    keyed = KeyedServer(specs, databases[0])
    async with frontier(settings(provider)) as stack:
        server = await Server(specs, frontier=stack, access=keyed.access).ready()
        keys = {name: await keyed.tenant(name) for name in ("acme", "globex")}
        async with similar(server, databases[0], embed, reference=None, semantic="on") as found:

            async def ask(tenant: str, text: str, **more: Any) -> tuple[str, str]:
                response = await server.post(
                    CHAT, json=chat_body(OPENAI, text, **more),
                    headers={"authorization": f"Bearer {keys[tenant]}"},
                )  # fmt: skip
                answer = (state_of(response), text_of(response))
                await found.settle()
                return answer

            for streamed in (False, True):
                for one, other in permutations(keys):
                    await found.cached.service.delete(EVERY_ENTRY)
                    first = await ask(one, PAIR[0], stream=streamed)
                    assert first == ("miss", f"About: {PAIR[0]}")
                    # Repeated and paraphrased by the same tenant.
                    assert await ask(one, PAIR[0], stream=streamed) == ("hit", first[1])
                    assert await ask(one, PAIR[1], stream=not streamed) == ("hit", first[1])
                    # Contradicted.
                    for text in ("How do I not boil an egg?", "How do I boil 9 eggs?", OTHER):
                        assert await ask(one, text) == ("miss", f"About: {text}")
                    # Another tenant's.
                    assert await ask(other, PAIR[1]) == ("miss", f"About: {PAIR[1]}")
                    assert await ask(other, PAIR[0]) == ("hit", f"About: {PAIR[1]}")


async def test_questions_are_unreadable_without_the_key(
    databases: tuple[Database, Database],
) -> None:
    cipher = VectorCipher([b"k" * 32])
    store = EntryStore(databases[0], cipher)
    question = Question(PLACE.fingerprint, "MARKER question", _vector(1))
    store.write([packed(1, question=question)])
    with databases[1].read() as connection:
        (row,) = connection.execute(select(cache_questions)).all()
    assert b"MARKER" not in row.content
    assert question.vector.tobytes() not in row.content
    (read,) = QuestionStore(store).rows_after(PLACE, 0)
    assert read.vector is not None
    assert (read.vector == question.vector).all()
    with QuestionStore(store).read() as reader:
        assert reader.asked(["e1"])["e1"].question == "MARKER question"
    for other in (None, VectorCipher([b"x" * 32])):
        blind = QuestionStore(EntryStore(databases[1], other))
        # As if it were deleted.
        assert [one.vector for one in blind.rows_after(PLACE, 0)] == [None]
        with blind.read() as reader:
            assert reader.asked(["e1"]) == {}


def alias(store: QuestionStore, name: str) -> Asked | None:
    with store.read() as reader:
        return reader.alias(name * 64)


async def test_an_entrys_deletion_takes_its_question_and_aliases_along(
    databases: tuple[Database, Database],
) -> None:
    entries = EntryStore(databases[0])
    store = QuestionStore(entries)
    entries.write([packed(1, question=Question(PLACE.fingerprint, "q", _vector(1)))])
    store.add_alias("a" * 64, "e1", 0.97, "audit", packed(1).entry.created_at)
    found = alias(store, "a")
    assert found is not None
    assert (found.entry.id, found.similarity) == ("e1", 0.97)
    # Of an entry that is gone there is no alias.
    store.add_alias("b" * 64, "e9", 0.97, "audit", packed(1).entry.created_at)
    assert alias(store, "b") is None
    entries.delete(EVERY_ENTRY)
    assert alias(store, "a") is None
    assert store.count(PLACE) == 0


async def test_an_index_forgets_what_was_deleted(databases: tuple[Database, Database]) -> None:
    entries = EntryStore(databases[0])
    found = SimilarEntries(QuestionStore(entries), DIMENSIONS, GUARD_S)
    question = Question(PLACE.fingerprint, "How do I boil an egg?", _vector(0))
    near = [replace(question, vector=_vector(0)) for _ in range(100)]
    entries.write([packed(number, question=one) for number, one in enumerate(near)])

    assert (await look(found, PLACE, question)).match is not None
    entries.delete(EVERY_ENTRY)
    assert (await look(found, PLACE, question)).match is None
    found.reconcile()
    assert found._indexes.size(PLACE) == 0
    entries.write([packed(200, question=question)])
    match = (await look(found, PLACE, question)).match
    assert match is not None
    assert match.entry.id == "e200"


async def test_a_flood_of_near_equal_questions_is_bounded_and_leaves_others_alone(
    databases: tuple[Database, Database],
) -> None:
    entries = EntryStore(databases[0])
    found = SimilarEntries(QuestionStore(entries), DIMENSIONS, GUARD_S)
    centre, random = _vector(1), np.random.default_rng(1)

    def near() -> Any:
        vector = centre + 0.05 * random.standard_normal(DIMENSIONS).astype(np.float32)
        return vector / np.linalg.norm(vector)

    other = Partition("tenant/globex", PLACE.fingerprint)
    theirs = Question(PLACE.fingerprint, "How do I boil an egg?", centre)
    entries.write([packed(0, question=theirs, namespace=other.namespace, tenant="globex")])

    def write_flood() -> None:
        for start in range(1, 5001, 500):
            flood = [
                packed(n, question=Question(PLACE.fingerprint, f"How do I boil egg {n}?", near()))
                for n in range(start, start + 500)
            ]
            entries.write(flood)

    await asyncio.to_thread(write_flood)

    asked = Question(PLACE.fingerprint, "How do I boil egg 77777?", near())
    flooded = await look(found, PLACE, asked, 0.9)
    # However many are near: a few are compared in full, and eight by the guards.
    assert (flooded.match, set(flooded.refusals)) == (None, {"numbers"})
    assert len(flooded.refusals) == 8
    index = found._indexes._partitions[PLACE]
    assert len(index._vectors._near(asked.vector, 0.9)) == MOST_COMPARED
    # The others' index is another one.
    match = (await look(found, other, theirs, 0.9)).match
    assert match is not None
    assert match.entry.id == "e0"
    assert found._indexes.size(other) == 1
    # The limit is the namespace's own, and the index follows it.
    await asyncio.to_thread(entries.sweep, NOW, CacheSettings(max_entries=500))
    await asyncio.to_thread(found.reconcile)
    assert found._indexes.size(PLACE) == entries_of(entries, PLACE.namespace) == 500
    assert entries_of(entries, other.namespace) == 1


async def look(
    found: SimilarEntries, place: Partition, question: Question, threshold: float = 0.95
) -> SimilarFound:
    """Search until the index is loaded: before, each search is a miss."""
    until_s = time.monotonic() + GUARD_S
    while True:
        result = await found.find("k" * 64, place.namespace, question, threshold, lambda _: True)
        assert result is not None
        if not result.is_loading:
            return result
        assert time.monotonic() < until_s
        await asyncio.sleep(0.02)


def entries_of(store: EntryStore, namespace: str) -> int:
    return store.sizes(EntryFilter(namespace=namespace))[namespace].entries


async def test_an_index_that_is_being_loaded_is_a_miss_and_not_waited_for(
    databases: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = EntryStore(databases[0])
    store = QuestionStore(entries)
    question = Question(PLACE.fingerprint, "How do I boil an egg?", _vector(0))
    entries.write([packed(1, question=question)])
    found = SimilarEntries(store, DIMENSIONS, GUARD_S)
    rows_after = store.rows_after

    def slow(*arguments: Any) -> Any:
        time.sleep(0.6)
        return rows_after(*arguments)

    monkeypatch.setattr(store, "rows_after", slow)

    result = await found.find("k" * 64, PLACE.namespace, question, 0.95, lambda entry: True)
    assert result is not None
    assert result.is_loading
    monkeypatch.setattr(store, "rows_after", rows_after)
    assert (await look(found, PLACE, question)).match is not None


async def test_a_load_that_fails_is_tried_again(
    databases: tuple[Database, Database], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = EntryStore(databases[0])
    store = QuestionStore(entries)
    question = Question(PLACE.fingerprint, "How do I boil an egg?", _vector(0))
    entries.write([packed(1, question=question)])
    found = SimilarEntries(store, DIMENSIONS, GUARD_S)
    rows_after = store.rows_after

    def fail(*_: Any) -> Any:
        raise LedgerUnavailable("gone")

    monkeypatch.setattr(store, "rows_after", fail)
    assert await found.find("k", PLACE.namespace, question, 0.95, lambda entry: True) is None
    monkeypatch.setattr(store, "rows_after", rows_after)
    found._paused_until_s = 0.0
    assert (await look(found, PLACE, question)).match is not None


def test_writers_at_one_moment_leave_no_sequence_behind(
    databases: tuple[Database, Database],
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    stores = [EntryStore(database) for database in databases]

    def write(number: int) -> None:
        question = Question(PLACE.fingerprint, f"q{number}", _vector(number))
        insist(lambda: stores[number % 2].write([packed(number, question=question)]))

    seen: list[int] = []
    reader = QuestionStore(stores[0])
    with ThreadPoolExecutor(4) as threads:
        pending = [threads.submit(write, number) for number in range(40)]
        while not all(one.done() for one in pending):
            seen += [row.sequence for row in reader.rows_after(PLACE, seen[-1] if seen else 0)]
        for one in pending:
            one.result()
    seen += [row.sequence for row in reader.rows_after(PLACE, seen[-1] if seen else 0)]
    # A reader that follows by number misses none.
    assert seen == list(range(1, 41))


def _vector(number: int) -> Any:
    vector = np.zeros(DIMENSIONS, np.float32)
    vector[number % DIMENSIONS] = 1.0
    return vector


def write_until_killed(url: SecretStr | None, state: Path, told: Any) -> None:
    """Store entries with questions in a process of its own, and tell each that is written."""

    async def run() -> None:
        store = EntryStore(Database(database_url(url, state)))
        service = CacheService(store, CacheSettings(), Metrics().cache)
        for number in range(100_000):
            question = Question(PLACE.fingerprint, PAIR[0], _vector(number))
            one = packed(number, question=question)
            service.store(one, Flight(one.entry.key))
            await service.written()
            told.send(number)

    asyncio.run(run())


async def test_a_kill_leaves_every_entry_with_its_question(
    ledger_url: SecretStr | None, state: Path
) -> None:
    database = opened(ledger_url, state)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=write_until_killed, args=(ledger_url, state, sender))
    process.start()
    sender.close()
    last = -1
    while last < 20:
        assert await asyncio.to_thread(receiver.poll, 60)
        last = receiver.recv()
    process.kill()
    await asyncio.to_thread(process.join, 60)
    assert process.exitcode == -signal.SIGKILL
    with database.read() as connection:
        kept = set(connection.execute(select(cache_entries.c.id)).scalars())
        asked = set(connection.execute(select(cache_questions.c.entry)).scalars())
    assert kept == asked
    assert {f"e{number}" for number in range(last + 1)} <= kept
    found = SimilarEntries(QuestionStore(EntryStore(database)), DIMENSIONS, GUARD_S)
    question = Question(PLACE.fingerprint, PAIR[0], _vector(3))
    assert (await look(found, PLACE, question)).match is not None
    database.close()
