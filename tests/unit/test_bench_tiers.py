"""Tiers earned per cluster, simulated: the best assignment, within the target, paid back."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.tiers_clusters import measured
from benchmarks.tiers_simulation import TARGET, Quality, Result, Simulation, Topic

# A simulation calls the product's statistics a hundred thousand times, whose own tests cover them.
pytestmark = pytest.mark.no_cover

SEEDS = 10
"""Fixed ones: every run must hold."""


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return [Simulation().run(seed) for seed in range(SEEDS)]


def test_5000_requests_find_the_best_tier_of_each_topic(results: list[Result]) -> None:
    assert sum(result.is_best for result in results) == SEEDS


def test_cheaper_answers_stay_within_the_target_in_each_topic(results: list[Result]) -> None:
    within = [
        all(result.losses[name] / count <= TARGET for name, count in result.served.items())
        for result in results
    ]
    assert sum(within) == SEEDS
    # The trap is served by the reference alone.
    assert all("moral scenarios" not in result.served for result in results)


def test_exploration_pays_back_within_the_run(results: list[Result]) -> None:
    assert sum(result.paid_back_at is not None for result in results) == SEEDS
    assert all(result.explored_usd > 0.0 for result in results)
    assert sum(result.saving > 0.15 for result in results) == SEEDS


def test_nothing_is_explored_without_a_budget_or_a_payback() -> None:
    for simulation in (
        Simulation(requests=1500, budget_usd_a_day=type(Simulation().budget_usd_a_day)(0)),
        Simulation(requests=1500, payback_days=0.01),
    ):
        found = simulation.run(1)
        assert found.explored == 0
        assert set(found.assignment.values()) == {"frontier"}
        assert found.spent_usd == pytest.approx(found.reference_usd)


def test_where_every_cheaper_tier_is_bad_little_is_spent_on_finding_out() -> None:
    bad = Quality(0.45, 0.01, 0.8)
    topics = [Topic(f"t{n}", bad, bad, "frontier") for n in range(3)]
    found = Simulation(topics=topics, requests=3000).run(2)
    assert found.served == {}
    assert found.explored_usd < 0.05 * found.reference_usd


def test_of_a_conversation_only_what_is_evidence_is_explored_and_paid() -> None:
    good = Quality(0.0)
    topics = [Topic("t", good, good, "economy", counted=counted) for counted in (1.0, 0.25)]
    found = [Simulation(topics=[topic], requests=70, payback_days=365).run(1) for topic in topics]
    whole, some = (result.explored for result in found)
    assert 0.1 * whole < some < 0.5 * whole
    assert found[1].explored_usd < 0.5 * found[0].explored_usd


def test_clusters_find_the_topic_in_which_a_cheap_model_is_as_good(
    tmp_path: Path, state: Path
) -> None:
    rng = np.random.default_rng(1)
    rows = []
    for number in range(680):
        is_code = number % 2 == 0
        prompt = "Write a Python function, {}" if is_code else "Write a poem for my aunt, {}"
        cheap = bool(is_code or rng.random() < 0.4)
        rows.append({
            "prompt": prompt.format(number), "subject": str(is_code), "cheap": cheap, "dear": True
        })  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    found = measured(file, state, splits=2)["subject"]
    assert found.share[0] == pytest.approx(0.5, abs=0.1)
    assert found.lost[0] == 0.0
    assert found.at_random[0] > 0.1
