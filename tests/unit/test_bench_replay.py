"""The cost replay: its mix, its bookkeeping, and that each lever's switch does what it says."""

import argparse
import json
import time
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from benchmarks import replay_ranges
from benchmarks.replay import SIMULATION, UNEARNED, chosen, document, lines, plot, run_arms
from benchmarks.replay_arms import Arm, Result, direct, run_arm
from benchmarks.replay_assumptions import Assumptions
from benchmarks.replay_coins import RequestCoins
from benchmarks.replay_earning import Earned
from benchmarks.replay_figures import by_removal, effect, figures, month
from benchmarks.replay_mix import Request, build_mix
from benchmarks.replay_provider import ReplayModel, right, wrong
from benchmarks.replay_setup import EARNED, LEVERS, Lever, Replay
from benchmarks.tiers_simulation import AT
from serving.context.pairs import shipped_pairs
from serving.contracts.settings import Settings
from serving.embedding.embedder import build_embedder
from serving.evidence.judge import JudgedAnswers, prompt_of
from serving.evidence.pacing import coin
from serving.ledger.pricing.book import PriceBook
from serving.savings.detection import RememberingEmbedder

from ..provider.script import Seen
from .made_encoder import encoder_state

REFERENCE = "anthropic/claude-opus-5-5"
CENTRAL = Assumptions().at("central")
ARGS = argparse.Namespace(seed=1, end="central")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replay")


def replay_of(
    requests: list[Request],
    folder: Path,
    reference: str = REFERENCE,
    days: float = 1.0,
    **changed: float,
) -> Replay:
    values = CENTRAL.but(**changed)
    own = folder / str(time.monotonic_ns())
    own.mkdir()
    found = Replay(requests, values, Settings(), PriceBook.load(), reference, own, days)
    found.__dict__["embedder"] = embedder()
    return found


