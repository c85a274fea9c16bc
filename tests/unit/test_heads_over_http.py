"""A task of the user's own, made from one YAML file, from its first request to its head's claim."""

import asyncio
import shutil
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from serving.contracts.answer import Usage
from serving.contracts.evidence import Audit, ClaimState
from serving.ledger.schema import evidence_lease

from ..provider.server import ProviderServer
from . import frontier_kit, head_server
from .authenticated import opened
from .head_server import REFERENCE, SETTINGS, SUBJECTS, TASK, HeadServer, ReferenceModel, inputs

Started = Callable[[], Awaitable[HeadServer]]


@asynccontextmanager
async def replicas(
    state: Path, reference: ReferenceModel, provider: ProviderServer
) -> AsyncIterator[Started]:
    """Yield what starts a replica over the state folder."""
    database = opened(None, state)
    specs = head_server.own_task(state / "tasks")
    provider.script.answer = reference.answer
    try:
        async with frontier_kit.frontier(frontier_kit.settings(provider)) as frontier:

            async def started() -> HeadServer:
                found = HeadServer(specs, database, state, frontier, SETTINGS)
                await found.server.ready()
                await found.settle()
                return found

            yield started
    finally:
        database.close()


@pytest.fixture
def reference() -> ReferenceModel:
    return ReferenceModel()


@pytest.fixture
async def replica(
    state: Path, reference: ReferenceModel, provider: ProviderServer
) -> AsyncIterator[Started]:
    async with replicas(state, reference, provider) as started:
        yield started


@pytest.fixture(scope="module")
def earned_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state folder with a held claim, once the first test that needs it has filled it."""
    return tmp_path_factory.mktemp("earned") / "state"


@pytest.fixture
async def earned(
    state: Path, earned_state: Path, reference: ReferenceModel, provider: ProviderServer
) -> AsyncIterator[Started]:
    """Start replicas over a copy of one state: a fit takes minutes on a busy machine."""
    if not await asyncio.to_thread(earned_state.exists):
        made = earned_state.with_name("unfinished")
        async with replicas(made, reference, provider) as started:
            server = await started()
            await earn(server, inputs(2))
            with server.evidence.store.database.begin() as connection:
                # The replica is gone: another one need not wait for the end of its lease.
                connection.execute(delete(evidence_lease))
        await asyncio.to_thread(made.rename, earned_state)
        reference.asked.clear()
    await asyncio.to_thread(shutil.copytree, earned_state, state)
    async with replicas(state, reference, provider) as started:
        yield started


async def asked(server: HeadServer, rows: list[tuple[str, str]]) -> list[dict[str, Any]]:
    found = [await server.ask(text) for text, _ in rows]
    await server.settle()
    return found


async def earn(server: HeadServer, stream: Iterator[tuple[str, str]]) -> None:
    """Send inputs until the head's claim is held."""
    await asked(server, [next(stream) for _ in range(120)])
    await server.fit()
    for _ in range(10):
        if server.claim.state is ClaimState.HELD:
            break
        await asked(server, [next(stream) for _ in range(20)])
    assert server.claim.state is ClaimState.HELD


def p50_ms(seconds: list[float]) -> float:
    return 1000 * statistics.median(seconds)


async def timed(server: HeadServer, rows: list[tuple[str, str]]) -> list[float]:
    found = []
    for text, _ in rows:
        began = time.perf_counter()
        await server.ask(text)
        found.append(time.perf_counter() - began)
    await server.settle()
    return found


