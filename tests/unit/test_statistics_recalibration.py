"""Recalibrated candidates: the isotonic map, offsets for a prior, and thresholds for labels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.evidence.statistics.betting import Floats
from serving.evidence.statistics.recalibration import (
    fit_isotonic,
    fit_label_confidence,
    fit_offsets,
    with_offsets,
)


def test_the_isotonic_map_pools_what_falls() -> None:
    """Pool adjacent violators, by hand: 0, 1 and 0 at 0.5 become one level of 1/3."""
    found = fit_isotonic(np.array([0.1, 0.4, 0.6, 0.9]), np.array([0.0, 1.0, 0.0, 1.0]))
    # Levels 0 of one, 1/2 of two and 1 of one, each drawn to a half by one right and one wrong.
    assert found.values == pytest.approx((1 / 3, 1 / 2, 1 / 2, 2 / 3))
    assert found.knots == (0.1, 0.4, 0.6, 0.9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)), min_size=1, max_size=60))
def test_the_isotonic_map_never_falls(pairs: list[tuple[float, float]]) -> None:
    confidence, right = np.array(pairs).T
    found = fit_isotonic(confidence, right)
    assert list(found.values) == sorted(found.values)
    assert 0.0 < found.values[0] <= found.values[-1] < 1.0


def test_the_isotonic_map_is_calibrated_on_later_examples() -> None:
    rng = np.random.default_rng(1)
    confidence = rng.random(6000)
    right = (rng.random(6000) < confidence**2).astype(np.float64)
    found = fit_isotonic(confidence[:3000], right[:3000])
    shown = np.array([found.calibrated(float(c)) for c in confidence[3000:]])
    assert np.abs(shown - confidence[3000:] ** 2).mean() < 0.04


def _sampled(rng: np.random.Generator, n: int, offsets: Floats) -> tuple[Floats, np.ndarray]:
    probabilities = rng.dirichlet(np.full(len(offsets), 0.7), n)
    chances = with_offsets(probabilities, offsets)
    labels = (chances.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return probabilities, labels


def test_offsets_without_information_are_those_of_the_counts() -> None:
    """With even probabilities the gradient is zero where n softmax(o) + o = counts."""
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    offsets = fit_offsets(np.full((100, 3), 1 / 3), labels)
    shares = np.exp(offsets) / np.exp(offsets).sum()
    assert 100 * shares + offsets == pytest.approx([60, 30, 10], abs=0.02)


def test_offsets_find_the_prior_of_the_traffic() -> None:
    true = np.array([1.0, -1.0, 0.5, -0.5])
    probabilities, labels = _sampled(np.random.default_rng(2), 3000, true)
    assert fit_offsets(probabilities, labels) == pytest.approx(true, abs=0.2)
    assert with_offsets(probabilities, true).sum(axis=1) == pytest.approx(np.ones(3000))


def test_offsets_lower_the_error_on_later_examples() -> None:
    true = np.array([2.0, -1.0, 0.0, -1.0])
    probabilities, labels = _sampled(np.random.default_rng(3), 2000, true)
    offsets = fit_offsets(probabilities[:400], labels[:400])
    plain = (probabilities[400:].argmax(axis=1) != labels[400:]).mean()
    adjusted = (with_offsets(probabilities[400:], offsets).argmax(axis=1) != labels[400:]).mean()
    assert adjusted < plain - 0.05


def _by_label(rng: np.random.Generator, n: int) -> tuple[Floats, np.ndarray, Floats]:
    """Return confidences of two labels: of one of them they are far too high."""
    answers = rng.integers(0, 2, n)
    confidence = rng.uniform(0.5, 1.0, n)
    chance = np.where(answers == 0, confidence**0.3, confidence**4)
    return confidence, answers, (rng.random(n) < chance).astype(np.float64)


def _coverage(confidence: Floats, right: Floats, error: float) -> float:
    """Return the largest share of the most confident answers whose error is at most `error`."""
    order = np.argsort(-confidence)
    errors = np.cumsum(1.0 - right[order]) / np.arange(1, len(order) + 1)
    allowed = np.flatnonzero(errors <= error)
    return float(allowed[-1] + 1) / len(order) if len(allowed) else 0.0


def test_a_threshold_for_each_label_covers_more_at_the_same_error() -> None:
    rng = np.random.default_rng(4)
    fitted = fit_label_confidence(*_by_label(rng, 400), 2)
    confidence, answers, right = _by_label(rng, 4000)
    gained = _coverage(fitted(confidence, answers), right, 0.15)
    assert gained > _coverage(confidence, right, 0.15) + 0.1


def test_a_threshold_on_the_fitted_confidence_is_one_for_each_label() -> None:
    rng = np.random.default_rng(5)
    confidence, answers, right = _by_label(rng, 1000)
    fitted = fit_label_confidence(confidence, answers, right, 2)
    thresholds = fitted.thresholds(0.8)
    assert thresholds[0] < thresholds[1]
    accepted = fitted(confidence, answers) >= 0.8
    assert (accepted == (confidence >= thresholds[answers])).all()


def test_a_label_that_was_never_seen_follows_the_others() -> None:
    rng = np.random.default_rng(6)
    fitted = fit_label_confidence(*_by_label(rng, 300), 3)
    assert fitted.by_label[2] == pytest.approx(0.0, abs=1e-6)


def test_nothing_is_fitted_without_examples() -> None:
    empty, none = np.empty(0), np.empty(0, dtype=np.int64)
    with pytest.raises(ValueError, match="nothing to calibrate on"):
        fit_isotonic(empty, empty)
    with pytest.raises(ValueError, match="nothing to calibrate on"):
        fit_offsets(np.empty((0, 2)), none)
    with pytest.raises(ValueError, match="nothing to calibrate on"):
        fit_label_confidence(empty, none, empty, 2)
