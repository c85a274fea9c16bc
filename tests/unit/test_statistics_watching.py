"""The watch of a held claim: its closed forms, its delays, and how rarely it alarms falsely."""

import itertools
import math

import numpy as np
import pytest

from serving.evidence.statistics.betting import Floats
from serving.evidence.statistics.intervals import clopper_pearson
from serving.evidence.statistics.watching import (
    ALARM,
    Watch,
    alternatives,
    detector,
    first_state,
    next_state,
)

TARGET = 0.15


def _delays(error: float, audits: int, streams: int, seed: int, target: float = TARGET) -> Floats:
    """Return the audits until the first alarm of each stream, inf without one."""
    rng = np.random.default_rng(seed)
    state = first_state(target, (streams,))
    delays = np.full(streams, np.inf)
    for audit in range(1, audits + 1):
        state = next_state(state, (rng.random(streams) < error).astype(np.float64), target)
        delays[(detector(state) >= math.log(ALARM)) & np.isinf(delays)] = audit
    return delays


def test_the_detector_of_a_first_error_is_the_mean_of_the_odds() -> None:
    watch = Watch(TARGET).extend([1.0])
    assert watch.log_detector == pytest.approx(math.log((alternatives(TARGET) / TARGET).mean()))


def test_the_detector_of_right_answers_is_a_geometric_series() -> None:
    ratio = (1.0 - alternatives(TARGET)) / (1.0 - TARGET)
    series = ratio * (1.0 - ratio**60) / (1.0 - ratio)
    watch = Watch(TARGET).extend([0.0] * 60)
    assert watch.log_detector == pytest.approx(math.log(series.mean()))


def test_the_detector_is_the_number_of_audits_on_average_at_the_target_exactly() -> None:
    """So that the expected time to an alarm at A is at least A (Shin, Ramdas and Rinaldo)."""
    for audits in (1, 4, 8):
        mean = sum(
            math.exp(Watch(TARGET).extend(losses).log_detector)
            * TARGET ** sum(losses) * (1.0 - TARGET) ** (audits - sum(losses))
            for losses in itertools.product((0.0, 1.0), repeat=audits)
        )  # fmt: skip
        assert mean == pytest.approx(audits, rel=1e-12)


@pytest.mark.parametrize("target", [0.01, 0.05, 0.15, 0.5, 0.9])
def test_bets_are_placed_on_raised_errors_below_one(target: float) -> None:
    raised = alternatives(target)
    assert (raised > target).all()
    assert (raised < 1.0).all()
    assert (np.diff(raised) > 0.0).all()


@pytest.mark.parametrize(
    ("error", "median", "late"), [(0.226, 227, 444), (0.3, 89, 170), (0.4, 38, 75), (0.6, 15, 30)]
)
def test_a_raised_error_is_found_within_the_stated_audits(
    error: float, median: int, late: int
) -> None:
    delays = _delays(error, 900, 600, seed=5)
    assert np.median(delays) <= 1.2 * median
    assert np.quantile(delays, 0.9) <= 1.25 * late


def test_twice_the_target_is_found_within_a_hundred_audits_after_a_quiet_time() -> None:
    rng = np.random.default_rng(6)
    state = first_state(TARGET, (400,))
    delays = np.full(400, np.inf)
    for audit in range(700):
        error = 0.09 if audit < 300 else 0.3
        state = next_state(state, (rng.random(400) < error).astype(np.float64), TARGET)
        delays[(detector(state) >= math.log(ALARM)) & np.isinf(delays)] = audit - 299
    assert np.median(delays) <= 100
    assert (delays > 0).mean() > 0.99


@pytest.mark.slow
def test_a_stationary_claim_is_rarely_suspended() -> None:
    """At 0.8 of the target, in 10,000 audits, in at most one of ten streams."""
    delays = _delays(0.8 * TARGET, 10_000, 400, seed=7)
    assert clopper_pearson(int(np.isfinite(delays).sum()), 400).high <= 0.10


def test_an_error_at_the_target_alarms_no_sooner_than_promised() -> None:
    """P(alarm within n audits) is at most n / alarm, at 2,000 streams of 1,000 audits."""
    delays = _delays(TARGET, 1000, 2000, seed=8)
    assert clopper_pearson(int(np.isfinite(delays).sum()), 2000).low <= 1000 / ALARM


def test_a_fractional_loss_is_watched_as_well() -> None:
    rng = np.random.default_rng(9)
    quiet = Watch(TARGET).extend(rng.beta(1.0, 9.0, 800).tolist())
    assert quiet.reason is None
    assert (
        quiet.extend(rng.beta(3.0, 6.0, 300).tolist()).reason == "the error rose above the target"
    )


def test_a_missing_verdict_is_a_loss() -> None:
    missing, wrong = Watch(TARGET).extend([None] * 3), Watch(TARGET).extend([1.0] * 3)
    assert missing.log_detector == wrong.log_detector
    assert (missing.missing, wrong.missing) == (3, 0)


@pytest.mark.parametrize(("period", "suspends"), [(25, False), (15, True)])
def test_more_than_five_percent_of_missing_verdicts_suspend(period: int, suspends: bool) -> None:
    watch = Watch(0.4).extend([None if at % period == 0 else 0.0 for at in range(1, 1200)])
    expected = "more than 5% of recent verdicts are missing" if suspends else None
    assert watch.reason == expected


def test_a_few_first_verdicts_may_be_missing() -> None:
    watch = Watch(0.4).extend([None, None, 0.0, 0.0, 0.0, None, 0.0])
    assert watch.reason is None


def test_equal_rows_give_an_equal_state() -> None:
    losses = [float(value) for value in np.random.default_rng(10).random(200) < 0.2]
    assert Watch(TARGET).extend(losses).log_detector == Watch(TARGET).extend(losses).log_detector


@pytest.mark.parametrize("loss", [-0.1, 1.5, math.nan])
def test_a_loss_outside_its_range_is_refused(loss: float) -> None:
    with pytest.raises(ValueError, match="a loss must be in"):
        Watch(TARGET).add(loss)


def test_a_target_without_odds_is_refused() -> None:
    with pytest.raises(ValueError, match=r"in \(0, 1\)"):
        Watch(1.0)
