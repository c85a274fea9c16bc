"""What goes wrong around evidence: replicas, crashes, the database, the budget, odd tenants."""

import asyncio
import json
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from serving.contracts.errors import FrontierInvalidResponse
from serving.contracts.evidence import Audit, ClaimEvent, ClaimState
from serving.contracts.evidence_settings import EvidenceSettings
from serving.contracts.frontier import FrontierCall
from serving.contracts.task_spec import TaskSpec
from serving.evidence.appender import EvidenceAppender
from serving.evidence.fold import ClaimFold
from serving.evidence.snapshot import ClaimSnapshot
from serving.evidence.store import EvidenceStore
from serving.evidence.worker import EvidenceWorker
from serving.ledger.database import Database
from serving.tasks.grant import Grant

from .attested import result
from .authenticated import opened
from .evidence_kit import (
    AT,
    EARLY,
    Clock,
    EvidenceServer,
    Transitions,
    audit,
    defined,
    opening,
    worker,
)
from .patience import GUARD_S
from .test_evidence_states import LABEL, OTHER, bring, says

ALWAYS = EARLY.model_copy(update={"high_rate": 1.0, "lease_s": 60.0})


@pytest.fixture
def build(specs: dict[str, TaskSpec], database: Database) -> Any:
    grants = {"topic": Grant(result(specs["topic"]), "sha256:abc", None)}

    def made(reply: Any, settings: EvidenceSettings = ALWAYS) -> EvidenceServer:
        return EvidenceServer(specs, database, grants, settings, reply)

    return made


def held(rows: Sequence[Audit | ClaimEvent] = ()) -> ClaimFold:
    """Return the fold of a claim that 60 audits have earned, and of more rows."""
    fold = ClaimFold(defined(), EARLY)
    fold.extend(numbered([opening("c1"), *(audit("c1", number) for number in range(60))]))
    assert fold.claim.state is ClaimState.HELD
    return fold.extend(numbered(rows, 62))


def numbered(rows: Sequence[Audit | ClaimEvent], first: int = 1) -> list[Audit | ClaimEvent]:
    from dataclasses import replace

    return [replace(row, sequence=number) for number, row in enumerate(rows, first)]


def served(number: int, loss: float = 0.0, **changes: Any) -> Audit:
    """Return an audit of an answer that the claim's first hypothesis accepted."""
    values = {"origin": "accepted", "hypothesis": 1, "accepted": 1, **changes}
    return audit("c1", 1000 + number, loss, **values)


async def test_two_replicas_audit_one_claim_and_both_stop(build: Any) -> None:
    """The audits of one replica suspend the claim; the other learns it at its next reading."""
    wrong = False

    def reply(call: FrontierCall) -> str:
        return json.dumps({"label": OTHER if wrong else LABEL})

    folding, other = build(reply), build(reply)
    await bring(folding, ClaimState.HELD)
    await other.ready()
    assert (await other.ask("x")).json()["guarantee"]["evidence"] == "traffic"
    wrong = True
    for number in range(40):
        await other.ask(f"text {number}")
        await other.auditor.settled()
        await other.appender.flush()
        await folding.worker.round()
        if folding.claim.state is ClaimState.SUSPENDED:
            break
    assert folding.claim.state is ClaimState.SUSPENDED
    assert (await folding.ask("after")).json()["reason"] == "shadow"
    # A reading every refresh_s, of at most 2 s.
    await other.worker.round()
    assert (await other.ask("after")).json()["reason"] == "shadow"
    assert EvidenceSettings.model_fields["refresh_s"].metadata[1].le == 2.0


async def test_an_answer_that_is_no_label_is_a_loss_and_its_cost_counts(build: Any) -> None:
    found = build(says())
    await bring(found, ClaimState.HELD)
    found.server.frontier.reply = lambda call: "I would rather not say."
    await found.ask("x")
    await found.settle()
    row = found.audits()[-1]
    assert (row.origin, row.verdict, row.loss, row.label) == ("accepted", "missing", 1.0, None)
    assert row.cost_usd is not None
    assert found.claim.observed_error == 1.0


async def test_refusals_of_the_reference_suspend(build: Any) -> None:
    found = build(says())
    await bring(found, ClaimState.HELD)
    found.server.frontier.reply = lambda call: FrontierInvalidResponse("refused")
    for number in range(40):
        await found.ask(f"text {number}")
        await found.settle()
        if found.claim.state is ClaimState.SUSPENDED:
            break
    assert found.claim.state is ClaimState.SUSPENDED


