"""The distributions that statistics compute from special functions equal those of scipy.stats."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from serving.evidence.statistics.drift import (
    Embedding,
    embeddings_moved,
    escalations_surged,
    label_shares_moved,
)
from serving.reporting.intervals import clopper_pearson

COUNTS = st.lists(st.integers(100, 400), min_size=3, max_size=3)


@given(st.integers(0, 400), st.integers(1, 400), st.sampled_from((0.9, 0.95, 0.999)))
def test_the_exact_interval(errors: int, more: int, confidence: float) -> None:
    count, tail = errors + more, (1 - confidence) / 2
    found = clopper_pearson(errors, count, confidence)
    low = stats.beta.ppf(tail, errors, count - errors + 1) if errors else 0.0
    high = stats.beta.ppf(1 - tail, errors + 1, count - errors)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9)


@given(COUNTS, COUNTS)
def test_the_test_of_label_shares(before: list[int], after: list[int]) -> None:
    value = float(stats.chi2_contingency(np.array([before, after]), correction=False).pvalue)
    for share in (0.5, 2.0):
        moved = label_shares_moved(np.array(before), np.array(after), value * share)
        assert moved is (share > 1.0)


@given(st.integers(1, 200), st.integers(1, 200))
def test_the_test_of_escalations(before: int, now: int) -> None:
    pooled = (before + now) / 800
    rise = (now - before) / 400 / np.sqrt(pooled * (1 - pooled) / 200)
    value = float(stats.norm.sf(rise))
    for share in (0.5, 2.0):
        assert escalations_surged((before, 400), (now, 400), value * share) is (share > 1.0)


@given(st.floats(0.0, 2.0), st.integers(10, 500))
def test_the_test_of_vectors(step: float, count: int) -> None:
    baseline = Embedding(np.zeros(4), spread=1.0, spread_of_squares=0.4, count=count)
    recent = np.full((50, 4), step)
    distance = 4 * step**2 / (0.4 * (1 / count + 1 / 50))
    value = float(stats.chi2.sf(distance, 1 / 0.4))
    assert embeddings_moved(baseline, recent, value * 2) is (value > 0.0)
    assert embeddings_moved(baseline, recent, value / 2) is False
