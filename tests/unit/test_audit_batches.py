"""Audits in the provider's batches: half the price, one verdict each, and hidden from tenants."""

# ruff: noqa: ASYNC110  # it waits for what another thread says

import asyncio
import io
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import select

from serving.commands.batch_words import print_overview
from serving.contracts.evidence import AWAITED, Audit, ClaimState, Verdict
from serving.contracts.settings import Settings
from serving.evidence import service
from serving.evidence.pending_audits import PendingAudit, PendingAudits
from serving.evidence.store import EvidenceStore
from serving.ledger.access.keys import create_key
from serving.ledger.access.tenants import update_tenant
from serving.ledger.reports.build import build_report
from serving.ledger.reports.query import Scope
from serving.ledger.reports.reconcile import reconcile
from serving.ledger.schema import calls, exits

from ..provider.script import BatchPlan, Fault
from ..provider.server import ProviderServer
from .audit_gateway import Audited, audited, labels
from .authenticated import opened
from .batch_gateway import KEY_VALUE, KEY_VARIABLE
from .evidence_kit import AT, EARLY, audit, defined, opening, worker
from .ledger_rows import UTC_ZONE
from .patience import GUARD_S


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY_VALUE)


def audit_calls(found: Audited) -> list[Any]:
    query = select(exits, calls.c.cost_usd.label("paid_usd"), calls.c.held_usd.label("hold_usd"))
    is_sent = (exits.c.endpoint == "audit") & (calls.c.kind == "frontier")
    joined = query.join(calls, calls.c.exit_id == exits.c.id).where(is_sent)
    with found.store.database.read() as connection:
        return list(connection.execute(joined))


async def operator(found: Audited) -> httpx.AsyncClient:
    """Return a client with an admin key that the gateway knows already."""
    made = await asyncio.to_thread(create_key, found.gateway.database, None)
    client = httpx.AsyncClient(
        base_url=found.gateway.url,
        headers={"authorization": f"Bearer {made.text.get_secret_value()}"},
    )
    async with asyncio.timeout(GUARD_S):
        while (await client.get("/v1/admin/batches")).status_code != 200:
            await asyncio.sleep(0.1)
    return client


async def admin(found: Audited, path: str) -> Any:
    client = await operator(found)
    answer = await client.get(path)
    await client.aclose()
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_accepted_inputs_get_their_verdicts_from_one_batch_at_half_price(
    provider: ProviderServer, state: Path, ledger_url: SecretStr | None
) -> None:
    labels(provider, lambda text: text == "input 3")
    began = datetime.now(UTC) - timedelta(minutes=1)
    async with audited(provider, state, ledger_url) as found:
        await found.hold()
        seen = len(provider.script.seen)
        for number in range(12):
            answer = await found.ask(f"input {number}")
            assert answer["route"] == "local"
            assert answer["guarantee"]["evidence"] == "traffic"
        await found.until(lambda: len(found.audits("same", "different")) == 12)
        # The reference was asked in batches alone, each input once.
        assert {one.batch_id is None for one in provider.script.seen[seen:]} == {False}
        assert Counter(found.asked) == Counter(f"input {n}" for n in range(12))
        rows = await asyncio.to_thread(audit_calls, found)
        await found.until(lambda: found.pending() == [])
        await found.until(lambda: found.claim().audits == 12)
        claim = await asyncio.to_thread(found.claim)
        assert claim.accepted == 12
        assert claim.observed_error == pytest.approx(1 / 12)
        assert {(row.lane, row.task, row.service_tier, row.tenant) for row in rows} == {
            ("batch", "topic", "batch", "acme")
        }
        assert sum(row.hold_usd for row in rows) == 0
        verdicts = await asyncio.to_thread(found.audits, "same", "different")
        assert [row.served for row in verdicts if row.verdict == "different"] == ["World"]
        assert sum(row.cost_usd or 0 for row in verdicts) == sum(row.paid_usd for row in rows)
        assert await asyncio.to_thread(reconcile, found.gateway.database) == []
        scope = Scope(began, datetime.now(UTC) + timedelta(minutes=1), "acme")
        report = await asyncio.to_thread(build_report, found.gateway.database, scope, UTC_ZONE)
        purposes = {part.name: part for part in report.input_purposes}
        # Beside the local model's own answer to the first input, in shadow.
        assert purposes["audit"].exits == report.totals.audits >= 13
        assert purposes["audit"].cost_usd >= sum(row.paid_usd for row in rows)


