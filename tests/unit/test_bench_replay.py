"""The cost replay: its mix, its bookkeeping, and that each lever's switch does what it says."""

import argparse
import json
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from benchmarks.replay import SIMULATION, chosen, document, lines, plot, run_arms
from benchmarks.replay_arms import LEVERS, Arm, Lever, Replay, Result, direct, run_arm
from benchmarks.replay_assumptions import Assumptions, Values
from benchmarks.replay_figures import by_removal, figures
from benchmarks.replay_mix import Request, build_mix
from benchmarks.replay_provider import RIGHT, WRONG, ReplayModel
from serving.context.pairs import shipped_pairs
from serving.contracts.settings import Settings
from serving.ledger.pricing.book import PriceBook

REFERENCE = "anthropic/claude-opus-5-5"
CENTRAL = Assumptions().at("central")
ARGS = argparse.Namespace(seed=1, end="central")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replay")


def replay_of(
    requests: list[Request], folder: Path, reference: str = REFERENCE, **changed: float
) -> Replay:
    values = Values({**CENTRAL.by_name, **changed})
    return Replay(requests, values, Settings(), PriceBook.load(), reference, folder)


@cache
def mix() -> tuple[Request, ...]:
    return tuple(build_mix(400, CENTRAL, 1))


def of_kind(kind: str, count: int) -> list[Request]:
    return [one for one in mix() if one.kind == kind][:count]


def usd(arm: Arm) -> float:
    return sum(one.usd for one in arm.results)


@pytest.mark.parametrize("end", ["low", "central", "high"])
def test_the_mix_has_its_shares_and_a_repeat_follows_its_original(end: str) -> None:
    values = Assumptions().at(end)  # type: ignore[arg-type]
    found = build_mix(2000, values, 1)
    assert found == build_mix(2000, values, 1)
    assert len(found) == 2000
    kinds = Counter(one.kind for one in found)
    assert kinds["narrow"] == round(2000 * values["narrow"])
    single = sum(one.kind != "turns" for one in found)
    assert sum(one.is_repeat for one in found) == pytest.approx(single * values["repeats"], abs=3)
    assert [one.at_s for one in found] == sorted(one.at_s for one in found)
    seen: dict[str, Request] = {}
    paraphrased = 0
    for one in found:
        if one.is_repeat:
            paraphrased += one.messages != seen[one.key].messages
        elif one.kind != "turns":
            assert one.key not in seen
            seen[one.key] = one
    assert paraphrased == pytest.approx(single * values["repeats"] / 3, abs=5)


def test_a_context_holds_its_answers() -> None:
    pairs = {pair.question for half in ("fit", "held_out") for pair in shipped_pairs(half)}
    for one in of_kind("rag", 20):
        text = one.messages[-1]["content"]
        assert text.rpartition("\n")[2] in pairs
        assert one.needs
        assert all(any(a.casefold() in text.casefold() for a in need) for need in one.needs)