async def test_a_claim_that_the_budget_leaves_unwatched_ends(build: Any) -> None:
    found = build(says(), ALWAYS.model_copy(update={"max_usd_a_day": 0}))
    await bring(found, ClaimState.HELD)
    calls = len(found.server.frontier.calls)
    answer = (await found.ask("x")).json()
    assert answer["guarantee"]["evidence"] == "traffic"
    await found.settle()
    assert (found.audits()[-1].verdict, found.claim.state) == ("dropped", ClaimState.HELD)
    assert len(found.server.frontier.calls) == calls
    found.now += timedelta(hours=7)
    await found.worker.round()
    assert found.claim.state is ClaimState.SUSPENDED


async def test_another_rule_begins_another_claim(build: Any) -> None:
    """Under other rules the recorded transitions would not follow from the rows."""
    found = build(says())
    name = await bring(found, ClaimState.HELD)
    changed = build(says(), ALWAYS.model_copy(update={"alarm": 500.0, "lease_s": 0.001}))
    found.store.take_lease(found.worker._holder, 0.0)
    await changed.ready()
    assert (await changed.ask("x")).json()["reason"] == "shadow"
    await changed.settle()
    assert len(changed.snapshot.all()) == 2
    assert found.store.states().claims[name].state is ClaimState.HELD


def test_late_and_repeated_verdicts_change_no_ended_claim() -> None:
    end = ClaimEvent("c1", "suspended", "by a test", "narrowgate", AT, 61)
    fold = held([end])
    before = fold.claim
    fold.extend(numbered([served(number) for number in range(50)], 63))
    after = fold.claim
    assert (after.state, after.audits, after.hypotheses) == (
        ClaimState.SUSPENDED, before.audits, before.hypotheses
    )  # fmt: skip
    # Inputs that were drawn in shadow since count.
    fold.extend(numbered([audit("c1", 5000 + number) for number in range(9)], 200))
    assert fold.claim.audits > before.audits


def test_verdicts_in_any_order_lead_to_one_state() -> None:
    rows = [served(number, float(number % 9 == 0)) for number in range(60)]
    mixed = random.Random(3).sample(rows, len(rows))  # noqa: S311  # order of a test
    first, second = held(rows).claim, held(mixed).claim
    assert (first.audits, first.observed_error) == (second.audits, second.observed_error)
    assert first.state is second.state is ClaimState.HELD


@pytest.mark.parametrize("jump", [timedelta(days=-400), timedelta(days=400)])
def test_a_clock_that_jumps_neither_earns_nor_ends(jump: timedelta) -> None:
    """Hours of evidence never fall, and one far input is no span of traffic by itself."""
    rows = [served(1), served(2, drawn_at=AT + jump, judged_at=AT + jump), served(3)]
    assert held(rows).claim.state is ClaimState.HELD
    slow = EARLY.model_copy(update={"min_span_h": 1.0})
    fold = ClaimFold(defined(settings=slow), slow)
    back = [audit("c1", number, drawn_at=AT - timedelta(seconds=number)) for number in range(200)]
    fold.extend(numbered([opening("c1"), *back]))
    assert fold.claim.state is ClaimState.SHADOW


def test_a_flood_of_one_input_counts_once_for_earning_and_as_drawn_for_watching() -> None:
    fold = ClaimFold(defined(), EARLY)
    flood = [audit("c1", number, text="the same") for number in range(500)]
    fold.extend(numbered([opening("c1"), *flood]))
    assert (fold.claim.state, fold.claim.audits) == (ClaimState.SHADOW, 1)
    watched = held([served(number, text="the same") for number in range(30)])
    assert watched.claim.audits == 30


def test_a_burst_of_one_client_is_one_example() -> None:
    rules = EARLY.model_copy(update={"group_window_s": 10.0})
    fold = ClaimFold(defined(settings=rules), rules)
    burst = [audit("c1", number, group=f"g{number // 50}") for number in range(500)]
    fold.extend(numbered([opening("c1"), *burst]))
    assert fold.claim.state is ClaimState.SHADOW
    assert fold.claim.audits <= 10


def test_easy_inputs_first_and_hard_ones_later_are_noticed() -> None:
    """The attack's delay is one of audits: at a share of 2 %, 50 times as many inputs."""
    draw = random.Random(11)  # noqa: S311  # data of a test
    delays = []
    for _ in range(20):
        fold, count = held(), 0
        while fold.claim.state is ClaimState.HELD:
            count += 1
            fold.add(numbered([served(count, float(draw.random() < 0.6))], 100 + count)[0])
        delays.append(count)
    assert sorted(delays)[10] <= 30
    assert max(delays) <= 100