async def test_a_task_of_one_yaml_file_earns_a_head(
    replica: Started, reference: ReferenceModel
) -> None:
    server, stream = await replica(), inputs(1)
    text, label = next(stream)
    answer = await server.ask(text)
    # No gate, no examples, no head: the reference answers, from the first request on.
    assert (answer["value"], answer["route"], answer["model"]) == (label, "frontier", REFERENCE)
    assert answer["reason"] == "not_attested"
    assert answer["guarantee"]["evidence"] == "none"
    await server.settle()
    assert server.claim.state is ClaimState.SHADOW
    before = await timed(server, [next(stream) for _ in range(20)])
    await earn(server, stream)
    claim = server.claim
    assert claim.action is not None
    assert claim.action.candidate == "head@1"
    asked_before = len(reference.asked)
    rows = [next(stream) for _ in range(100)]
    answers = [await server.ask(text) for text, _ in rows]
    served = [
        (answer, label) for answer, (_, label) in zip(answers, rows, strict=True)
        if answer["route"] == "local"
    ]  # fmt: skip
    assert len(served) >= 30
    for answer, _ in served:
        assert answer["model"] == f"head:{TASK}@1"
        assert answer["guarantee"]["evidence"] == "traffic"
        assert answer["guarantee"]["claim"] == claim.id
        assert set(answer["label_probabilities"]) == set(SUBJECTS)
        assert answer["below_threshold"] is False
    exits = [page.exit for page in server.server.ledger.pages if page.exit is not None]
    for exit_ in exits:
        if exit_.model == f"head:{TASK}@1":
            # The client used no token; the report counts those that the reference would have used.
            assert exit_.usage == Usage(uncached_input_tokens=0, output_tokens=0)
            assert exit_.reference_usage is not None
            assert exit_.reference_usage.uncached_input_tokens >= 20
            assert exit_.reference_usage.output_tokens >= 4
    wrong = sum(answer["value"] != label for answer, label in served)
    assert wrong <= claim.target_error * len(served)
    # Inputs that the head did not cover went to the reference, and a share of the rest is audited.
    await server.settle()
    assert len(reference.asked) - asked_before >= len(rows) - len(served)
    after = await timed(server, [next(stream) for _ in range(20)])
    print(
        f"p50 {p50_ms(before):.1f} ms in shadow, {p50_ms(after):.1f} ms under the claim; "
        f"{len(served)} of {len(rows)} covered, {wrong} wrong"
    )


async def test_a_head_survives_a_restart_and_serves_in_every_replica(earned: Started) -> None:
    server, stream = await earned(), inputs(5)
    assert server.claim.state is ClaimState.HELD
    other = await earned()
    assert other.claim == server.claim
    answers = [await other.ask(next(stream)[0]) for _ in range(20)]
    assert f"head:{TASK}@1" in {answer["model"] for answer in answers}


async def test_deleting_a_tenant_deletes_its_heads_and_the_reference_answers(
    earned: Started,
) -> None:
    server, stream = await earned(), inputs(3)
    assert server.heads.heads.listed()
    response = await server.server.client.delete("/v1/admin/evidence?tenant=default")
    assert response.status_code == 200, response.text
    assert response.json()["examples"] >= 120
    assert server.heads.heads.listed() == []
    await server.settle()
    # The claim begins anew, without what was deleted.
    answers = await asked(server, [next(stream) for _ in range(5)])
    assert {answer["route"] for answer in answers} == {"frontier"}
    await asked(server, [next(stream) for _ in range(5)])
    assert server.claim.state is ClaimState.SHADOW
    assert server.claim.hypotheses == 0


async def test_a_reference_that_changes_its_labels_suspends_the_claim(
    earned: Started, reference: ReferenceModel
) -> None:
    server, stream = await earned(), inputs(4)
    reference.is_wrong = True
    for _ in range(30):
        await asked(server, [next(stream) for _ in range(20)])
        if server.claim.state is ClaimState.SUSPENDED:
            break
    assert server.claim.state is ClaimState.SUSPENDED
    answer = await server.ask(next(stream)[0])
    assert answer["route"] == "frontier"


async def test_inputs_that_may_not_leave_neither_teach_nor_reach_the_reference(
    replica: Started, reference: ReferenceModel
) -> None:
    server = await replica()
    response = await server.server.post(
        f"/v1/tasks/{TASK}", json={"input": "my secret printer"},
        headers={"x-narrowgate-route": "local_only"},
    )  # fmt: skip
    assert response.status_code == 409
    assert response.json()["error"]["code"] == "task_not_attested"
    await server.settle()
    assert reference.asked == []
    assert [row for row in server.evidence.store.rows_after(0) if isinstance(row, Audit)] == []