@cache
def embedder() -> RememberingEmbedder:
    return RememberingEmbedder(build_embedder(encoder_state()))


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
        assert text.endswith((right(one.key), wrong(one.key)))
        # 4 dollars a million tokens in, 20 out.
        assert result.usd == pytest.approx(-(-len(text) // 4) * 20e-6, rel=0.05)


def test_a_shorter_context_a_directive_and_a_cheaper_tier_change_the_answer(folder: Path) -> None:
    (one,) = of_kind("rag", 1)
    model = ReplayModel([one], CENTRAL.but(right_frontier=1.0), {})
    whole = json.dumps(one.messages, ensure_ascii=False)
    assert model.whole(one, "frontier", whole).endswith(right(one.key))
    assert model.whole(one, "frontier", "[...]").endswith(wrong(one.key))
    brief = model.whole(one, "frontier", f"Answer briefly: at most 40 words. {whole}")
    assert len(brief) == pytest.approx(0.75 * len(model.whole(one, "frontier", whole)), abs=4)


CASES: dict[Lever, tuple[str, int]] = {
    "exact_cache": ("medium", 20), "local_tasks": ("narrow", 20), "context_pruning": ("rag", 8),
    "prompt_caching": ("turns", 30), "output_bounds": ("open", 30), "tiers": ("open", 120),
    "similar_cache": ("open", 8),
}  # fmt: skip


@pytest.mark.parametrize("lever", LEVERS)
def test_each_lever_saves_where_it_applies_and_nothing_without_it(
    folder: Path, lever: Lever
) -> None:
    kind, count = CASES[lever]
    requests = of_kind(kind, count)
    if lever == "exact_cache":
        requests = [requests[n // 2] for n in range(count)]
    if lever == "similar_cache":
        requests = [reworded(one) if again else one for one in requests for again in (0, 1)]
    # One topic, in which the cheap tiers are as good.
    replay = replay_of(requests, folder, days=2.0)
    if lever == "tiers":
        replay = replay_of(requests, folder, days=2.0, easy=1.0, trap=0.0, easy_economy=0.0)
    paid, off, on = direct(replay), run_arm(replay, "off", ()), run_arm(replay, "on", (lever,))
    # Without a lever the stack costs what the client pays; its own processor time is added.
    assert usd(off) == pytest.approx(usd(paid), rel=0.02)
    assert usd(on) < 0.95 * usd(off)
    found = figures(paid, on, 0.1)
    assert found.saved == pytest.approx(1 - usd(on) / usd(paid))
    assert found.saved_bounds[0] <= found.saved <= found.saved_bounds[1]
    if lever in ("exact_cache", "similar_cache", "prompt_caching"):
        assert found.loss == 0.0
    assert bool(on.earned) == (lever in EARNED)
    if lever == "context_pruning":
        (contexts,) = on.earned
        assert [state for state, _ in contexts.states.values()] == ["held"]
        assert contexts.net_usd > 0.0
    if lever == "output_bounds":
        (briefs,) = on.earned
        assert [state for state, _ in briefs.states.values()] == ["held"]
        assert briefs.net_usd > 0.0
        # Lengths are known: all but the holdout are asked for brevity, and nothing is cut for good.
        assert usd(on) < 0.85 * usd(off)
        assert found.loss <= 2 / len(requests)
    if lever == "tiers":
        # Audits of what cheaper tiers answer are paid for, and no client waits for them.
        assert found.behind > 0.0
        assert found.p95_s < figures(paid, off, 0.1).p95_s


def reworded(one: Request) -> Request:
    (message,) = one.messages
    text = f"Hello! {message['content']}"
    return replace(one, messages=({**message, "content": text},), is_repeat=True)


def test_another_questions_answer_is_wrong_and_the_judge_says_so(folder: Path) -> None:
    first, second = of_kind("open", 2)
    replay = replay_of([first, second], folder)
    model = ReplayModel([first, second], replay.values.but(slip=0.0, place=0.0), {})
    texts = [model.whole(one, "frontier", "") for one in (first, second)]
    own, other = (f"a {right(one.key)}" for one in (first, second))
    assert texts[0].endswith((right(first.key), wrong(first.key)))
    assert not other.endswith(right(first.key))
    for parts, verdict in (
        ((own, own), "equal"), ((own, other), "second_is_wrong"), ((other, own), "first_is_wrong"),
    ):  # fmt: skip
        answers = JudgedAnswers("q", *parts)
        body = prompt_of(answers, shortcut_first=True).body["messages"]
        seen = Seen("anthropic", {}, {"system": body[0]["content"], "messages": body[1:]}, "", "")
        model.ask(first)
        assert json.loads(model.answer(seen)) == {"verdict": verdict}


def test_a_model_that_does_not_obey_and_a_bad_cheaper_tier_save_nothing(folder: Path) -> None:
    requests = of_kind("open", 16)
    deaf = replay_of(requests, folder, directed=1.0)
    paid = usd(direct(deaf))
    assert usd(run_arm(deaf, "on", ("output_bounds",))) > 0.98 * paid
    # Nothing is shortened: comparing stops, because it does not pay.
    briefs = deaf.briefs_earned(with_tiers=False)
    assert all(state.endswith(", slowed") for state, _ in briefs.states.values())
    assert briefs.answers_usd == pytest.approx(briefs.reference_usd)
    assert 0.0 < briefs.explored_usd + briefs.audited_usd < 0.05 * briefs.reference_usd
    bad = replay_of(requests, folder, days=2.0, easy=0.0, trap=1.5)
    arm = run_arm(bad, "on", ("tiers",))
    assert usd(arm) > 0.99 * paid
    assert set(bad.earned.tiers or {}) == {"frontier"}
    assert bad.earned.explored_usd > 0.0
    assert figures(direct(bad), arm, 0.1).loss == 0.0


def test_a_cascade_saves_where_the_cheapest_tier_is_not_earned(folder: Path) -> None:
    requests = of_kind("open", 24)
    # In every topic the cheapest tier is wrong too often, and disagrees with itself where it is.
    hard = {"easy": 0.0, "trap": 0.0, "slip": 0.0, "agree_right": 1.0, "agree_wrong": 0.0}
    replay = replay_of(requests, folder, days=2.0, **hard)  # type: ignore[arg-type]
    without = run_arm(replay, "tiers", ("tiers",))
    cascaded = run_arm(replay, "cascade", ("tiers", "cascade"))
    assert "economy" not in replay.earned.present.values()
    assert replay.cascades_earned.hits_usd > 0.0
    assert usd(cascaded) < 0.9 * usd(without)
    # Two cheap answers come before the reference's.
    slow = [one.latency_s for one in cascaded.results if one.is_right]
    assert max(slow) > max(one.latency_s for one in without.results)
    deaf = replay_of(requests, folder, days=2.0, **{**hard, "agree_wrong": 1.0})  # type: ignore[arg-type]
    # Whether two answers agree changes nothing but a cascade: tiers are earned and served as above.
    deaf.__dict__.update(topics=replay.topics, earned=replay.earned)
    assert usd(run_arm(deaf, "cascade", ("tiers", "cascade"))) == pytest.approx(
        usd(without), rel=0.4
    )


def test_answers_that_brevity_makes_worse_are_not_asked_for_briefly(folder: Path) -> None:
    requests = of_kind("open", 16)
    replay = replay_of(requests, folder, days=2.0, brief_lost=0.2, right_frontier=1.0)
    found = replay.briefs_earned(with_tiers=False)
    assert all(state.startswith("not_earnable") for state, _ in found.states.values())
    arm = run_arm(replay, "on", ("output_bounds",))
    assert usd(arm) > 0.99 * usd(direct(replay))
    assert all(one.is_right for one in arm.results)
    (one,) = of_kind("open", 1)
    model = ReplayModel([one], CENTRAL.but(brief_lost=1.0, right_frontier=1.0), {})
    assert model.whole(one, "frontier", "").endswith(right(one.key))
    assert model.whole(one, "frontier", "Answer briefly.").endswith(wrong(one.key))


def test_contexts_whose_judge_is_dear_or_wrong_are_not_pruned(folder: Path) -> None:
    requests = of_kind("rag", 8)
    replay = replay_of(requests, folder, days=2.0)
    prices = replay.rungs.judge.prices
    dear = replace(
        prices, uncached_input=prices.uncached_input * 200, output=prices.output * 200
    )  # fmt: skip
    replay.__dict__["rungs"] = replace(replay.rungs, judge=replace(replay.rungs.judge, prices=dear))
    found = replay.contexts_earned(with_tiers=False)
    assert {state for state, _ in found.states.values()} == {"shadow, slowed"}
    # Comparing stopped soon: the budget of two days would have paid for more.
    assert found.answers_usd == pytest.approx(found.reference_usd)
    assert found.explored_usd > 0.0
    assert found.hits < 100
    arm = run_arm(replay, "on", ("context_pruning",))
    assert usd(arm) > 0.99 * usd(direct(replay))
    missed = [replace(one, needs=(("never said",),)) for one in requests]
    lost = replay_of(missed, folder, days=2.0).contexts_earned(with_tiers=False)
    assert {state for state, _ in lost.states.values()} == {"not_earnable"}


def test_without_earlier_traffic_nothing_is_earned_and_exploring_costs(folder: Path) -> None:
    requests = of_kind("open", 16)
    cold = replay_of(requests, folder, days=0.001, easy=1.0, trap=0.0, easy_economy=0.0)
    arm = run_arm(cold, "on", ("tiers",))
    found = figures(direct(cold), arm, 0.1)
    assert set(cold.earned.tiers or {}) == {"frontier"}
    assert found.saved < 0.0
    assert found.behind > 0.0


def test_the_first_month_counts_the_days_of_earning() -> None:
    paid, off, on = _arm((), 1.0), _arm((), 0.8), _arm(LEVERS, 0.2)
    # What is compared is a cost: $20 of the $50 that were saved before it.
    half = Earned("tiers", (), (), {}, AT, 9, 100.0, 50.0, 15.0, 5.0, late_usd=60.0)
    assert half.net_usd == pytest.approx(30.0)
    early = replace(on, earned=(half,))
    found = month(paid, off, early, 6.0)
    # A fifth of the month saves half of what the rest does beyond the unearned levers.
    assert found.saved == pytest.approx(0.2 + 0.6 * (0.8 + 0.2 * 0.5))
    assert (found.unearned, found.earned) == pytest.approx((0.2, 0.8))
    loss = replace(on, earned=(replace(half, explored_usd=105.0),))
    assert month(paid, off, loss, 30.0).saved == pytest.approx(0.2 - 0.6)


def test_the_ranges_cover_every_assumption_that_has_one() -> None:
    named = {name for names in replay_ranges.GROUPS.values() for name in names}
    ranged = {name for name, value in Assumptions().rows() if value.low != value.high}
    # Hardware is a cost of idle time, which has a column of its own.
    assert named == ranged - {"replica_hour_usd", "agree_right", "agree_wrong"}


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
    assert sum(found.values()) == pytest.approx(0.49)
    assert found["tiers"] == pytest.approx(0.13)
    assert by_removal(arms[:-1]) == {}


def test_an_effect_is_the_paired_difference_of_two_arms() -> None:
    paid = [0.5 + (n % 7) for n in range(200)]

    def arm(factor: float, right: bool) -> Arm:
        results = [
            Result("open", str(n), factor * usd, 1.0, is_right=right or n > 0, route="frontier")
            for n, usd in enumerate(paid)
        ]
        return Arm("x", (), tuple(results))

    found = effect(arm(1.0, True), arm(0.3, False), arm(0.32, True))
    # Each request saves the same share: the bounds of the difference are narrow, though costs vary.
    assert found.saved == pytest.approx(0.02)
    assert found.saved_bounds == pytest.approx((0.02, 0.02))
    assert found.loss == pytest.approx(1 / 200)
    assert found.loss_bounds[0] == 0.0 < found.loss_bounds[1]


def test_a_coin_is_the_requests_whatever_was_drawn_before() -> None:
    def drawn(*asked: int) -> list[list[bool]]:
        coins = RequestCoins(1)
        with coins.in_place():
            found = []
            for number in asked:
                coins.ask(number)
                found.append([coin(0.5) for _ in range(64)])
        return found

    one, two = drawn(1, 2)
    assert drawn(2) == [two]
    assert one != two
    assert 8 < sum(one) < 56
    # Elsewhere the system's generator draws.
    assert [coin(0.5) for _ in range(64)] != [coin(0.5) for _ in range(64)]


def test_two_runs_of_an_arm_are_equal(folder: Path) -> None:
    requests = of_kind("open", 16)
    replay = replay_of(requests, folder, days=0.001, easy=1.0, trap=0.0)
    first, second = (run_arm(replay, "on", LEVERS) for _ in range(2))
    assert any(one.behind_usd for one in first.results)
    for one, two in zip(first.results, second.results, strict=True):
        assert (one.route, one.is_right, one.behind_usd) == (
            two.route,
            two.is_right,
            two.behind_usd,
        )


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
    wanted: dict[str, tuple[Lever, ...]] = {"all": LEVERS, "same": LEVERS, "later": ()}
    arms = dict(run_arms(replay, wanted, {}, 1))
    assert list(arms) == ["direct", "all", "same"]
    assert arms["same"] == replace(arms["all"], name="same")
    found = document(replay, {**arms, UNEARNED: arms["all"]}, ARGS)
    json.dumps(found)
    text = "\n".join(lines(found))
    assert text.startswith(SIMULATION)
    assert "first month, earning included: " in text
    for name, value in Assumptions().rows():
        assert f"assumed {name}: " in text
        assert value.source in text
        assert value.low <= value.central <= value.high or (
            value.low >= value.central >= value.high
        ) or name.endswith("_tokens")  # fmt: skip
    assert plot(found).startswith("<svg")


def test_the_sets_of_arms_are_complete() -> None:
    names = chosen("all")
    assert len(names) == 3 + 6 + 7 + 7
    assert next(iter(chosen("less"))) == "all"
    assert names["all less exact_cache"] == names["all less similar_cache"][1:]
    assert set(names[UNEARNED]) == {*LEVERS} - {*EARNED}
    assert all(set(levers) <= {*LEVERS, "cascade"} for levers in names.values())
    assert names["all less tiers"] == names["up to similar_cache"]