async def test_what_awaits_its_verdict_is_hidden_from_tenants_and_shown_to_the_operator(
    provider: ProviderServer, state: Path
) -> None:
    labels(provider)
    provider.script.batch_plan = BatchPlan(polls=10**6)
    async with audited(provider, state, None) as found:
        await found.hold()
        await found.ask("a secret input")
        await found.until(lambda: [row.batch is not None for row in found.pending()] == [True])
        (row,) = await asyncio.to_thread(found.pending)
        assert b"secret" not in row.content
        listed = [batch async for batch in found.gateway.acme.batches.list()]
        assert listed == []
        with pytest.raises(Exception, match="there is no batch"):
            await found.gateway.acme.batches.retrieve(row.batch)
        with pytest.raises(Exception, match="there is no batch"):
            await found.gateway.acme.batches.cancel(row.batch)
        (acme,) = (await admin(found, "/v1/admin/batches"))["data"]
        assert (acme["tenant"], acme["batches"], acme["lines"]) == ("acme", {}, {})
        assert acme["audits"]["awaited"] == 1
        assert acme["audits"]["batches"] == {"in_progress": 1}
        assert Decimal(acme["audits"]["worst_usd"]) == row.worst_usd > 0
        with redirect_stdout(io.StringIO()) as printed:
            print_overview([acme], time.time())
        assert "audits awaited:" in printed.getvalue()
        assert "1, the oldest for 0 min; at most $0.0" in printed.getvalue()
        claim = await admin(found, f"/v1/admin/claims/{row.claim}")
        assert claim["verdicts"]["awaited"] == 1
        async with httpx.AsyncClient() as client, asyncio.timeout(GUARD_S):
            while (
                "narrowgate_audits_awaited 1.0"
                not in (await client.get(f"{found.gateway.url}/metrics")).text
            ):
                await asyncio.sleep(0.1)


async def test_a_deleted_tenants_audits_are_neither_sent_nor_judged(
    provider: ProviderServer, state: Path, ledger_url: SecretStr | None
) -> None:
    labels(provider)
    slow = {"mode": "batch", "collect_s": 3.0}
    async with audited(provider, state, ledger_url, audit=slow) as found:
        client = await operator(found)
        await found.hold()
        for number in range(3):
            await found.ask(f"input {number}")
        await found.until(lambda: len(found.pending()) == 3)
        deleted = await client.delete("/v1/admin/evidence?tenant=acme")
        await client.aclose()
        assert deleted.json()["deleted"] >= 3
        assert await asyncio.to_thread(found.pending) == []
        await asyncio.sleep(4.0)
        assert found.asked == []
        assert await asyncio.to_thread(found.audits) == []


async def test_a_tenant_that_withdraws_its_consent_has_nothing_more_sent(
    provider: ProviderServer, state: Path
) -> None:
    labels(provider)
    slow = {"mode": "batch", "collect_s": 3.0}
    async with audited(provider, state, None, audit=slow) as found:
        await found.hold()
        await found.ask("input 1")
        await found.until(lambda: len(found.pending()) == 1)
        await asyncio.to_thread(
            update_tenant, found.gateway.database, "acme", {"evidence_external": False}
        )
        await found.until(lambda: len(found.audits("dropped")) == 1 or bool(found.asked))
        assert found.asked == []


