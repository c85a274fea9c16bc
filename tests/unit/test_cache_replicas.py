"""Two gateways over one database, and one that is killed while it writes."""

import asyncio
import multiprocessing
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from pydantic import SecretStr

from serving.cache.entry import PackedEntry
from serving.cache.entry_store import EVERY_ENTRY, EntryStore
from serving.cache.flight import Flight
from serving.cache.service import CacheService
from serving.contracts.cache_settings import CacheSettings
from serving.contracts.task_spec import TaskSpec
from serving.gateway.metrics import Metrics
from serving.ledger.database import Database, database_url

from ..provider.script import Reply
from ..provider.server import ProviderServer
from .authenticated import opened
from .cache_kit import Cached, cached, packed, state_of, text_of
from .frontier_kit import frontier, settings
from .patience import GUARD_S
from .scripted import Server


@pytest.fixture
def databases(ledger_url: SecretStr | None, state: Path) -> Iterator[tuple[Database, Database]]:
    one = opened(ledger_url, state)
    other = Database(database_url(ledger_url, state))
    yield one, other
    one.close()
    other.close()


@dataclass(frozen=True, slots=True)
class Replicas:
    one: Cached
    other: Cached


@pytest.fixture
async def replicas(
    specs: dict[str, TaskSpec], databases: tuple[Database, Database], provider: ProviderServer
) -> AsyncIterator[Replicas]:
    provider.script.answer = lambda seen: Reply(f"Answer {len(provider.script.seen)}.")
    one, other = databases
    async with frontier(settings(provider)) as stack:
        first = await Server(specs, frontier=stack).ready()
        second = await Server(specs, frontier=stack).ready()
        async with cached(first, one) as left, cached(second, other) as right:
            yield Replicas(left, right)


async def becomes(found: Cached, state: str, text: str) -> Any:
    """Look a chat up, without storing, until the cache does so; fail after GUARD_S."""
    headers = {"x-narrowgate-cache": "no-store"}
    until_s = time.monotonic() + GUARD_S
    while True:
        response = await found.chat(text, headers=headers)
        if state_of(response) == state:
            return response
        # The last look counts however long a busy machine took for it.
        assert time.monotonic() < until_s, state
        await asyncio.sleep(0.02)


async def test_an_entry_of_one_replica_is_found_by_the_other(replicas: Replicas) -> None:
    made = await replicas.one.chat("q")
    hit = await becomes(replicas.other, "hit", "q")
    assert text_of(hit) == text_of(made)


@pytest.mark.parametrize("how", ["entry", "namespace", "feedback", "admin"])
async def test_a_deletion_holds_on_both(replicas: Replicas, how: str) -> None:
    await replicas.one.chat("q")
    hit = await becomes(replicas.other, "hit", "q")
    entry = hit.headers["x-narrowgate-cache-entry"]
    client = replicas.other.server.client
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
    await becomes(replicas.one, "miss", "q")
    await becomes(replicas.other, "miss", "q")


async def test_a_refresh_by_one_replica_holds_on_both(replicas: Replicas) -> None:
    await replicas.one.chat("q")
    await replicas.one.entries()
    newer = await replicas.other.chat("q", headers={"x-narrowgate-cache": "refresh"})
    await replicas.other.entries()
    assert text_of(await becomes(replicas.one, "hit", "q")) == text_of(newer)


async def test_replicas_that_store_one_key_at_once_keep_one_entry(replicas: Replicas) -> None:
    await asyncio.gather(
        *(found.chat(f"q{n}") for n in range(4) for found in (replicas.one, replicas.other))
    )
    await replicas.one.entries()
    assert len(await replicas.other.entries()) == 4


def write_until_killed(url: SecretStr | None, state: Path, told: Any) -> None:
    """Store entries in a process of its own, and tell the number of each that is written."""

    async def run() -> None:
        store = EntryStore(Database(database_url(url, state)))
        service = CacheService(store, CacheSettings(), Metrics().cache)
        watch = asyncio.create_task(service.watch())
        for number in range(100_000):
            one: PackedEntry = packed(number)
            service.store(one, Flight(one.entry.key))
            await service._writer.flush()
            told.send(number)
        watch.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("turn", range(3))
async def test_a_kill_at_any_time_loses_at_most_the_entry_that_is_written(
    ledger_url: SecretStr | None, state: Path, turn: int
) -> None:
    # Each run kills elsewhere: between two entries, in a transaction, before its commit.
    random = Random()  # noqa: S311  # when a test kills
    entries, delay_s = random.randrange(1, 60), random.random() * 0.03
    database = opened(ledger_url, state)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=write_until_killed, args=(ledger_url, state, sender))
    process.start()
    sender.close()
    last = -1
    while last < entries:
        assert await asyncio.to_thread(receiver.poll, 60)
        last = receiver.recv()
    await asyncio.sleep(delay_s)
    process.kill()
    await asyncio.to_thread(process.join, 60)
    assert process.exitcode == -signal.SIGKILL
    while receiver.poll():
        try:
            last = receiver.recv()
        except EOFError:
            break
    store = EntryStore(database)
    kept = {row["id"] for row in store.listed(EVERY_ENTRY, most=100_000)}
    assert {f"e{number}" for number in range(last + 1)} <= kept
    assert len(kept) <= last + 2
    # Each is whole.
    assert {entry.id for entry in store.entries(EVERY_ENTRY)} == kept
    database.close()
