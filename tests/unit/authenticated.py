"""The HTTP application with keys: a real directory over a real database."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from serving.contracts.ledger import Tenant
from serving.contracts.ledger_settings import AuthSettings
from serving.contracts.task_spec import TaskSpec
from serving.gateway.access import Access
from serving.ledger.access.directory import Directory
from serving.ledger.access.keys import create_key, revoke_key
from serving.ledger.access.tenants import create_tenant, update_tenant
from serving.ledger.database import Database, database_url

from .database import make_tables
from .scripted import Server

TASK = "/v1/tasks/sentiment"
BODY = {"input": "Fine."}


class Clock:
    """Monotonic seconds, moved by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class KeyedServer:
    """A server that asks for keys, with the ledger behind it."""

    def __init__(
        self, specs: dict[str, TaskSpec], database: Database, replicas: int = 1, **auth: Any
    ) -> None:
        self.database = database
        self.clock = Clock()
        settings = AuthSettings(**auth)
        self.directory = Directory(database, settings, self.clock)
        self.access = Access.of(self.directory, settings, replicas)
        self.server = Server(specs, access=self.access)

    async def tenant(self, name: str, **limits: Decimal | int | None) -> str:
        """Make a tenant and return a key of it."""
        create_tenant(self.database, Tenant(name, **limits))  # type: ignore[arg-type]
        return await self.key(name)

    async def limit(self, name: str, **limits: Decimal | int | None) -> None:
        update_tenant(self.database, name, limits)
        await self.directory.refresh()

    async def key(self, tenant: str | None) -> str:
        text = create_key(self.database, tenant).text.get_secret_value()
        await self.directory.refresh()
        return text

    async def revoke(self, key: str) -> None:
        revoke_key(self.database, key.split("-")[1])
        await self.directory.refresh()

    async def ask(self, key: str | None, path: str = TASK, **kwargs: Any) -> httpx.Response:
        """Send one input as that key's owner."""
        headers = {"authorization": f"Bearer {key}"} if key is not None else {}
        return await self.server.post(path, json=BODY, headers=headers, **kwargs)

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        return await self.server.client.get(path, headers=dict(headers or {}))


def opened(url: Any, state: Path) -> Database:
    """Return the ledger's database with its tables."""
    database = Database(database_url(url, state))
    make_tables(database)
    return database


@asynccontextmanager
async def listening(app: Any) -> AsyncIterator[str]:
    """Serve an application on a real socket, lifespan and all; yield its URL."""
    config = uvicorn.Config(app, port=0, log_config=None, ws="none", lifespan="on")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    while not server.started:
        assert not running.done()
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await running
