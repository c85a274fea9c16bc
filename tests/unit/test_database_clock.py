"""A PostgreSQL server's clock that is an hour off: deletions and audits hold all the same."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from serving.contracts.task_spec import TaskSpec
from serving.evidence.store import EvidenceStore
from serving.ledger.database import Database, database_url
from serving.ledger.instances import clock_ahead
from serving.tasks.grant import Grant

from ..provider.server import ProviderServer
from .attested import result
from .authenticated import opened
from .cache_kit import HeldAnswer, age_erasures, cached, state_of
from .database import fresh_postgres
from .evidence_kit import EARLY, EvidenceServer, audit, defined
from .frontier_kit import frontier, settings
from .scripted import Server

HOUR = timedelta(hours=1)


@pytest.fixture(params=[HOUR, -HOUR], ids=["ahead", "behind"])
def ahead(request: pytest.FixtureRequest) -> timedelta:
    found: timedelta = request.param
    return found


@pytest.fixture
def off_url(postgres: str, tmp_path: Path, ahead: timedelta) -> SecretStr:
    """A database whose clock is off: a function of its own goes before the server's."""
    name = f"t{uuid4().hex}"
    url = fresh_postgres(postgres, name, has_tables=True)
    database = Database(database_url(url, tmp_path))
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(
            "CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS "
            f"$$ SELECT pg_catalog.clock_timestamp() + interval '{ahead.total_seconds()} s' $$"
        ))  # fmt: skip
        connection.execute(text(f"ALTER DATABASE {name} SET search_path = public, pg_catalog"))
    database.close()
    return url


async def test_a_cached_answer_is_kept_or_left_out_as_with_equal_clocks(
    specs: dict[str, TaskSpec],
    state: Path,
    off_url: SecretStr,
    ahead: timedelta,
    provider: ProviderServer,
) -> None:
    held = provider.script.answer = HeldAnswer()
    database = opened(off_url, state)
    with database.read() as connection:
        assert abs(clock_ahead(connection) - ahead) < timedelta(minutes=1)
    async with frontier(settings(provider)) as stack:
        server = await Server(specs, frontier=stack).ready()
        async with cached(server, database) as found:
            request = asyncio.create_task(found.chat(user="a person"))
            await held.wait_asked()
            done = await found.server.client.delete("/v1/admin/cache?end_user=a%20person")
            assert done.status_code == 200
            held.release()
            assert state_of(await request) == "miss"
            assert await found.entries() == []
            found.service.flights.retire_answered()
            await asyncio.to_thread(age_erasures, database)
            assert state_of(await found.chat(user="a person")) == "miss"
            assert len(await found.entries()) == 1
    database.close()


async def test_an_audit_that_runs_during_a_deletion_does_not_come_back(
    specs: dict[str, TaskSpec], state: Path, off_url: SecretStr
) -> None:
    database = opened(off_url, state)
    grants = {"topic": Grant(result(specs["topic"]), "sha256:abc", None)}
    early = EARLY.model_copy(update={"high_rate": 1.0})
    found = EvidenceServer(specs, database, grants, early, lambda call: '{"label": "World"}')
    await found.ready()
    for number in range(3):
        assert (await found.ask(f"input {number}")).status_code == 200
    deleted = await found.server.client.delete("/v1/admin/evidence?tenant=default")
    assert deleted.status_code == 200
    await found.settle()
    assert found.audits() == []
    # What comes later leaves evidence.
    found.now = datetime.now(UTC) + timedelta(minutes=1)
    await found.ask("a later input")
    await found.settle()
    assert len(found.audits()) == 1
    database.close()


def test_an_audit_that_runs_is_not_taken_for_one_that_a_crash_has_ended(
    state: Path, off_url: SecretStr
) -> None:
    database = opened(off_url, state)
    store = EvidenceStore(database)
    store.register([defined()])
    now = datetime.now(UTC)
    drawn = [audit("c1", n, drawn_at=now - timedelta(minutes=20 * n)) for n in (0, 1)]
    store.draw(drawn)
    assert [row.input for row in store.missed(timedelta(minutes=10))] == ["i1"]
    database.close()
