"""A whole gateway with the batch lane on a socket, without Ray and without local models."""

# ruff: noqa: ASYNC110  # it waits for what another process says

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI
from openai.types import Batch
from pydantic import SecretStr

from serving import app
from serving.contracts.ledger import Tenant
from serving.contracts.settings import Settings
from serving.ledger.access.keys import create_key
from serving.ledger.access.tenants import create_tenant
from serving.ledger.database import Database
from serving.tasks.catalog import load_specs

from ..provider.server import ProviderServer
from .authenticated import listening, opened
from .frontier_kit import KEY
from .made_encoder import place_encoder, share_encoder

MODEL = "openai/gpt-4.1"
FINAL = ("completed", "failed", "expired", "cancelled")
LIMIT_S = 60.0


@dataclass(frozen=True)
class Running:
    """A gateway that runs. clients: the SDK with each tenant's key, by tenant."""

    url: str
    clients: dict[str, AsyncOpenAI]
    database: Database
    gateway: app.Gateway

    @property
    def acme(self) -> AsyncOpenAI:
        return self.clients["acme"]

    async def submit(
        self, data: bytes, tenant: str = "acme", endpoint: Any = "/v1/chat/completions",
        **more: Any,
    ) -> Batch:  # fmt: skip
        """Upload a file and create its batch."""
        client = self.clients[tenant]
        file = await client.files.create(file=("in.jsonl", data), purpose="batch")
        return await client.batches.create(
            input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more
        )

    async def ended(self, batch: Batch, tenant: str = "acme") -> Batch:
        """Poll a batch until it has ended."""
        async with asyncio.timeout(LIMIT_S):
            while batch.status not in FINAL:
                await asyncio.sleep(0.05)
                batch = await self.clients[tenant].batches.retrieve(batch.id)
        return batch

    async def results(self, batch: Batch, tenant: str = "acme") -> dict[str, dict[str, Any]]:
        """Return the lines of both result files by custom_id; each must be there once."""
        found: dict[str, dict[str, Any]] = {}
        for file in (batch.output_file_id, batch.error_file_id):
            if file is None:
                continue
            content = await self.clients[tenant].files.content(file)
            for text in content.text.splitlines():
                line = json.loads(text)
                assert line["custom_id"] not in found, "a custom_id is there twice"
                found[line["custom_id"]] = line
        return found


def settings_of(
    provider: ProviderServer,
    state: Path,
    url: SecretStr | None,
    *,
    has_batches: bool = False,
    **more: Any,
) -> Settings:
    tiers = {tier: [MODEL] for tier in ("economy", "standard", "frontier")}
    usual = {"max_retries": 0, "connect_timeout_s": 30.0, "first_byte_timeout_s": 20.0}
    return Settings.model_validate({
        "models": [], "state": str(state),
        "ledger": {} if url is None else {"url": url.get_secret_value()},
        "frontier": {
            "providers": {"openai": {
                "api": "openai", "base_url": f"{provider.url}/v1", **usual, "batch": has_batches,
            }},
            "tiers": tiers,
        },
        "evidence": {"enabled": False}, "cache": {"enabled": False},
        "auth": {"mode": "keys"}, **more,
    })  # fmt: skip


@asynccontextmanager
async def running(
    provider: ProviderServer,
    state: Path,
    url: SecretStr | None,
    *,
    again: bool = False,
    **more: Any,
) -> AsyncIterator[Running]:
    """Run a gateway with the tenants acme and globex. again: they exist already."""
    settings = settings_of(provider, state, url, **more)
    database = await asyncio.to_thread(opened, url, state)
    await asyncio.to_thread(place_encoder, state)
    keys = {}
    for tenant in ("acme", "globex"):
        if not again:
            await asyncio.to_thread(create_tenant, database, Tenant(tenant))
        key = await asyncio.to_thread(create_key, database, tenant)
        keys[tenant] = key.text.get_secret_value()
    with pytest.MonkeyPatch.context() as patch:
        made = [database]

        def kept(*arguments: Any, **more: Any) -> Database:
            made.append(Database(*arguments, **more))
            return made[-1]

        patch.setattr(app, "Database", kept)
        share_encoder(patch)
        gateway = app.Gateway(settings, dict(load_specs(None)), settings.state / "models.json")
    async with listening(gateway.__serve_build_asgi_app__()) as address:
        clients = {
            tenant: AsyncOpenAI(api_key=key, base_url=f"{address}/v1", max_retries=0)
            for tenant, key in keys.items()
        }
        async with httpx.AsyncClient(timeout=LIMIT_S) as plain, asyncio.timeout(LIMIT_S):
            # Keys are read behind the start, and are no part of readiness.
            admitted = {"authorization": f"Bearer {keys['acme']}"}
            for path in ("/readyz", "/v1/usage"):
                while (await plain.get(address + path, headers=admitted)).status_code != 200:
                    await asyncio.sleep(0.05)
        try:
            yield Running(address, clients, database, gateway)
        finally:
            for client in clients.values():
                await client.close()
    # A process that ends closes its connections.
    for one in made:
        one.close()


KEY_VARIABLE, KEY_VALUE = "OPENAI_API_KEY", KEY
