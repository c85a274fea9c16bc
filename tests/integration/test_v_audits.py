"""A gateway that is killed at each step of an audit in a provider's batch.

Each input that was drawn has one verdict or is counted as dropped, the reference is asked about it
at most once, and the ledger equals the provider's books.
"""

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from serving.contracts.evidence import Audit, ClaimState
from serving.evidence.store import EvidenceStore
from serving.ledger.database import Database
from serving.ledger.pricing.book import PriceBook
from serving.ledger.reports.reconcile import reconcile
from serving.ledger.schema import calls, evidence_draws, evidence_pending, exits

from ..provider.billing import billed_usd
from ..provider.server import ProviderServer
from ..unit.audit_gateway import AUDITED, LOCAL_MODELS, TASK, earning_rows, labels
from ..unit.database import fresh_postgres, postgres_server
from ..unit.evidence_kit import opening
from .audited_process import STEPS
from .killed_gateway import KEY, KilledGateway

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

_LIMIT_S = 90.0
MODEL = "openai/gpt-4.1"
LAST = "the last input"


class AuditedGateway(KilledGateway):
    """A gateway with a scripted local model."""

    module = "tests.integration.audited_process"


@pytest.fixture(params=["sqlite", "postgresql"])
def gateway(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[AuditedGateway, ProviderServer]]:
    with contextlib.ExitStack() as stack:
        provider = stack.enter_context(ProviderServer(keys=[KEY]))
        url = None
        if request.param == "postgresql":
            server = stack.enter_context(postgres_server())
            url = fresh_postgres(server, "audits").get_secret_value()
        found = AuditedGateway(
            tmp_path, provider, url, has_batches=True, models=LOCAL_MODELS,
            batch={"lease_s": 1.0, "provider_poll_s": 0.1},
            evidence={**AUDITED, "deadline_s": 0.5, "lease_s": 1.0},
        )  # fmt: skip
        stack.callback(found.close)
        yield found, provider


def wait(is_so: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + _LIMIT_S
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def ask(running: AuditedGateway, text: str) -> None:
    answer = httpx.post(f"{running.url}/v1/tasks/{TASK}", json={"input": text}, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.json()["route"] == "local"


def hold(running: AuditedGateway, store: EvidenceStore) -> None:
    """Bring the claim on TASK to be held, by rows."""

    def is_open() -> bool:
        # None is opened before the states of claims were read for the first time.
        httpx.post(f"{running.url}/v1/tasks/{TASK}", json={"input": "first"}, timeout=30)
        time.sleep(1.0)
        return bool(store.definitions())

    wait(is_open, "no claim was opened")
    (claim,) = store.definitions()
    store.append(events=[opening(claim.id)])
    store.append(earning_rows(claim))
    wait(
        lambda: any(c.state is ClaimState.HELD for c in store.states().claims.values()),
        "the claim was not earned",
    )


def knows_the_claim(running: AuditedGateway) -> bool:
    text = httpx.get(f"{running.url}/metrics", timeout=30).text
    lines = [line for line in text.splitlines() if line.startswith("narrowgate_claim_state{")]
    return any('state="held"' in line and line.endswith(" 1.0") for line in lines)


def drawn(store: EvidenceStore) -> list[Audit]:
    rows = store.rows_after(0)
    return [row for row in rows if isinstance(row, Audit) and row.origin == "accepted"]


def count(database: Database, table: Any) -> int:
    with database.read() as connection:
        return len(connection.execute(select(table)).all())


def test_an_audit_is_settled_once_wherever_the_gateway_is_killed(
    gateway: tuple[AuditedGateway, ProviderServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running, provider = gateway
    labels(provider)
    running.start()
    database = running.database()
    store = EvidenceStore(database)
    try:
        hold(running, store)
        running.kill()
        # After a step and before the next one, the database and the provider hold the same.
        points = ["before defer", *(f"after {step}" for step in STEPS)]
        armed = tmp_path / "armed"
        monkeypatch.setenv("ARMED", str(armed))
        for number, point in enumerate(points):
            armed.unlink(missing_ok=True)
            monkeypatch.setenv("KILL_AT", point)
            running.start()
            wait(lambda: knows_the_claim(running), "the claim is not known")
            armed.touch()
            with contextlib.suppress(httpx.TransportError):
                # What is left of earlier inputs may reach the point before the second one is sent.
                for part in range(2):
                    ask(running, f"input {number} {part}")
            ends_by_itself(running, point)
        monkeypatch.delenv("KILL_AT")
        running.start()
        wait(lambda: knows_the_claim(running), "the claim is not known")
        ask(running, LAST)
        wait(lambda: LAST in asked(provider), "the last input is not sent")
        wait(lambda: count(database, evidence_pending) == 0, "audits stay pending")
        wait(lambda: count(database, evidence_draws) == 0, "draws stay open")
        running.kill()
        check(store, database, provider)
    finally:
        database.close()


def ends_by_itself(running: AuditedGateway, point: str) -> None:
    process = running.process
    assert process is not None
    wait(lambda: process.poll() is not None, f"it was not killed {point}")
    assert process.returncode == -signal.SIGKILL, running.log.read_text()[-3000:]


def asked(provider: ProviderServer) -> Counter[str]:
    """Return how often the reference was asked about each input in batches."""
    seen = [one for one in provider.script.seen if one.batch_id is not None]
    return Counter(one.body["messages"][-1]["content"] for one in seen)


def check(store: EvidenceStore, database: Database, provider: ProviderServer) -> None:
    rows = drawn(store)
    awaited = {row.input.removesuffix("/awaited") for row in rows if row.verdict == "awaited"}
    ended = Counter(row.input for row in rows if row.verdict != "awaited")
    assert awaited <= ended.keys()
    assert set(ended.values()) == {1}
    assert len(ended) >= len(STEPS) // 2
    verdicts = Counter(row.verdict for row in rows)
    # One that a kill kept from being stored is counted by its draw, as dropped.
    assert verdicts["same"] == len(awaited)
    assert verdicts.keys() <= {"awaited", "same", "dropped"}
    seen = [one for one in provider.script.seen if one.batch_id is not None]
    assert set(asked(provider).values()) == {1}
    prices = PriceBook.load().of(MODEL)
    assert prices is not None
    base = prices.base
    by_class = {
        "uncached_input_tokens": base.uncached_input, "cache_read_tokens": base.cache_read,
        "cache_write_5m_tokens": base.cache_write_5m, "cache_write_1h_tokens": base.cache_write_1h,
        "output_tokens": base.output, "reasoning_tokens": base.output,
    }  # fmt: skip
    billed = sum((billed_usd(one, by_class) for one in seen), Decimal(0))
    with database.read() as connection:
        query = select(exits.c.lane, exits.c.endpoint, calls).join(
            calls, calls.c.exit_id == exits.c.id
        )
        found = connection.execute(query.where(exits.c.lane == "batch")).all()
    assert {row.endpoint for row in found} == {"audit"}
    assert sum((row.cost_usd or Decimal(0) for row in found), Decimal(0)) == billed
    assert sum((row.held_usd or Decimal(0) for row in found), Decimal(0)) == 0
    assert sum((row.cost_usd or Decimal(0) for row in rows), Decimal(0)) == billed
    assert reconcile(database) == []
    print(f"inputs {len(ended)}, verdicts {dict(verdicts)}, asked {len(seen)}, billed {billed}")