async def test_audits_that_the_provider_does_not_answer_are_counted_and_end_the_claim(
    provider: ProviderServer, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels(provider)
    # The batch ends after two seconds, and nothing is left of the longest silence for another one.
    monkeypatch.setattr("serving.batch.audit_store._LASTS", timedelta(seconds=2))
    monkeypatch.setattr("serving.batch.submissions._SLACK", timedelta(hours=25))
    provider.script.batch_plan = BatchPlan(polls=10**6, answered=0.0)
    async with audited(provider, state, None, max_silence_h=25.001) as found:
        await found.hold()
        for number in range(4):
            await found.ask(f"input {number}")
        await found.until(lambda: len(found.audits("dropped")) == 4)
        assert len(await asyncio.to_thread(found.audits, "awaited")) == 4
        assert await asyncio.to_thread(found.pending) == []
        rows = await asyncio.to_thread(audit_calls, found)
        assert sum(row.hold_usd + (row.paid_usd or 0) for row in rows) == 0


async def test_an_input_that_the_provider_refuses_is_a_missing_verdict(
    provider: ProviderServer, state: Path
) -> None:
    labels(provider)
    provider.script.line_fault = lambda seen: (
        Fault("status", 400, "invalid_request", "no such thing")
        if "bad" in seen.body["messages"][-1]["content"] else None
    )  # fmt: skip
    async with audited(provider, state, None) as found:
        await found.hold()
        for text in ("good", "bad"):
            await found.ask(text)
        await found.until(lambda: len(found.audits("same", "missing")) == 2)
        (missing,) = await asyncio.to_thread(found.audits, "missing")
        assert missing.loss == 1.0


async def test_a_budget_without_room_leaves_audits_without_a_verdict(
    provider: ProviderServer, state: Path
) -> None:
    labels(provider)
    async with audited(provider, state, None) as found:
        await found.hold()
        spent = {"day_usd": Decimal("0.000000000001")}
        await asyncio.to_thread(update_tenant, found.gateway.database, "acme", spent)
        await found.ask("input 1")
        await found.until(lambda: len(found.audits("dropped")) == 1)
        assert found.asked == []


async def test_outstanding_audits_count_against_the_days_budget(
    provider: ProviderServer, state: Path
) -> None:
    labels(provider)
    provider.script.batch_plan = BatchPlan(polls=10**6)
    # Paced over the day: less than one worst case is left at every time of it.
    async with audited(provider, state, None, max_usd_a_day="0.0000001") as found:
        await found.hold()
        for number in range(5):
            await found.ask(f"input {number}")
        await found.until(lambda: len(found.audits("awaited", "dropped")) >= 5)
        verdicts = Counter(row.verdict for row in await asyncio.to_thread(found.audits))
        assert verdicts["awaited"] <= 1
        assert verdicts["dropped"] >= 4


async def test_an_audit_that_is_not_stored_yet_counts_against_the_days_budget(
    provider: ProviderServer, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels(provider)
    provider.script.batch_plan = BatchPlan(polls=10**6)
    released, defer = threading.Event(), PendingAudits.defer

    def defer_late(pending: PendingAudits, found: Sequence[PendingAudit]) -> None:
        released.wait(60)
        defer(pending, found)

    monkeypatch.setattr(PendingAudits, "defer", defer_late)
    # The database is read several times while the first audit is not in it.
    monkeypatch.setattr(service, "_SPENT_EVERY_S", 0.02)
    async with audited(provider, state, None, max_usd_a_day="0.0000001") as found:
        await found.hold()
        for number in range(5):
            await found.ask(f"input {number}")
            await asyncio.sleep(0.2)
        released.set()
        await found.until(lambda: len(found.audits("awaited", "dropped")) >= 5)
        verdicts = Counter(row.verdict for row in await asyncio.to_thread(found.audits))
    assert verdicts == {"awaited": 1, "dropped": 4}


async def test_another_gateway_takes_the_verdicts_in(
    provider: ProviderServer, state: Path, ledger_url: SecretStr | None
) -> None:
    labels(provider)
    provider.script.batch_plan = BatchPlan(seconds=6.0)
    async with audited(provider, state, ledger_url) as found:
        await found.hold()
        for number in range(5):
            await found.ask(f"input {number}")
        async with asyncio.timeout(GUARD_S):
            while "state" not in [name for name, _ in provider.script.batch_requests]:
                await asyncio.sleep(0.05)
    # Audits at once from now on: those that were deferred are still settled.
    async with audited(
        provider, state, ledger_url, again=True, audit={"mode": "now"}
    ) as found:  # fmt: skip
        await found.until(lambda: len(found.audits("same")) == 5)
        assert set(Counter(found.asked).values()) == {1}
        assert await asyncio.to_thread(found.state) is ClaimState.HELD
        assert await asyncio.to_thread(reconcile, found.gateway.database) == []


OPENAI = {"openai": {"api": "openai", "base_url": "http://localhost:1/v1", "batch": True}}
TIERS = {tier: ["openai/gpt-4.1"] for tier in ("economy", "standard", "frontier")}


def settings_of(evidence: dict[str, Any], **more: Any) -> Settings:
    values = {"frontier": {"providers": OPENAI, "tiers": TIERS}, **more}
    return Settings.model_validate({**values, "evidence": evidence})


def test_settings_under_which_no_audit_could_come_back_are_refused() -> None:
    batch = {"mode": "batch"}
    good = settings_of({"audit": batch, "max_silence_h": 48})
    assert good.evidence.audit.longest_h == 26.0
    with pytest.raises(ValueError, match=r"max_silence_h is 6, and .* 26 hours: set evidence.max"):
        settings_of({"audit": batch})
    with pytest.raises(ValueError, match="max_silence_h is 26"):
        settings_of({"audit": batch, "max_silence_h": 26})
    with pytest.raises(ValueError, match=r"batch\.enabled is false: set batch.enabled: true"):
        settings_of({"audit": batch, "max_silence_h": 48}, batch={"enabled": False})
    without = {"providers": {"openai": {**OPENAI["openai"], "batch": False}}, "tiers": TIERS}
    with pytest.raises(ValueError, match=r"'openai/gpt-4.1'.* has no batch API"):
        settings_of({"audit": batch, "max_silence_h": 48}, frontier=without)
    with pytest.raises(ValueError, match="mode"):
        settings_of({"audit": {"mode": "later"}})


SILENT_H = 48.0


def silent_after(rows: list[Audit], state: Path, hours: float) -> ClaimState:
    """Return the state of a held claim, so many hours after its last earning row."""
    settings = EARLY.model_copy(update={"max_silence_h": SILENT_H})
    database = opened(None, state)
    try:
        store = EvidenceStore(database)
        store.register([defined(settings=settings)])
        store.append(events=[opening("c1")])
        store.append([audit("c1", number) for number in range(60)])
        now = AT
        folding = worker(store, settings, now=lambda: now)
        folding.round_blocking()
        assert store.states().claims["c1"].state is ClaimState.HELD
        store.append(rows)
        now = AT + timedelta(hours=hours)
        folding.round_blocking()
        return store.states().claims["c1"].state
    finally:
        database.close()


def under_claim(number: int, hour: float, verdict: Verdict, judged_h: float) -> Audit:
    at, judged = AT + timedelta(hours=hour), AT + timedelta(hours=judged_h)
    row = audit(
        "c1",
        number,
        origin="accepted",
        hypothesis=1,
        verdict=verdict,
        drawn_at=at,
        judged_at=judged,
    )
    if verdict == "awaited":
        return replace(row, input=f"{row.input}{AWAITED}", loss=None)
    return row if verdict == "same" else replace(row, loss=None)


def test_a_claim_whose_audits_vanish_ends_after_its_longest_silence(state: Path) -> None:
    vanish = [under_claim(100 + n, n, "awaited", n) for n in range(1, 40)]
    assert silent_after(vanish, state, 48.5) is ClaimState.HELD
    assert silent_after(vanish, state / "again", 49.5) is ClaimState.SUSPENDED


def test_an_audit_that_is_given_up_late_does_not_end_a_claim_that_others_kept(state: Path) -> None:
    rows = [
        under_claim(100, 1, "awaited", 1), under_claim(101, 2, "awaited", 2),
        under_claim(101, 2, "same", 27), under_claim(100, 1, "dropped", 49),
    ]  # fmt: skip
    assert silent_after(rows, state, 50.0) is ClaimState.HELD
    # From then on no verdict comes any more.
    assert silent_after(rows, state / "again", 49.0 + SILENT_H + 0.5) is ClaimState.SUSPENDED
