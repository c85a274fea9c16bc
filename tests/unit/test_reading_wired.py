"""The application as `narrowgate serve` wires it: a chat that is read as a task is evidence."""

import asyncio
from pathlib import Path

import pytest

from serving.contracts.evidence import Audit
from serving.evidence.store import EvidenceStore

from ..provider.server import ProviderServer
from .batch_gateway import KEY_VALUE, KEY_VARIABLE, running
from .patience import GUARD_S

CHAT = 'What is the sentiment of this review: positive or negative? """The room was lovely."""'


async def test_the_wired_application_audits_readings(
    provider: ProviderServer, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY_VALUE)
    provider.script.answer = lambda seen: "positive"
    evidence = {"group_window_s": 0.0}
    async with running(provider, state, None, evidence=evidence) as found:
        chat = await found.clients["acme"].chat.completions.create(
            model="auto", messages=[{"role": "user", "content": CHAT}]
        )
        assert chat.choices[0].message.content == "positive"
        store, subjects = EvidenceStore(found.database), set[str]()
        async with asyncio.timeout(GUARD_S):
            while "reading/sentiment" not in subjects:
                await asyncio.sleep(0.05)
                definitions = await asyncio.to_thread(store.definitions)
                rows = await asyncio.to_thread(store.rows_after, 0)
                judged = {row.claim for row in rows if isinstance(row, Audit)}
                subjects = {one.scope.subject for one in definitions if one.id in judged}