def test_the_direct_arm_is_the_bill_of_its_answers(folder: Path) -> None:
    requests = of_kind("open", 5)
    replay = replay_of(requests, folder)
    arm = direct(replay)
    model = ReplayModel(requests, replay.values, replay.tier_of())
    for one, result in zip(requests, arm.results, strict=True):
        text = model.whole(one, "frontier", json.dumps(one.messages))
        assert text.endswith((RIGHT, WRONG))
        # 4 dollars a million tokens in, 20 out.
        assert result.usd == pytest.approx(-(-len(text) // 4) * 20e-6, rel=0.05)


def test_a_shorter_context_a_directive_and_a_cheaper_tier_change_the_answer(folder: Path) -> None:
    (one,) = of_kind("rag", 1)
    model = ReplayModel([one], Values({**CENTRAL.by_name, "right_frontier": 1.0}), {})
    whole = json.dumps(one.messages, ensure_ascii=False)
    assert model.whole(one, "frontier", whole).endswith(RIGHT)
    assert model.whole(one, "frontier", "[...]").endswith(WRONG)
    brief = model.whole(one, "frontier", f"Answer briefly: at most 40 words. {whole}")
    assert len(brief) == pytest.approx(0.75 * len(model.whole(one, "frontier", whole)), abs=4)


CASES: dict[Lever, tuple[str, int]] = {
    "exact_cache": ("medium", 20), "local_tasks": ("narrow", 20), "context_pruning": ("rag", 8),
    "prompt_caching": ("turns", 30), "output_bounds": ("open", 40), "tiers": ("open", 8),
}  # fmt: skip


@pytest.mark.parametrize("lever", LEVERS)
def test_each_lever_saves_where_it_applies_and_nothing_without_it(
    folder: Path, lever: Lever
) -> None:
    kind, count = CASES[lever]
    requests = of_kind(kind, count)
    if lever == "exact_cache":
        requests = [requests[n // 2] for n in range(count)]
    replay = replay_of(requests, folder)
    paid, off, on = direct(replay), run_arm(replay, "off", ()), run_arm(replay, "on", (lever,))
    # Without a lever the stack costs what the client pays; its own processor time is added.
    assert usd(off) == pytest.approx(usd(paid), rel=0.02)
    # Half of the requests of a cold start get no directive.
    assert usd(on) < (0.98 if lever == "output_bounds" else 0.95) * usd(off)
    found = figures(paid, on, 0.1)
    assert found.saved == pytest.approx(1 - usd(on) / usd(paid))
    assert found.saved_bounds[0] <= found.saved <= found.saved_bounds[1]
    if lever in ("exact_cache", "prompt_caching"):
        assert found.loss == 0.0


def test_a_wordy_cheaper_model_and_a_model_that_does_not_obey_save_less(folder: Path) -> None:
    requests = of_kind("open", 8)
    usual = replay_of(requests, folder)
    wordy = replay_of(requests, folder, wordy_standard=4.0)
    paid = usd(direct(usual))
    assert usd(run_arm(usual, "on", ("tiers",))) < 0.8 * paid
    assert usd(run_arm(wordy, "on", ("tiers",))) > 1.2 * paid
    deaf = replay_of(requests, folder, directed=1.0)
    assert usd(run_arm(deaf, "on", ("output_bounds",))) > 0.98 * paid


def test_idle_local_hardware_is_a_cost(folder: Path) -> None:
    replay = replay_of(of_kind("narrow", 12), folder, local_coverage=1.0)
    paid, on = direct(replay), run_arm(replay, "on", ("local_tasks",))
    assert Counter(one.route for one in on.results) == {"local": 12}
    assert on.local_s == pytest.approx(12 * CENTRAL["local_s"])
    found = figures(paid, on, 1.006)
    idle_usd = (on.span_s - on.local_s) * 1.006 / 3600
    assert found.saved - found.saved_with_idle == pytest.approx(idle_usd / usd(paid))


def _arm(levers: tuple[Lever, ...], cost: float) -> Arm:
    results = [Result("open", str(n), cost, 1.0, is_right=True, route="frontier") for n in range(9)]
    return Arm("x", levers, tuple(results))


def test_the_levers_add_up_to_all_of_them() -> None:
    arms = [_arm(LEVERS[:n], 1.0 - n * n / 100) for n in range(len(LEVERS) + 1)]
    found = by_removal(arms)
    assert list(found) == list(LEVERS)
    assert sum(found.values()) == pytest.approx(0.36)
    assert found["tiers"] == pytest.approx(0.11)
    assert by_removal(arms[:-1]) == {}


def test_the_interval_is_over_conversations() -> None:
    draw = np.random.default_rng(1)
    names = [str(n // 10) for n in range(200)]
    saves = {name: draw.random() < 0.5 for name in set(names)}

    def arm(cost: dict[str, float], distinct: bool) -> Arm:
        results = [
            Result("open", f"{name}{n if distinct else ''}", cost[name], 1.0, True, "frontier")
            for n, name in enumerate(names)
        ]
        return Arm("x", (), tuple(results))

    full, half = dict.fromkeys(saves, 1.0), {name: 0.0 if s else 1.0 for name, s in saves.items()}
    widths = []
    for distinct in (False, True):
        found = figures(arm(full, distinct), arm(half, distinct), 0.0)
        low, high = found.saved_bounds
        assert low < found.saved < high
        widths.append(high - low)
    assert widths[0] > 2 * widths[1]


def test_the_report_says_that_it_is_a_simulation_and_names_each_assumption(folder: Path) -> None:
    replay = replay_of(of_kind("medium", 6), folder)
    arms = dict(run_arms(replay, {"all": LEVERS, "same": LEVERS, "later": ()}, {}, 1))
    assert list(arms) == ["direct", "all", "same"]
    assert arms["same"] == replace(arms["all"], name="same")
    found = document(replay, arms, ARGS)
    json.dumps(found)
    text = "\n".join(lines(found))
    assert text.startswith(SIMULATION)
    for name, value in Assumptions().rows():
        assert f"assumed {name}: " in text
        assert value.source in text
        assert value.low <= value.central <= value.high or (
            value.low >= value.central >= value.high
        ) or name.endswith("_tokens")  # fmt: skip
    assert plot(found).startswith("<svg")


def test_the_sets_of_arms_are_complete() -> None:
    names = chosen("all")
    assert len(names) == 1 + 5 + 6 + 6
    assert all(set(levers) <= set(LEVERS) for levers in names.values())
    assert names["all less tiers"] == names["up to output_bounds"]
