"""The e-process of earning: exact martingale, closed forms, and the share of false claims."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.evidence.statistics.betting import (
    PRIOR_OBSERVATIONS,
    Capital,
    Floats,
    bernoulli_divergence,
    examples_needed,
    stake,
)
from serving.evidence.statistics.intervals import clopper_pearson
from serving.evidence.statistics.placement import FALSE_CLAIMS, bar

from .capital_paths import capital_path

TARGET = 0.15
STREAMS = 2000


def _capital(losses: list[float], expected: float = 0.05) -> Capital:
    capital = Capital(TARGET, expected)
    for loss in losses:
        capital = capital.after(loss)
    return capital


def test_capital_is_one_on_average_at_the_target_exactly() -> None:
    mean = sum(
        math.exp(_capital(list(losses)).log_e) * TARGET ** sum(losses)
        * (1.0 - TARGET) ** (len(losses) - sum(losses))
        for losses in itertools.product((0.0, 1.0), repeat=8)
    )  # fmt: skip
    assert mean == pytest.approx(1.0, abs=1e-12)


def test_capital_of_right_answers_has_a_closed_form() -> None:
    estimates = [0.05 * PRIOR_OBSERVATIONS / (PRIOR_OBSERVATIONS + seen) for seen in range(40)]
    expected = sum(math.log((1.0 - each) / (1.0 - TARGET)) for each in estimates)
    assert _capital([0.0] * 40).log_e == pytest.approx(expected, abs=1e-12)


def test_a_bet_is_the_likelihood_ratio_of_the_expected_error() -> None:
    bet = float(stake(np.array(0.05), TARGET))
    assert 1.0 + bet * (TARGET - 1.0) == pytest.approx(0.05 / TARGET)
    assert 1.0 + bet * (TARGET - 0.0) == pytest.approx(0.95 / (1.0 - TARGET))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), max_size=60), st.floats(0.001, 0.999))
def test_a_path_is_the_capital_after_each_example(losses: list[float], expected: float) -> None:
    path = capital_path(np.array(losses), TARGET, expected)
    every = [_capital(losses[: count + 1], expected).log_e for count in range(len(losses))]
    assert path.tolist() == pytest.approx(every, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=60))
def test_capital_is_never_borrowed(losses: list[float]) -> None:
    assert math.isfinite(_capital(losses).log_e)


def _bernoulli(rng: np.random.Generator) -> Floats:
    return (rng.random((2 * STREAMS, 300)) < TARGET).astype(np.float64)


def _beta(rng: np.random.Generator) -> Floats:
    return rng.beta(1.5, 8.5, (2 * STREAMS, 300))


@pytest.mark.parametrize("losses", [_bernoulli, _beta], ids=["labels", "fractions"])
@pytest.mark.parametrize("expected", [0.02, 0.1])
def test_capital_at_the_target_reaches_twenty_in_at_most_one_of_twenty_streams(
    losses: object, expected: float
) -> None:
    assert callable(losses)
    path = capital_path(losses(np.random.default_rng(1)), TARGET, expected)
    false = int((path.max(axis=1) >= math.log(20.0)).sum())
    assert clopper_pearson(false, 2 * STREAMS).low <= FALSE_CLAIMS
    assert false / (2 * STREAMS) <= FALSE_CLAIMS


def test_capital_grows_where_the_error_is_below_the_target() -> None:
    losses = (np.random.default_rng(2).random((400, 400)) < 0.05).astype(np.float64)
    earned = capital_path(losses, TARGET, 0.05) >= math.log(100.0)
    delays = np.where(earned.any(axis=1), earned.argmax(axis=1) + 1, 401)
    # The design's figure: about 100 accepted examples at 5 % against a target of 15 %.
    assert 60 <= np.median(delays) <= 120


def test_the_divergence_and_the_examples_needed_are_those_of_the_textbook() -> None:
    # Cover and Thomas, example 2.3.1, in nats: D(1/2 || 1/4) = 0.2075 bits.
    assert bernoulli_divergence(0.5, 0.25) == pytest.approx(0.2075 * math.log(2.0), abs=1e-4)
    assert examples_needed(0.05, TARGET, 100.0) == pytest.approx(
        math.log(100.0) / bernoulli_divergence(0.05, TARGET)
    )
    assert examples_needed(TARGET, TARGET, 100.0) == math.inf
    assert bernoulli_divergence(0.0, TARGET) == pytest.approx(-math.log(1.0 - TARGET))


def test_the_bars_of_a_scope_allow_one_false_claim_in_twenty_in_all() -> None:
    assert [bar(number) for number in (1, 2, 3)] == [40.0, 120.0, 240.0]
    assert sum(1.0 / bar(number) for number in range(1, 10_000)) == pytest.approx(0.05, abs=1e-5)
    with pytest.raises(ValueError, match="from 1, not 0"):
        bar(0)


def test_a_scope_of_nine_hypotheses_claims_falsely_in_at_most_one_of_twenty() -> None:
    """Nested thresholds of three fits, all at the target: the bar of each is that of its number."""
    rng = np.random.default_rng(3)
    losses = (rng.random((STREAMS, 800)) < TARGET).astype(np.float64)
    confidence = rng.random((STREAMS, 800))
    false = np.zeros(STREAMS, dtype=bool)
    fixed = np.zeros(STREAMS, dtype=bool)
    opened = itertools.product((100, 200, 600), (0.4, 0.6, 0.2))
    for number, (start, threshold) in enumerate(opened, 1):
        accepts = confidence >= threshold
        accepts[:, :start] = False
        before = np.cumsum(losses * accepts, axis=1) - losses * accepts
        seen = np.cumsum(accepts, axis=1) - accepts
        estimate = (PRIOR_OBSERVATIONS * 0.06 + before) / (PRIOR_OBSERVATIONS + seen)
        growth = np.log1p(stake(np.minimum(estimate, TARGET), TARGET) * (TARGET - losses))
        best = np.cumsum(growth * accepts, axis=1).max(axis=1)
        false |= best >= math.log(bar(number))
        fixed |= best >= math.log(20.0)
    assert clopper_pearson(int(false.sum()), STREAMS).high <= FALSE_CLAIMS
    # With the bar of one hypothesis for each, the promise is broken.
    assert clopper_pearson(int(fixed.sum()), STREAMS).low > FALSE_CLAIMS


@pytest.mark.parametrize("loss", [-0.1, 1.1, math.nan])
def test_a_loss_outside_its_range_is_refused(loss: float) -> None:
    with pytest.raises(ValueError, match="a loss must be in"):
        Capital(TARGET, 0.05).after(loss)


@pytest.mark.parametrize(("target", "expected"), [(0.0, 0.5), (1.0, 0.5), (0.5, 0.0), (0.5, 1.0)])
def test_a_target_or_expected_error_without_odds_is_refused(target: float, expected: float) -> None:
    with pytest.raises(ValueError, match=r"must be in \(0, 1\)"):
        Capital(target, expected)
