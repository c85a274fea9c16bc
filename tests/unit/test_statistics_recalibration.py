"""Thresholds for each label."""

import numpy as np
import pytest

from serving.evidence.statistics.betting import Floats
from serving.evidence.statistics.recalibration import fit_label_confidence


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
        fit_label_confidence(empty, none, empty, 2)
