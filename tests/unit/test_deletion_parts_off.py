"""Deletions and ages hold for everything that is stored, whatever feature is switched on now."""

# it waits for what the gateway writes behind its answers

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import Table, func, select, update

from serving.batch.schema import batch_files
from serving.cache import service
from serving.cache.schema import cache_entries
from serving.evidence.heads.schema import head_examples, head_scopes, heads
from serving.ledger.access.keys import create_key
from serving.ledger.database import Database
from serving.ledger.schema import evidence_audits, evidence_pending, evidence_texts

from ..provider.server import ProviderServer
from .audit_gateway import AUDITED, LOCAL_MODELS, labels, serve_scripted
from .batch_gateway import KEY_VALUE, KEY_VARIABLE, Running, running
from .patience import GUARD_S

STORED: tuple[Table, ...] = (evidence_audits, evidence_texts, head_examples, cache_entries)
EVIDENCE: dict[str, Any] = {
    **AUDITED, "heads": True, "keep_texts": 30, "audit": {"mode": "now"}, "enabled": True,
}  # fmt: skip
ON: dict[str, Any] = {"evidence": EVIDENCE, "cache": {"enabled": True}}
LIMIT_S = 40.0


@pytest.fixture(autouse=True)
def provider_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY_VALUE)


def counts(database: Database) -> dict[str, int]:
    with database.read() as connection:
        return {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in STORED
        }


async def store_some(found: Running, **fields: str) -> None:
    """Ask until every table has rows: no claim is opened before the states were read once."""
    for n in range(100):
        await ask(found, f"text {n} about things", **fields)
        await asyncio.sleep(0.05)
        stored = await asyncio.to_thread(counts, found.database)
        if all(stored.values()):
            return
    raise AssertionError(stored)


@asynccontextmanager
async def gateway(
    provider: ProviderServer, state: Path, url: SecretStr | None, settings: Mapping[str, Any],
    *, again: bool = False,
) -> AsyncIterator[Running]:  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        serve_scripted(patch)
        async with running(
            provider, state, url, again=again, models=LOCAL_MODELS, **{**ON, **settings}
        ) as found:
            yield found


async def ask(found: Running, text: str, **fields: str) -> None:
    admitted = {"authorization": f"Bearer {found.acme.api_key}"}
    async with httpx.AsyncClient(base_url=found.url, headers=admitted, timeout=GUARD_S) as client:
        response = await client.post("/v1/tasks/topic", json={"input": text, **fields})
        assert response.status_code == 200, response.text


async def deleted(found: Running, path: str) -> httpx.Response:
    key = await asyncio.to_thread(create_key, found.database, None)
    admitted = {"authorization": f"Bearer {key.text.get_secret_value()}"}
    async with httpx.AsyncClient(base_url=found.url, headers=admitted, timeout=GUARD_S) as client:
        async with asyncio.timeout(LIMIT_S):
            while True:
                response = await client.delete(path)
                if response.status_code != 401:
                    return response
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("off", "which"),
    [
        ("evidence", ""),
        ("evidence", "&end_user=victim"),
        ("heads", ""),
        ("heads", "&end_user=victim"),
        ("cache", ""),
        ("key", "&end_user=victim"),
        ("all", "&end_user=victim"),
    ],
)
async def test_a_deletion_reaches_what_a_part_stored_before_it_was_switched_off(
    provider: ProviderServer, state: Path, monkeypatch: pytest.MonkeyPatch, off: str, which: str
) -> None:
    labels(provider)
    async with gateway(provider, state, None, {}) as found:
        await store_some(found, user="victim")
    settings: dict[str, Any] = {}
    if off in ("evidence", "all"):
        settings["evidence"] = {**EVIDENCE, "enabled": False}
    if off == "heads":
        settings["evidence"] = {**EVIDENCE, "heads": False}
    if off in ("cache", "all"):
        settings["cache"] = {"enabled": False}
    if off == "all":
        settings["batch"] = {"enabled": False}
    if off == "key":
        monkeypatch.delenv(KEY_VARIABLE)
    async with gateway(provider, state, None, settings, again=True) as found:
        done = await deleted(found, f"/v1/admin/evidence?tenant=acme{which}")
        assert done.status_code == 200, done.text
        assert all(done.json().values()), done.json()
        left = counts(found.database)
        with found.database.read() as connection:
            named = connection.execute(
                select(evidence_audits.c.input).where(evidence_audits.c.request_id != "")
            ).all()
        # Of an end user the audits' numbers stay, without what names anyone.
        assert named == []
        assert {name: n for name, n in left.items() if n and name != "evidence_audits"} == {}
        unknown = await deleted(found, "/v1/admin/evidence?tenant=nobody")
        assert unknown.status_code == 404
        assert unknown.json()["error"]["param"] == "tenant"


async def test_what_the_cache_stored_can_be_deleted_once_it_is_off(
    provider: ProviderServer, state: Path
) -> None:
    labels(provider)
    async with gateway(provider, state, None, {}) as found:
        await store_some(found)
    async with gateway(provider, state, None, {"cache": {"enabled": False}}, again=True) as found:
        admitted = {"authorization": f"Bearer {found.acme.api_key}"}
        async with httpx.AsyncClient(base_url=found.url, headers=admitted) as client:
            done = await client.delete("/v1/cache")
        assert done.status_code == 200
        assert done.json()["deleted"] > 0
        assert counts(found.database)["cache_entries"] == 0
        # It is off: nothing is stored, and nothing is served.
        await ask(found, "a text of its own")
        assert counts(found.database)["cache_entries"] == 0


async def test_ages_hold_for_what_parts_stored_before_they_were_switched_off(
    provider: ProviderServer, state: Path, ledger_url: SecretStr | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(service, "_SWEEP_S", 0.2)
    labels(provider)
    async with gateway(provider, state, ledger_url, {}) as found:
        await store_some(found)
        file = await found.acme.files.create(file=("in.jsonl", b"{}\n"), purpose="batch")
        old = datetime.now(UTC) - timedelta(days=400)
        values = {
            evidence_texts: {"kept_at": old}, head_examples: {"created_at": old},
            cache_entries: {"expires_at": old}, batch_files: {"expires_at": old},
        }  # fmt: skip
        with found.database.begin() as connection:
            for table, changed in values.items():
                connection.execute(update(table).values(**changed))
            scope = connection.execute(select(head_scopes.c.id)).scalar_one()
            connection.execute(heads.insert(), {
                "digest": "d", "scope": scope, "kind": "head", "version": 1, "content": b"",
                "envelope": b"", "created_at": old, "erased_at": old,
            })  # fmt: skip
            connection.execute(evidence_pending.insert(), {
                "id": "c:i", "claim": "c", "input": "i", "task": "topic", "reference": "openai/x",
                "tenant": "acme", "request_id": "r", "worst_usd": 0, "drawn_at": old,
                "content": b"",
            })  # fmt: skip
    content = list((state / "files").glob("*/*"))
    assert file.id
    assert len(content) == 1
    off = {part: {"enabled": False} for part in ("evidence", "cache", "batch")}
    async with gateway(provider, state, ledger_url, off, again=True) as found:
        gone = (evidence_texts, head_examples, heads, cache_entries, batch_files, evidence_pending)

        def left() -> list[str]:
            with found.database.read() as connection:
                return [
                    table.name
                    for table in gone
                    if connection.execute(select(func.count()).select_from(table)).scalar_one()
                ]

        names = [table.name for table in gone]
        for _ in range(200):
            if not (names := await asyncio.to_thread(left)):
                break
            await asyncio.sleep(0.05)
        assert names == []
        assert not content[0].exists()
