"""Judged losses: earned at the stated rate, given up early, watched, rarely earned falsely."""

import math

import numpy as np
import pytest

from serving.evidence.statistics.intervals import BoundedSequence, clopper_pearson
from serving.evidence.statistics.net import NetCapital, NetWatch, net_share, target_loss

TARGET = target_loss(0.1)
BADLY = 0.05


def losses(rng: np.random.Generator, count: int, worse: float, better: float) -> list[float]:
    found = rng.choice([1.0, 0.0, 0.5], count, p=[worse, better, 1.0 - worse - better])
    return [float(loss) for loss in found]


def capital(found: list[float], badly: float = 0.0) -> tuple[NetCapital, float]:
    """Return the process after some pairs, and its highest log e."""
    process, most = NetCapital.of(TARGET, BADLY, 0.525), 0.0
    for loss in found:
        process = process.after(loss, badly if loss == 1.0 else 0.0)
        most = max(most, process.log_e)
    return process, most


def test_a_net_share_is_twice_the_distance_from_one_half() -> None:
    assert target_loss(0.1) == pytest.approx(0.55)
    assert net_share(0.55) == pytest.approx(0.1)
    assert net_share(0.5) == 0.0


@pytest.mark.parametrize(("worse", "better", "pairs"), [(0.01, 0.0, 120), (0.15, 0.15, 600)])
def test_equal_answers_are_earned_in_some_hundred_pairs(
    worse: float, better: float, pairs: int
) -> None:
    rng = np.random.default_rng(1)
    earned = sum(capital(losses(rng, pairs, worse, better))[1] >= math.log(40.0) for _ in range(60))
    assert earned >= 48


@pytest.mark.parametrize(("worse", "better"), [(0.1, 0.0), (0.3, 0.2)])
def test_a_loss_at_the_target_is_rarely_earned(worse: float, better: float) -> None:
    rng = np.random.default_rng(2)
    runs = 400
    earned = sum(capital(losses(rng, 400, worse, better))[1] >= math.log(40.0) for _ in range(runs))
    assert clopper_pearson(earned, runs).low <= 0.025
    assert earned < 0.05 * runs


def test_much_that_is_badly_worse_is_not_earned_though_more_is_better() -> None:
    rng = np.random.default_rng(3)
    process, most = capital(losses(rng, 500, 0.1, 0.3), badly=1.0)
    assert process.log_e_mean > math.log(40.0)
    assert most < math.log(40.0)


def test_a_bad_tier_is_given_up_early_and_an_equal_one_is_not() -> None:
    rng = np.random.default_rng(4)
    bad = [capital(losses(rng, 60, 0.45, 0.0))[0].is_hopeless for _ in range(40)]
    equal = [capital(losses(rng, 400, 0.05, 0.05))[0].is_hopeless for _ in range(100)]
    assert sum(bad) >= 36
    assert sum(equal) <= 3


def test_a_process_refuses_a_loss_outside_its_range() -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\], not 1.5"):
        NetCapital.of(TARGET, BADLY, 0.52).after(1.5, 0.0)


def watch() -> NetWatch:
    return NetWatch(TARGET, BADLY, 10_000.0, 0.05)


def until_alarm(found: list[float], badly: float = 0.0) -> int | None:
    watching = watch()
    for number, loss in enumerate(found, 1):
        watching.add(loss, badly if loss == 1.0 else 0.0)
        if watching.reason is not None:
            return number
    return None


def test_the_watch_finds_a_raised_share_of_worse_answers_and_stays_silent_below() -> None:
    rng = np.random.default_rng(5)
    delays = [until_alarm(losses(rng, 400, 0.45, 0.0)) for _ in range(21)]
    assert all(delay is not None for delay in delays)
    assert float(np.median([delay or 0 for delay in delays])) < 100
    silent = [until_alarm(losses(rng, 2000, 0.06, 0.02)) for _ in range(20)]
    assert silent.count(None) >= 19


def test_the_watch_names_the_limit_that_is_broken() -> None:
    watching = watch()
    for _ in range(200):
        watching.add(1.0, 1.0)
        watching.add(0.0, 0.0)
    assert watching.reason == "the share of badly worse answers rose above evidence.badly_worse"
    missing = watch()
    for number in range(200):
        missing.add(None if number % 12 == 0 else 0.5)
    assert missing.reason is not None
    assert "missing" in missing.reason


def test_the_interval_contains_the_share_and_narrows() -> None:
    rng = np.random.default_rng(6)
    watching = watch()
    assert (watching.interval.low, watching.interval.high) == (-1.0, 1.0)
    for loss in losses(rng, 1500, 0.06, 0.02):
        watching.add(loss)
    found = watching.interval
    assert found.low <= 0.04 <= found.high
    assert found.high - found.low < 0.1
    assert BoundedSequence().interval.high == 1.0
