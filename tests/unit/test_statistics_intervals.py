"""Intervals of a mean loss: published values, closed forms, and their coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betaln

from serving.evidence.statistics.intervals import (
    BoundedSequence,
    clopper_pearson,
    log_mixture,
    mean_sequence,
)


@pytest.mark.parametrize(
    ("errors", "count", "low", "high"),
    [
        # The rule of three in its exact form: 1 - 0.025 ** (1 / n).
        (0, 10, 0.0, 0.30850),
        (10, 10, 0.69150, 1.0),
        (5, 10, 0.18709, 0.81291),
        (1, 20, 0.00127, 0.24873),
        (10, 100, 0.04900, 0.17622),
    ],
)
def test_exact_intervals_are_those_of_the_tables(
    errors: int, count: int, low: float, high: float
) -> None:
    interval = clopper_pearson(errors, count)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-5)


@pytest.mark.parametrize(("errors", "count"), [(-1, 10), (11, 10), (0, 0)])
def test_an_impossible_count_is_refused(errors: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"{errors!r} errors of {count!r}"):
        clopper_pearson(errors, count)


@pytest.mark.parametrize("count", [1, 5, 40])
def test_the_sequence_without_errors_has_a_closed_form(count: int) -> None:
    """The mixture is 1 / (n + 1), so the bound solves (1 - m) ** n = 1 / (20 (n + 1))."""
    interval = mean_sequence(0.0, count)
    assert interval.low == 0.0
    assert interval.high == pytest.approx(1.0 - (20.0 * (count + 1)) ** (-1.0 / count))


def test_the_mixture_is_one_on_average_exactly() -> None:
    n, mean = 12, 0.15
    terms = [
        math.comb(n, k) * mean**k * (1 - mean) ** (n - k) * math.exp(log_mixture(k, n, mean))
        for k in range(n + 1)
    ]
    assert sum(terms) == pytest.approx(1.0, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 400), st.floats(0.0, 1.0))
def test_the_sequence_holds_its_mean_and_is_symmetric(count: int, share: float) -> None:
    losses = share * count
    one, other = mean_sequence(losses, count), mean_sequence(count - losses, count)
    assert 0.0 <= one.low <= one.mean <= one.high <= 1.0
    assert (one.low, one.high) == pytest.approx((1.0 - other.high, 1.0 - other.low), abs=1e-6)


def test_the_sequence_without_examples_says_nothing() -> None:
    interval = mean_sequence(0.0, 0)
    assert (interval.low, interval.high) == (0.0, 1.0)
    with pytest.raises(ValueError, match="of 1 losses"):
        mean_sequence(2.0, 1)


@pytest.mark.parametrize("mean", [0.03, 0.15])
def test_the_sequence_holds_the_mean_at_every_time(mean: float) -> None:
    """Of 2,000 streams of 600 losses, at most one in twenty leaves it at any time at all."""
    rng = np.random.default_rng(11)
    losses = np.cumsum(rng.random((2000, 600)) < mean, axis=1)
    # The sequence excludes the mean where the mixture against it reaches 20.
    missed = int(_excludes(losses, np.arange(1, 601), mean).any(axis=1).sum())
    assert clopper_pearson(missed, 2000).high <= 0.05


def _excludes(losses: np.ndarray, counts: np.ndarray, mean: float) -> np.ndarray:
    mixed = betaln(1.0 + losses, 1.0 + counts - losses)
    mixed = mixed - losses * math.log(mean) - (counts - losses) * math.log1p(-mean)
    return np.asarray(mixed >= math.log(20.0))


def test_the_sequence_excludes_exactly_what_its_mixture_does() -> None:
    for losses, count in ((3, 40), (30, 100), (0, 17)):
        interval = mean_sequence(losses, count)
        grid = np.linspace(0.001, 0.999, 999)
        outside = (grid < interval.low) | (grid > interval.high)
        excluded = [bool(_excludes(np.array(losses), np.array(count), m)) for m in grid]
        assert outside.tolist() == excluded


def test_a_bounded_sequence_holds_a_mean_of_small_variance_at_every_time() -> None:
    """Rectifiers are mostly 0: the sequence is a third as wide as one of losses."""
    rng = np.random.default_rng(12)
    misses = 0
    for _ in range(60):
        sequence = BoundedSequence()
        for value in rng.choice([0.0, 0.5, 1.0], 400, p=[0.03, 0.93, 0.04]):
            sequence.add(float(value))
        interval = sequence.interval
        misses += not interval.low <= 0.505 <= interval.high
        assert interval.high - interval.low < 0.125
    assert clopper_pearson(misses, 60).low <= 0.05


def test_a_bounded_sequence_without_values_is_the_range() -> None:
    interval = BoundedSequence().interval
    assert (interval.mean, interval.low, interval.high) == (0.5, 0.0, 1.0)
