"""Evidence over real HTTP: a claim earned, broken by a shift, suspended, through a kill -9."""

import asyncio
from pathlib import Path

import pytest

from . import evidence_proof
from .evidence_proof import TARGET, Plan, rows_of

pytestmark = [pytest.mark.stack, pytest.mark.timeout(3600)]


def prove(plan: Plan, folder: Path, *, with_ray: bool) -> tuple[dict[str, object], str]:
    with evidence_proof.running(plan, folder, with_ray=with_ray) as proof:
        asyncio.run(proof.run())
        return proof.figures(), proof.gateway.command("report")


def test_a_task_of_20_labels_earns_its_head_and_loses_it_after_a_shift(tmp_path: Path) -> None:
    plan = Plan(rows_of(1500, None), shift_at=120, kill_at=60, earn_again=False)
    # The slow test below has Ray Serve start the killed replica again.
    found, report = prove(plan, tmp_path, with_ray=False)
    assert evidence_proof.is_kept(found), found
    assert found["killed_after"] is not None
    assert "live evidence" in report
    print(found)


@pytest.mark.slow
def test_4000_inputs_keep_their_target_and_the_claim_is_earned_again(tmp_path: Path) -> None:
    plan = Plan(rows_of(4000, None), shift_at=400, kill_at=200)
    found, report = prove(plan, tmp_path, with_ray=True)
    assert evidence_proof.is_kept(found), found
    assert found["inputs"] == 4000
    assert found["earned_again_after"] is not None
    error = found["error_covered_again"]
    assert isinstance(error, float)
    assert error <= TARGET
    assert "live evidence" in report
    print(found)
