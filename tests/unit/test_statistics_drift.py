"""Signs that traffic has changed: rarely without a change, and surely with one."""

import numpy as np
import pytest
from scipy import stats

from serving.evidence.statistics.drift import (
    embedding_of,
    embeddings_moved,
    escalations_surged,
    label_shares_moved,
)
from serving.evidence.statistics.intervals import clopper_pearson


def test_a_mean_vector_is_said_to_have_moved_as_rarely_as_stated() -> None:
    rng = np.random.default_rng(1)
    scales = np.linspace(0.2, 1.0, 20)
    moved = 0
    for _ in range(600):
        baseline = embedding_of(rng.normal(size=(300, 20)) * scales)
        moved += embeddings_moved(baseline, rng.normal(size=(60, 20)) * scales, 0.05)
    assert clopper_pearson(moved, 600).low <= 0.05
    assert clopper_pearson(moved, 600).high <= 0.09


def test_a_moved_mean_vector_is_found() -> None:
    rng = np.random.default_rng(2)
    baseline = embedding_of(rng.normal(size=(800, 50)))
    assert embeddings_moved(baseline, rng.normal(size=(200, 50)) + 0.15)
    assert not embeddings_moved(baseline, rng.normal(size=(200, 50)))


def test_the_distribution_is_the_same_from_few_vectors_as_from_many_dimensions() -> None:
    vectors = np.random.default_rng(3).normal(size=(30, 40))
    found = embedding_of(vectors)
    covariance = np.cov(vectors.T)
    assert found.spread == pytest.approx(np.trace(covariance))
    assert found.spread_of_squares == pytest.approx(np.trace(covariance @ covariance))


def test_equal_vectors_move_with_any_other() -> None:
    baseline = embedding_of(np.ones((5, 3)))
    assert not embeddings_moved(baseline, np.ones((2, 3)))
    assert embeddings_moved(baseline, np.zeros((2, 3)))
    with pytest.raises(ValueError, match="1 vectors are too few"):
        embedding_of(np.ones((1, 3)))


def test_label_shares_are_compared_by_a_chi_square_test() -> None:
    before, now = np.array([50, 30, 20]), np.array([20, 45, 35])
    p = stats.chi2_contingency(np.stack([before, now]), correction=False).pvalue
    assert label_shares_moved(before, now, significance=p * 1.01)
    assert not label_shares_moved(before, now, significance=p * 0.99)


def test_label_shares_without_a_change_move_as_rarely_as_stated() -> None:
    rng = np.random.default_rng(4)
    shares = [0.5, 0.3, 0.15, 0.04, 0.01]
    moved = sum(
        label_shares_moved(rng.multinomial(400, shares), rng.multinomial(100, shares), 0.05)
        for _ in range(600)
    )
    assert clopper_pearson(moved, 600).low <= 0.05


def test_label_shares_of_nothing_have_not_moved() -> None:
    assert not label_shares_moved(np.array([5, 5]), np.array([0, 0]))
    assert not label_shares_moved(np.array([2, 1]), np.array([0, 1]))


def test_a_surge_of_escalations_is_found_and_a_fall_is_none() -> None:
    # z = 0.1 / sqrt(0.3 x 0.7 x (1/1000 + 1/1000)) = 4.88 of a normal distribution.
    assert escalations_surged((250, 1000), (350, 1000), significance=1e-6)
    assert not escalations_surged((250, 1000), (350, 1000), significance=1e-7)
    assert not escalations_surged((350, 1000), (250, 1000))
    assert not escalations_surged((0, 0), (5, 10))
    assert not escalations_surged((0, 100), (0, 100))