def test_rows_of_a_claim_registered_meanwhile_are_not_lost(database: Database) -> None:
    """A replica registers a claim after the folding one has listed the claims."""
    other = EvidenceStore(database)
    other.register([defined()])

    class Listing(EvidenceStore):
        def rows_after(self, sequence: int, claim: str | None = None) -> Any:
            if not any(item.id == "c2" for item in other.definitions()):
                other.register([defined("c2")])
                other.append(events=[opening("c2")])
                other.append([audit("c2", number) for number in range(60)])
            return super().rows_after(sequence, claim)

    worker(Listing(database)).round_blocking()
    assert other.states().claims["c2"].state is ClaimState.HELD


def test_a_transition_that_two_replicas_recorded_is_one(store: EvidenceStore) -> None:
    """A replica was stopped in the middle of its folding, lost the lease, and went on."""
    store.append(events=[opening("c1")])
    store.append([audit("c1", number) for number in range(60)])
    worker(store).round_blocking()
    (earned,) = [
        row for row in store.rows_after(0) if isinstance(row, ClaimEvent) and row.kind == "earned"
    ]
    old = store.states().claims["c1"]
    store.append([audit("c1", 61)])
    store.append(events=[earned])
    store.take_lease("nobody", 0.0)
    fold = ClaimFold(defined(), EARLY).extend(store.rows_after(0))
    assert fold.is_reproduced
    assert fold.claim.state is ClaimState.HELD
    # Nor does its older state replace the newer one.
    store.save([fold.claim])
    store.save([old])
    assert store.states().claims["c1"] == fold.claim


async def test_rows_wait_while_the_database_is_unreachable(
    database: Database, store: EvidenceStore, state: Path
) -> None:
    written: list[int] = []
    own = opened(None, state)
    appender = EvidenceAppender(EvidenceStore(own), lambda: written.append(1))
    appender.append(audit("c1", 1))
    with database.begin():  # SQLite has one writer.
        assert not await appender.flush()
    appender.append(audit("c1", 2))
    assert await appender.flush()
    own.close()
    rows = [row for row in store.rows_after(0) if isinstance(row, Audit)]
    assert [row.input for row in rows] == ["i1", "i2"]
    assert (written, appender.lost) == ([1], 0)


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.unit.authenticated import opened
from tests.unit.evidence_kit import AT, audit
from serving.evidence.store import EvidenceStore
from serving.evidence.worker import EvidenceWorker

store = EvidenceStore(opened(None, Path(sys.argv[1])))
store.draw([audit("c1", 1), audit("c1", 2)])
store.append([audit("c1", 1)])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_killed_between_an_audit_and_its_row(store: EvidenceStore, state: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(state)], check=False)
    assert done.returncode == -signal.SIGKILL
    worker(store).round_blocking()
    rows = [row for row in store.rows_after(0) if isinstance(row, Audit)]
    assert [(row.input, row.verdict) for row in rows] == [("i1", "same"), ("i2", "dropped")]
    assert store.missed(timedelta(0)) == []


def test_a_replica_cut_off_from_the_database_stops_relying_on_claims(store: EvidenceStore) -> None:
    from .evidence_kit import Clock, worker

    clock = Clock()
    snapshot = ClaimSnapshot(30.0, clock)
    store.append(events=[opening("c1")])
    store.append([audit("c1", number) for number in range(60)])
    worker(store, clock=clock, snapshot=snapshot).round_blocking()
    assert snapshot.find("c1") is not None
    clock.now_s += 30.5
    assert snapshot.find("c1") is None
    assert not snapshot.is_fresh


class _Rounds(Transitions):
    def __init__(self) -> None:
        super().__init__()
        self.ended = asyncio.Event()

    def claims_changed(self, claims: Any) -> None:
        self.ended.set()


@pytest.mark.parametrize("steps", range(5))
async def test_a_watch_that_is_cancelled_as_it_is_woken_ends(
    store: EvidenceStore, steps: int
) -> None:
    rounds, clock = _Rounds(), Clock()
    found = EvidenceWorker(store, EARLY, ClaimSnapshot(30.0, clock), rounds, clock)
    watch = asyncio.create_task(found.watch())
    await rounds.ended.wait()
    found.wake()
    for _ in range(steps):
        await asyncio.sleep(0)
    watch.cancel()
    done, _ = await asyncio.wait({watch}, timeout=GUARD_S)
    assert done
