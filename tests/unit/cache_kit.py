"""The HTTP application with a cache over a real database, and a provider's server behind it."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from sqlalchemy import select, update

from serving.cache.entry import AnswerOrigin, Content, Entry, PackedEntry, Question
from serving.cache.entry_store import EVERY_ENTRY, EntryStore
from serving.cache.schema import cache_erasures
from serving.cache.service import CacheService
from serving.contracts.answer import Usage
from serving.contracts.cache_settings import CacheSettings
from serving.evidence.heads.cipher import VectorCipher
from serving.evidence.rulings import Evidence
from serving.ledger.database import Database
from serving.pipeline.cache_access import CacheAccess
from serving.pipeline.in_force import InForce
from serving.pipeline.reading_claims import ReadingClaims

from ..provider.script import Reply, Seen
from .chat_kit import CHAT, chat_body
from .frontier_kit import OPENAI
from .patience import GUARD_S
from .scripted import Server

POLICY = "p" * 64
NOW = datetime(2026, 11, 2, 12, tzinfo=UTC)
USAGE = Usage(uncached_input_tokens=20, output_tokens=4)


class HeldAnswer:
    """A provider's answer, for ProviderScript.answer: it is held until it is released."""

    def __init__(self) -> None:
        self._asked, self._released = threading.Event(), threading.Event()

    def __call__(self, seen: Seen) -> Reply:
        self._asked.set()
        assert self._released.wait(GUARD_S)
        return Reply("An answer.")

    async def wait_asked(self) -> None:
        """Wait until a request has arrived."""
        await asyncio.to_thread(self._asked.wait, GUARD_S)

    def release(self) -> None:
        """Let the answers go."""
        self._released.set()

    def hold(self) -> None:
        """Hold the next answer again."""
        self._asked.clear()
        self._released.clear()


def age_erasures(database: Database) -> None:
    """Move deletions 2 s back: what arrives within a second of one is left out. Blocking."""
    table = cache_erasures.c
    with database.begin() as connection:
        for name, at in connection.execute(select(table.id, table.at)).all():
            connection.execute(
                update(cache_erasures).where(table.id == name).values(at=at - timedelta(seconds=2))
            )


class Now:
    """The time, moved by hand."""

    def __init__(self) -> None:
        self.at = NOW

    def __call__(self) -> datetime:
        return self.at

    def later(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


class Cached:
    """A server with a cache. store: reads the same database with its own connections."""

    def __init__(
        self,
        server: Server,
        database: Database,
        settings: CacheSettings,
        evidence: Evidence | None = None,
        cipher: VectorCipher | None = None,
        readings: ReadingClaims | None = None,
    ) -> None:
        self.server = server
        self.now = Now()
        self.store = EntryStore(database, cipher)
        # A lookup that a busy machine makes slow would be a miss.
        settings = settings.model_copy(update={"lookup_timeout_s": 10.0})
        self.service = CacheService(self.store, settings, server.context.metrics.cache, self.now)
        in_force = InForce(server.context.models.tasks, evidence, readings)
        path = server.context.path
        access = CacheAccess(self.service, path.policy.specs, in_force, POLICY)
        # The parts of a wired server that these tests replace.
        object.__setattr__(server.context, "path", replace(path, cache=access))
        object.__setattr__(server.context, "cache", self.service)

    async def chat(
        self, text: str = "What is a narrow gate?", model: str = OPENAI, **more: Any
    ) -> httpx.Response:
        headers = more.pop("headers", {})
        return await self.server.post(CHAT, json=chat_body(model, text, **more), headers=headers)

    async def task(self, name: str, body: Any, **headers: str) -> httpx.Response:
        found = {key.replace("_", "-"): value for key, value in headers.items()}
        return await self.server.post(f"/v1/tasks/{name}", json=body, headers=found)

    async def entries(self) -> list[dict[str, Any]]:
        """Return what the database holds, once everything pending is written."""
        return await self.service.read(lambda store: store.listed(EVERY_ENTRY))

    def metric(self, name: str, **labels: str) -> float:
        value = self.server.context.metrics.registry.get_sample_value(name, labels)
        return 0.0 if value is None else value


@asynccontextmanager
async def cached(
    server: Server,
    database: Database,
    evidence: Evidence | None = None,
    cipher: VectorCipher | None = None,
    readings: ReadingClaims | None = None,
    **settings: Any,
) -> AsyncIterator[Cached]:
    """Give a server a cache that writes behind its requests."""
    found = Cached(server, database, CacheSettings(**settings), evidence, cipher, readings)
    watch = asyncio.create_task(found.service.watch())
    try:
        yield found
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


def state_of(response: httpx.Response) -> str:
    """Return what the cache did for a request that was answered."""
    assert response.status_code == 200, response.text
    return str(response.headers["x-narrowgate-cache"])


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """Return a stream's chunks. The final event must be there."""
    lines = [line for line in response.text.splitlines() if line]
    assert lines[-1] == "data: [DONE]", response.text
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def text_of(response: httpx.Response) -> str:
    """Return the text of a chat's answer, whole or streamed."""
    if response.headers["content-type"].startswith("text/event-stream"):
        deltas = [c["delta"] for event in events_of(response) for c in event["choices"]]
        return "".join(delta.get("content") or "" for delta in deltas)
    return str(response.json()["choices"][0]["message"]["content"])


def entry(number: int = 0, **changes: Any) -> Entry:
    """Return a chat's entry of the tenant acme."""
    text = changes.pop("text", f"answer {number}")
    document = {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": {}}
    found = Entry(
        key=f"{number:064x}", namespace="tenant/acme", tenant="acme", request_id=f"r{number}",
        kind="chat", origin=AnswerOrigin("frontier", OPENAI), content=Content(document, USAGE),
        created_at=NOW, expires_at=NOW + timedelta(hours=1), id=f"e{number}",
    )  # fmt: skip
    return replace(found, **changes)


def packed(
    number: int = 0,
    question: Question | None = None,
    arrived_at: datetime | None = None,
    **changes: Any,
) -> PackedEntry:
    arrived_at = arrived_at or datetime.now(UTC)
    return PackedEntry.of(entry(number, **changes), arrived_at, question)
