"""Evidence in real databases: one order, first row wins, one folding replica, restart."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import update

from serving.contracts.evidence import Audit, ClaimEvent, ClaimState
from serving.contracts.head_settings import HeadSettings
from serving.evidence import administration
from serving.evidence.fold import ClaimFold
from serving.evidence.heads.fit_queue import FitQueue
from serving.evidence.heads.schema import head_scopes
from serving.evidence.snapshot import ClaimSnapshot
from serving.evidence.store import EvidenceOwner, EvidenceStore
from serving.ledger.database import Database, database_url
from serving.ledger.schema import evidence_lease

from .authenticated import opened
from .database import insist
from .evidence_kit import AT, EARLY, Clock, audit, defined, opening, worker


@pytest.fixture
def database(ledger_url: SecretStr | None, state: Path) -> Iterator[Database]:
    found = opened(ledger_url, state)
    yield found
    found.close()


def test_the_first_verdict_on_an_input_counts(store: EvidenceStore) -> None:
    store.draw([audit("c1", 1)])
    store.append([audit("c1", 1), audit("c1", 2, loss=1.0)])
    assert store.append([audit("c1", 1, loss=1.0)]) == []
    rows = store.rows_after(0)
    assert [(row.input, row.loss) for row in rows if isinstance(row, Audit)] == [
        ("i1", 0.0), ("i2", 1.0)
    ]  # fmt: skip
    assert rows[0] == replace(audit("c1", 1), sequence=1)
    # Another claim's audit of the same input is another row.
    assert len(store.append([audit("c2", 1)])) == 1
    assert store.missed(timedelta(0)) == []


def test_a_reader_that_moves_on_misses_no_row(store: EvidenceStore) -> None:
    """Sequences are in the order of commits: a row never appears behind one that was read."""
    seen: list[int] = []
    writing = threading.Event()
    writing.set()

    def read() -> None:
        while True:
            last = not writing.is_set()
            seen.extend(row.sequence for row in store.rows_after(seen[-1] if seen else 0))
            if last:
                return

    def write(first: int) -> None:
        for number in range(first, first + 5):
            row = audit("c1", number)
            insist(lambda row=row: store.append([row]))

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=write, args=(n,)) for n in (0, 100, 200)]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    writing.clear()
    reader.join()
    assert seen == list(range(1, 16))


def test_an_earned_claim_survives_a_restart(store: EvidenceStore) -> None:
    store.append(events=[opening("c1")])
    store.append([audit("c1", number) for number in range(60)])
    first = worker(store)
    first.round_blocking()
    held = store.states().claims["c1"]
    assert (held.state, held.action and held.action.candidate) == (ClaimState.HELD, "model")
    # A process that knows nothing comes to the same state from the rows, and writes no event twice.
    rows = store.rows_after(0)
    second = worker(store, EARLY.model_copy(update={"lease_s": 0.001}))
    first_lease = store.take_lease("nobody", 0.0)
    assert not first_lease
    again = EvidenceStore(store.database)
    again.take_lease(first._holder, 0.0)
    second.round_blocking()
    assert store.states().claims["c1"] == replace(held, sequence=rows[-1].sequence)
    assert store.rows_after(0) == rows
    kinds = [row.kind for row in rows if isinstance(row, ClaimEvent)]
    assert kinds == ["tested", "earned"]


def test_a_state_that_the_rows_do_not_lead_to_is_not_in_force(store: EvidenceStore) -> None:
    store.append(events=[opening("c1")])
    store.append([audit("c1", number, loss=1.0) for number in range(60)])
    forged = ClaimEvent("c1", "earned", "forged", "fold", AT, 3, opening("c1").action)
    store.append(events=[forged])
    worker(store).round_blocking()
    claim = store.states().claims["c1"]
    assert (claim.state, claim.action) == (ClaimState.SUSPENDED, None)
    assert "do not follow" in claim.reason


def test_one_replica_folds_and_the_others_read(store: EvidenceStore) -> None:
    store.append(events=[opening("c1")])
    store.append([audit("c1", number) for number in range(60)])
    leading, following = worker(store), worker(store)
    leading.round_blocking()
    following.round_blocking()
    assert following._folds is None
    assert following._snapshot.find("c1") == leading._snapshot.find("c1")
    assert following._snapshot.find("c1") is not None


def test_a_clock_that_was_set_back_holds_no_lease(store: EvidenceStore) -> None:
    """A replica ended, and the clock was set back by an hour: nobody would fold for that long."""
    assert store.take_lease("one", 5.0)
    assert not store.take_lease("two", 5.0)
    with store.database.begin() as connection:
        later = datetime.now(UTC) + timedelta(hours=1)
        connection.execute(update(evidence_lease).values(until=later))
    assert store.take_lease("two", 5.0)
    assert not store.take_lease("one", 5.0)


def test_a_clock_that_was_set_back_holds_no_scope_that_is_to_be_fitted(database: Database) -> None:
    scope = {
        "id": "s", "tenants": "default", "pooled": False, "task": "topic", "spec_digest": "d",
        "labels": "[]", "model": "m", "fitted_examples": 0, "version": 0, "requested_at": AT,
        "request": "by hand", "created_at": AT,
    }  # fmt: skip
    with database.begin() as connection:
        connection.execute(head_scopes.insert(), scope)
    one, two = (FitQueue(database, HeadSettings(), name) for name in ("one", "two"))
    assert one.take() is not None
    assert two.take() is None
    with database.begin() as connection:
        later = datetime.now(UTC) + timedelta(days=1)
        connection.execute(update(head_scopes).values(held_until=later))
    assert two.take() is not None


def test_without_claims_nothing_is_written(database: Database) -> None:
    """A server without a key reads every second; it must not also write every second."""
    store = EvidenceStore(database)
    worker(store).round_blocking()
    assert store.take_lease("another", 5.0)
    store.register([defined()])
    assert store.has_claims()


def test_audits_of_a_lost_process_are_dropped_not_forgotten(store: EvidenceStore) -> None:
    store.draw([audit("c1", 1, drawn_at=AT - timedelta(days=1))])
    worker(store).round_blocking()
    (row,) = store.rows_after(0)
    assert isinstance(row, Audit)
    assert (row.verdict, row.loss, row.input) == ("dropped", None, "i1")
    # Its own verdict comes too late.
    assert store.append([audit("c1", 1)]) == []


def test_a_snapshot_ages_out(store: EvidenceStore) -> None:
    clock = Clock()
    snapshot = ClaimSnapshot(30.0, clock)
    assert not snapshot.is_fresh
    worker(store, clock=clock, snapshot=snapshot).round_blocking()
    assert snapshot.find("c1") is not None
    clock.now_s += 31.0
    assert snapshot.find("c1") is None
    assert not snapshot.is_fresh


async def test_a_replica_without_database_keeps_its_last_reading(
    store: EvidenceStore, state: Path, ledger_url: SecretStr | None
) -> None:
    away = EvidenceStore(Database(database_url(SecretStr("postgresql://a:b@127.0.0.1:1/x"), state)))
    clock = Clock()
    snapshot = ClaimSnapshot(30.0, clock)
    worker(store, clock=clock, snapshot=snapshot).round_blocking()
    clock.now_s += 5.0
    await worker(away, clock=clock, snapshot=snapshot).round()
    assert snapshot.find("c1") is not None
    clock.now_s += 26.0
    assert snapshot.find("c1") is None


def test_acts_are_kept(store: EvidenceStore) -> None:
    store.act("k1", "label", "c1")
    assert [act[:3] for act in store.acts()] == [("k1", "label", "c1")]


def test_a_persons_rows_are_forgotten_and_the_claim_goes_on(store: EvidenceStore) -> None:
    store.append(events=[opening("c1")])
    rows = [audit("c1", n, end_user="ann" if n % 2 else "bob", label="World") for n in range(60)]
    store.append(rows)
    worker(store).round_blocking()
    before = store.states().claims["c1"]
    assert store.delete(EvidenceOwner("default", end_user="ann"), "k1") == 30
    assert store.delete(EvidenceOwner("default", request_id="r2"), "k1") == 1
    left = [row for row in store.rows_after(0) if isinstance(row, Audit)]
    assert {row.end_user for row in left} == {None, "bob"}
    assert sum(row.label is None for row in left) == 31
    assert "r1" not in {row.request_id for row in left}
    again = worker(EvidenceStore(store.database))
    assert again._store.take_lease(again._holder, 5.0) is False
    folded = ClaimFold(defined(), EARLY).extend(store.rows_after(0))
    assert folded.claim.state is before.state is ClaimState.HELD
    assert folded.is_reproduced
    assert store.acts()[0][:2] == ("k1", "delete")


def test_a_withdrawn_claim_stays_withdrawn_when_its_tenant_is_deleted(store: EvidenceStore) -> None:
    store.append(events=[opening("c1")])
    store.append([audit("c1", n) for n in range(60)])
    folding = worker(store)
    folding.round_blocking()
    assert store.states().claims["c1"].state is ClaimState.HELD
    administration.withdraw(store, "c1", "it is rude", "k1")
    folding.round_blocking()
    for _ in range(2):
        store.delete(EvidenceOwner("default"), "k1")
        # At once, after a round of the replica that folded it, and after that of another one.
        for replica in (None, folding, worker(EvidenceStore(store.database))):
            if replica is not None:
                replica.round_blocking()
            claim = store.states().claims["c1"]
            assert (claim.state, claim.reason) == (ClaimState.WITHDRAWN, "it is rude")
            assert (claim.audits, claim.observed_error, claim.hypotheses) == (0, None, 0)
    # Later inputs register it again, and their audits earn nothing.
    store.register([defined()])
    assert len(store.append([after_deletion("c1", 100 + n) for n in range(60)])) == 60
    folding.round_blocking()
    assert store.states().claims["c1"].state is ClaimState.WITHDRAWN


def after_deletion(name: str, number: int) -> Audit:
    """Return an audit of an input that was drawn after every deletion of a test."""
    drawn_at = datetime.now(UTC) + timedelta(hours=1, seconds=number)
    return audit(name, number, drawn_at=drawn_at, judged_at=drawn_at)


def test_a_claim_that_was_deleted_begins_anew_in_the_replica_that_folded_it(
    store: EvidenceStore,
) -> None:
    store.append(events=[opening("c1")])
    store.append([audit("c1", n) for n in range(60)])
    folding = worker(store)
    folding.round_blocking()
    held = store.states().claims["c1"]
    assert held.state is ClaimState.HELD
    store.delete(EvidenceOwner("default"), "k1")
    # A replica that folded before the deletion is late with its state.
    store.save([held])
    assert store.states().claims == {}
    # Another replica's next request registers the claim before this one has seen that it is gone.
    store.register([defined()])
    store.append([after_deletion("c1", 200)])
    folding.round_blocking()
    found = store.states().claims["c1"]
    last = store.rows_after(0)[-1].sequence
    assert (found.state, found.hypotheses, found.sequence) == (ClaimState.SHADOW, 0, last)
    restarted = ClaimFold(defined(), EARLY).extend(store.rows_after(0))
    assert restarted.claim == found


def test_rows_from_before_a_claim_is_registered_again_count_as_after_a_restart(
    store: EvidenceStore,
) -> None:
    folding = worker(store)
    folding.round_blocking()
    store.delete(EvidenceOwner("default"), "k1")
    # An audit after the deletion; the folding replica has passed it by.
    store.append([after_deletion("c1", 1)])
    store.register([defined("c2")])
    folding.round_blocking()
    store.register([defined()])
    folding.round_blocking()
    found = store.states().claims["c1"]
    assert found == ClaimFold(defined(), EARLY).extend(store.rows_after(0, "c1")).claim
    assert found.sequence > 1


def test_a_tenant_is_deleted_with_its_claims(store: EvidenceStore) -> None:
    pooled = replace(defined("c2"), scope=replace(defined().scope, tenants="ours", pooled=True))
    store.register([pooled])
    store.append([audit("c1", 1), audit("c2", 2), audit("c2", 3, tenant="other")])
    store.draw([audit("c1", 4)])
    assert store.delete(EvidenceOwner("default"), "k1") == 2
    assert [item.id for item in store.definitions()] == ["c2"]
    assert [r.input for r in store.rows_after(0) if isinstance(r, Audit)] == ["i3"]
    assert store.missed(timedelta(days=-9999)) == []
