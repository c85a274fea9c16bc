"""What is being made while it is deleted is not stored: over HTTP, two gateways, each filter."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import func, select, update

from serving.cache.entry_store import EntryFilter, EntryStore
from serving.cache.schema import cache_entries, cache_erasures
from serving.contracts.task_spec import TaskSpec
from serving.ledger.database import Database

from ..provider.server import ProviderServer
from .authenticated import opened
from .cache_kit import HeldAnswer, age_erasures, cached, packed, state_of
from .frontier_kit import frontier, settings
from .scripted import Server

USER = {"user": "a person"}


@pytest.fixture
def store(database: Database) -> EntryStore:
    return EntryStore(database)


def stored(store: EntryStore) -> int:
    with store.database.read() as connection:
        return connection.execute(select(func.count()).select_from(cache_entries)).scalar_one()


async def test_an_answer_that_is_being_made_is_not_stored_after_its_deletion(
    specs: dict[str, TaskSpec], state: Path, ledger_url: SecretStr | None, provider: ProviderServer
) -> None:
    held = provider.script.answer = HeldAnswer()
    ours, theirs = opened(ledger_url, state), opened(ledger_url, state)
    async with frontier(settings(provider)) as stack:
        servers = [await Server(specs, frontier=stack).ready() for _ in range(2)]
        async with cached(servers[0], ours) as here, cached(servers[1], theirs) as there:
            for deleting in (here, there):
                held.hold()
                request = asyncio.create_task(here.chat(**USER))
                await held.wait_asked()
                path = "/v1/admin/cache?end_user=a%20person"
                done = await deleting.server.client.delete(path)
                assert done.json() == {"deleted": 0}
                held.release()
                assert state_of(await request) == "miss"
                assert await here.entries() == []
                assert here.metric("narrowgate_cache_deletions_total", because="asked") >= 1
                # Equal requests got the answer for as long as a lookup may take.
                here.service.flights.retire_answered()
            # What arrives later is stored; clocks of PostgreSQL and a gateway may differ by 1 s.
            await asyncio.to_thread(age_erasures, ours)
            assert state_of(await here.chat(**USER)) == "miss"
            assert len(await here.entries()) == 1
            assert state_of(await there.chat(**USER)) == "hit"
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [
        ({}, False),
        ({"tenant": "acme"}, False),
        ({"tenant": "globex"}, True),
        ({"namespace": "tenant/acme", "tenant": "acme"}, False),
        ({"namespace": "tenant/acme", "tenant": "globex"}, True),
        ({"request_id": "r1"}, False),
        ({"request_id": "r2"}, True),
        ({"end_user": "u1"}, False),
        ({"end_user": "u2"}, True),
        ({"tenant": "acme", "end_user": "u1"}, False),
        ({"entry": "another"}, True),
    ],
)
def test_a_deletion_holds_back_the_entries_that_it_names(
    store: EntryStore, given: dict[str, Any], is_kept: bool
) -> None:
    arrived_at = datetime.now(UTC)
    assert store.delete(EntryFilter(**given)) == 0
    late = packed(
        1, arrived_at=arrived_at, namespace="tenant/acme", tenant="acme", request_id="r1",
        end_user="u1",
    )  # fmt: skip
    assert store.write([late, packed(2, arrived_at=datetime.now(UTC) + timedelta(minutes=1))]) == (
        0 if is_kept else 1
    )
    assert stored(store) == (2 if is_kept else 1)


def test_a_deletion_without_an_end_user_leaves_nothing_of_an_entry_without_one(
    store: EntryStore,
) -> None:
    arrived_at = datetime.now(UTC)
    store.delete(EntryFilter(end_user="u1"))
    assert store.write([packed(1, arrived_at=arrived_at, end_user=None)]) == 0
    assert stored(store) == 1


def test_a_deletion_is_forgotten_after_two_days_and_says_nothing_from_the_future(
    store: EntryStore,
) -> None:
    arrived_at = datetime.now(UTC)
    store.delete(EntryFilter())
    table = cache_erasures.c
    for days, is_left in ((1, True), (-1, True), (3, False), (-3, False)):
        with store.database.begin() as connection:
            connection.execute(update(cache_erasures).values(at=arrived_at - timedelta(days=days)))
        # Neither before the request arrived, nor by a clock that was set back since.
        assert store.write([packed(abs(days), arrived_at=arrived_at)]) == 0
        store.delete(EntryFilter(tenant="nobody"))
        with store.database.begin() as connection:
            left = connection.execute(select(table.id).where(table.tenant.is_(None))).all()
            assert bool(left) is is_left
            connection.execute(cache_erasures.delete().where(table.tenant == "nobody"))
        if not is_left:
            store.delete(EntryFilter())
