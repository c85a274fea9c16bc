"""Losses of a judge: both orders, two limits at once, and scopes that no judge can decide."""

import math

import numpy as np
import pytest

from serving.evidence.statistics.intervals import clopper_pearson
from serving.evidence.statistics.judged import (
    JudgedLimits,
    JudgedPair,
    Preference,
    judged_baseline,
    judged_log_e,
    judged_pair,
)

from .capital_paths import capital_path


@pytest.mark.parametrize(
    ("first", "second", "loss", "badly"),
    [
        ("better", "better", 0.0, 0.0),
        ("same", "same", 0.5, 0.0),
        ("worse", "worse", 1.0, 0.0),
        ("better", "worse", 0.5, 0.0),
        ("better", "same", 0.25, 0.0),
        ("badly_worse", "worse", 1.0, 0.5),
        ("badly_worse", "badly_worse", 1.0, 1.0),
    ],
)
def test_the_loss_is_half_of_one_plus_worse_minus_better(
    first: Preference, second: Preference, loss: float, badly: float
) -> None:
    assert judged_pair(first, second) == JudgedPair(loss, badly)
    assert judged_pair(second, first) == JudgedPair(loss, badly)


def test_a_claim_with_one_broken_limit_is_rarely_earned() -> None:
    """Better than the reference on average, and badly worse as often as the limit allows."""
    rng = np.random.default_rng(1)
    limits = JudgedLimits()
    badly = (rng.random((2000, 500)) < limits.badly_worse).astype(np.float64)
    loss = np.where(badly == 1.0, 1.0, rng.choice([0.0, 0.5], (2000, 500)))
    mean = capital_path(loss, limits.target, 0.3)
    hard = capital_path(badly, limits.badly_worse, 0.02)
    assert np.median(mean[:, -1]) > math.log(20.0)
    both = np.minimum(mean, hard)
    assert both[0, -1] == judged_log_e(mean[0, -1], hard[0, -1])
    earned = int((both.max(axis=1) >= math.log(20.0)).sum())
    assert clopper_pearson(earned, 2000).high <= 0.05


def _pairs(rng: np.random.Generator, count: int, worse: float, badly: float) -> list[JudgedPair]:
    names: tuple[Preference, ...] = ("badly_worse", "worse", "better", "same")
    shares = [badly, worse - badly, worse, 1.0 - 2.0 * worse]
    verdicts = [names[place] for place in rng.choice(4, count, p=shares)]
    return [judged_pair(one, one) for one in verdicts]


def test_a_reference_that_equals_itself_is_judgeable() -> None:
    found = judged_baseline(_pairs(np.random.default_rng(2), 1000, worse=0.2, badly=0.0))
    assert not found.is_unjudgeable(JudgedLimits())
    assert found.loss.low <= 0.5 <= found.loss.high


def test_a_reference_that_is_often_badly_worse_than_itself_is_unjudgeable() -> None:
    pairs = _pairs(np.random.default_rng(3), 600, worse=0.3, badly=0.15)
    assert judged_baseline(pairs).is_unjudgeable(JudgedLimits())
    assert not judged_baseline(pairs[:5]).is_unjudgeable(JudgedLimits())


def test_a_judge_that_finds_the_later_answer_worse_is_of_no_use() -> None:
    pairs = [judged_pair("worse", "same")] * 200
    assert judged_baseline(pairs).is_unjudgeable(JudgedLimits())


@pytest.mark.parametrize("margin", [0.0, 0.5, -0.1])
def test_a_margin_without_meaning_is_refused(margin: float) -> None:
    with pytest.raises(ValueError, match="margin must be in"):
        JudgedLimits(margin=margin)
