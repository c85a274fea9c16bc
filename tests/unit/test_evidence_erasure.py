"""Deletions of evidence: audits that run meanwhile write nothing afterwards."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from pydantic import SecretStr
from sqlalchemy import select

from serving.contracts.task_spec import TaskSpec
from serving.evidence.heads.candidate import DIMENSIONS, HeadScope
from serving.evidence.heads.cipher import VectorCipher
from serving.evidence.heads.example_store import ExampleStore, Source, Task
from serving.evidence.heads.examples import Example
from serving.evidence.kept_texts import KeptText, KeptTexts
from serving.evidence.store import EvidenceOwner, EvidenceStore
from serving.ledger.database import Database
from serving.ledger.schema import evidence_draws, evidence_texts
from serving.tasks.grant import Grant

from .attested import result
from .authenticated import opened
from .evidence_kit import EARLY, EvidenceServer, audit, defined

OWNERS = {
    "tenant": EvidenceOwner("default"),
    "request": EvidenceOwner("default", "r1"),
    "end user": EvidenceOwner("default", None, "ann"),
}
CIPHER = VectorCipher([b"v" * 32])
TASK = Task(HeadScope("default", "topic", "sha256:1"), ("World", "Sports"), "encoder-1")


@pytest.fixture
def database(state: Path, ledger_url: SecretStr | None) -> Iterator[Database]:
    found = opened(ledger_url, state)
    yield found
    found.close()


def example(number: int) -> Example:
    vector = np.full(DIMENSIONS, 1 / (number + 1), np.float32)
    return Example("World", vector, 10)


@pytest.mark.parametrize("owner", OWNERS.values(), ids=OWNERS)
def test_what_was_drawn_before_a_deletion_is_not_written_after_it(
    database: Database, owner: EvidenceOwner
) -> None:
    store, texts = EvidenceStore(database), KeptTexts(database, CIPHER)
    examples = ExampleStore(database, CIPHER)
    store.register([defined()])
    drawn = datetime.now(UTC)
    rows = [
        audit("c1", 1, drawn_at=drawn, request_id="r1", end_user="ann"),
        audit("c1", 2, drawn_at=drawn, request_id="r2", end_user="bob"),
        audit("c1", 3, drawn_at=drawn + timedelta(hours=1), request_id="r1", end_user="ann"),
        audit("c1", 4, drawn_at=drawn, request_id="r1", end_user="ann", tenant="globex"),
    ]
    expected = {"i2", "i3", "i4"} if not owner.is_tenant else {"i3", "i4"}
    store.delete(owner, "k1")
    store.draw(rows)
    with database.read() as connection:
        assert set(connection.execute(select(evidence_draws.c.input)).scalars()) == expected
    learned = set()
    for number, row in enumerate(rows):
        texts.keep(KeptText(row, "a text", ("World", "Sports")))
        source = Source(row.tenant, row.request_id, row.input, row.end_user, drawn_at=row.drawn_at)
        if examples.add(TASK, source, example(number)):
            learned.add(row.input)
    assert learned == expected
    assert {one.audit.input for one in texts.sample("c1", "k", 9)} == expected
    assert {row.input for row in store.append(rows)} == expected  # type: ignore[union-attr]
    assert {row.input for row in store.rows_after(0) if hasattr(row, "input")} == expected


def test_a_deletion_that_a_later_clock_noted_keeps_nothing_back(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serving.ledger import erasures

    store = EvidenceStore(database)
    now = datetime.now(UTC)
    with monkeypatch.context() as patch:
        patch.setattr(erasures, "database_now", lambda connection: now + timedelta(hours=2))
        store.delete(EvidenceOwner("default"), "k1")
    # The clock was set back by two hours: what is drawn now came after the deletion.
    assert len(store.append([audit("c1", 1, drawn_at=datetime.now(UTC))])) == 1


async def test_an_audit_that_runs_during_a_deletion_does_not_come_back(
    specs: dict[str, TaskSpec], database: Database
) -> None:
    grants = {"topic": Grant(result(specs["topic"]), "sha256:abc", None)}
    settings = EARLY.model_copy(update={"keep_texts": 7, "high_rate": 1.0})
    found = EvidenceServer(specs, database, grants, settings, lambda call: '{"label": "World"}')
    await found.ready()
    for number in range(5):
        assert (await found.ask(f"input {number}")).status_code == 200
    # Nothing is written yet: drawn inputs, verdicts and texts are in memory.
    deleted = await found.server.client.delete("/v1/admin/evidence?tenant=default")
    assert deleted.status_code == 200
    await found.settle()
    assert found.audits() == []
    assert found.store.missed(timedelta(days=-9999)) == []

    def texts() -> list[str]:
        with database.read() as connection:
            return list(connection.execute(select(evidence_texts.c.tenant)).scalars())

    assert texts() == []
    # What comes later leaves evidence.
    found.now = datetime.now(UTC) + timedelta(hours=1)
    await found.ask("a later input")
    await found.settle()
    assert len(found.audits()) == 1
    assert texts() == ["default"]
