"""A whole gateway with a scripted local model whose audits go into the provider's batches."""

# ruff: noqa: ASYNC110  # it waits for what another thread says

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import select

from serving import app
from serving.contracts.evidence import Audit, Claim, ClaimState
from serving.contracts.settings import BUNDLED_MODEL
from serving.contracts.task_spec import TaskSpec
from serving.evidence.store import Definition, EvidenceStore
from serving.gateway.local_models import LocalModels
from serving.ledger.schema import evidence_pending
from serving.pipeline.runner import BoundTask
from serving.tasks.catalog import load_specs
from serving.tasks.grant import Grant
from serving.tasks.task import bind

from ..provider.server import ProviderServer
from .attested import result
from .batch_gateway import Running, running
from .character_tokenizer import CharacterTokenizer
from .evidence_kit import audit, opening
from .patience import GUARD_S
from .scripted import MODEL as LOCAL
from .scripted import WINDOW, ScriptedEngine

TASK, LABEL, OTHER = "topic", "World", "Sports"
_LIMIT_S = 40.0

AUDITED: dict[str, Any] = {
    "heads": False, "min_groups": 1, "min_span_h": 0.0, "group_window_s": 0.0, "high_rate": 1.0,
    "max_silence_h": 60.0, "max_usd_a_day": 1000, "refresh_s": 0.2,
    "audit": {"mode": "batch", "collect_s": 1.0},
}  # fmt: skip
"""Settings of evidence under which a few audits earn a claim, and every accepted input is drawn."""

LOCAL_MODELS = [{
    "id": LOCAL, "source": f"{BUNDLED_MODEL}@int8-w8a8", "accelerator": {"kind": "cpu"},
    "replica_hour_usd": "0.1",
}]  # fmt: skip
FAST = {"provider_poll_s": 0.2, "lease_s": 2.0}


def scripted_models(specs: dict[str, TaskSpec]) -> LocalModels:
    """Return one connected local model, which answers every task with its first label."""
    engine, tokenizer = ScriptedEngine(), CharacterTokenizer()
    tasks = {
        name: BoundTask(
            bind(spec, tokenizer, WINDOW), engine,
            Grant(result(spec), "sha256:abc", None) if name == TASK else Grant(None, None, None),
        )
        for name, spec in specs.items()
    }  # fmt: skip
    return LocalModels.serving({LOCAL: engine}, tasks)  # type: ignore[dict-item]


def serve_scripted(patch: pytest.MonkeyPatch) -> None:
    """Make gateways that are built from now on serve the scripted model."""
    specs = dict(load_specs(None))

    def made(*arguments: Any, **more: Any) -> LocalModels:
        return scripted_models(specs)

    patch.setattr(app, "LocalModels", made)


def labels(provider: ProviderServer, wrong: Callable[[str], bool] = lambda text: False) -> None:
    """Let the provider answer with the scripted model's label, or with another one."""

    def answer(seen: Any) -> str:
        text = seen.body["messages"][-1]["content"]
        return json.dumps({"label": OTHER if wrong(text) else LABEL})

    provider.script.answer = answer


def earning_rows(claim: Definition) -> list[Audit]:
    """Return audits that earn a claim, drawn after all inputs so far."""
    now = datetime.now(UTC)
    at = [now + timedelta(milliseconds=number) for number in range(60)]
    return [
        audit(claim.id, number, reference=claim.reference, drawn_at=one, judged_at=one)
        for number, one in enumerate(at)
    ]


@dataclass
class Audited:
    """A gateway whose task TASK is under a claim of the tenant acme."""

    gateway: Running
    provider: ProviderServer
    store: EvidenceStore

    async def ask(self, text: str, **headers: str) -> dict[str, Any]:
        """Send one input as acme; return its answer."""
        admitted = {"authorization": f"Bearer {self.gateway.acme.api_key}", **headers}
        async with httpx.AsyncClient(timeout=GUARD_S) as client:
            found = await client.post(
                f"{self.gateway.url}/v1/tasks/{TASK}", json={"input": text}, headers=admitted
            )
        assert found.status_code == 200, found.text
        answer: dict[str, Any] = found.json()
        return answer

    async def hold(self) -> str:
        """Bring the claim to be held, by rows; return its id."""
        found: list[Definition] = []
        async with asyncio.timeout(_LIMIT_S):
            while not found:
                # No claim is opened before the states of claims were read for the first time.
                await self.ask("the first input")
                for _ in range(60):
                    found = found or await asyncio.to_thread(self.store.definitions)
                    await asyncio.sleep(0.0 if found else 0.05)
        (claim,) = found
        await asyncio.to_thread(self.store.append, (), [opening(claim.id)])
        await asyncio.to_thread(self.store.append, earning_rows(claim))
        await self.until(lambda: self.state() is ClaimState.HELD)
        return claim.id

    async def until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(_LIMIT_S):
            while not await asyncio.to_thread(is_so):
                await asyncio.sleep(0.05)

    def claim(self) -> Claim:
        (found,) = self.store.states().claims.values()
        return found

    def state(self) -> ClaimState | None:
        return next((claim.state for claim in self.store.states().claims.values()), None)

    def audits(self, *verdicts: str) -> list[Audit]:
        """Return the rows of inputs that clients sent under the claim, with these verdicts."""
        rows = self.store.rows_after(0)
        return [
            row for row in rows
            if isinstance(row, Audit) and row.origin == "accepted"
            and (not verdicts or row.verdict in verdicts)
        ]  # fmt: skip

    def pending(self) -> list[Any]:
        with self.store.database.read() as connection:
            return list(connection.execute(select(evidence_pending)))

    @property
    def asked(self) -> list[str]:
        """Return the inputs that the provider answered in batches."""
        return [
            seen.body["messages"][-1]["content"]
            for seen in list(self.provider.script.seen)
            if seen.batch_id is not None and seen.billed is not None
        ]


@asynccontextmanager
async def audited(
    provider: ProviderServer,
    state: Path,
    url: SecretStr | None,
    *,
    again: bool = False,
    **evidence: Any,
) -> AsyncIterator[Audited]:
    """Run a gateway. evidence: settings of evidence that differ from AUDITED."""
    with pytest.MonkeyPatch.context() as patch:
        serve_scripted(patch)
        async with running(
            provider, state, url, again=again, has_batches=True, batch=FAST, models=LOCAL_MODELS,
            evidence={**AUDITED, **evidence}, auth={"mode": "keys", "refresh_s": 0.3},
        ) as gateway:  # fmt: skip
            yield Audited(gateway, provider, EvidenceStore(gateway.database))
