"""Recalibrated candidates of a classifier: for this traffic's prior and for each label.

Each is a new candidate, to be tested on later examples only. All keep one threshold on one
confidence: a threshold for each label is a confidence that is fitted for each label.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression, minimize

from serving.contracts.attestation import CalibrationMap
from serving.evidence.statistics.betting import Floats

Labels = NDArray[np.int64]

_OFFSET_PENALTY = 1.0
_LABEL_PENALTY = 2.0
_SLOPE_PENALTY = 0.1
_LEAST = 1e-6


def fit_isotonic(confidence: Floats, right: Floats) -> CalibrationMap:
    """Return the isotonic map from a confidence to the share of right answers.

    confidence, right: (n,), right in [0, 1] (1 - loss). Each level is drawn towards one half by one
    right and one wrong answer. Raises ValueError for no examples.
    """
    if len(confidence) == 0:
        raise ValueError("there is nothing to calibrate on")
    knots, where = np.unique(confidence, return_inverse=True)
    weights = np.bincount(where).astype(np.float64)
    fitted = isotonic_regression(np.bincount(where, weights=right) / weights, weights=weights).x
    _, level = np.unique(fitted, return_inverse=True)
    size = np.bincount(level, weights=weights)[level]
    drawn = isotonic_regression((fitted * size + 1.0) / (size + 2.0), weights=weights).x
    # Equal levels may come out a rounding error apart, and a threshold would fall between them.
    values = np.round(drawn, 12)
    return CalibrationMap(knots=tuple(knots.tolist()), values=tuple(values.tolist()))


def fit_offsets(probabilities: Floats, labels: Labels) -> Floats:
    """Return what to add to each label's log probability for this traffic's prior, (k,), mean 0.

    probabilities: (n, k) of the candidate. labels: (n,) of the reference, in 0..k-1. Maximum
    likelihood of a multinomial model with only intercepts, drawn towards 0 as by one example.
    Raises ValueError for no examples.
    """
    if len(labels) == 0:
        raise ValueError("there is nothing to calibrate on")
    scores = np.log(np.maximum(probabilities, _LEAST))
    counts = np.bincount(labels, minlength=scores.shape[1])

    def objective(offsets: Floats) -> tuple[float, Floats]:
        shifted = scores + offsets
        total = np.logaddexp.reduce(shifted, axis=1)
        expected = np.exp(shifted - total[:, None]).sum(axis=0)
        penalty = _OFFSET_PENALTY * offsets
        value = total.sum() - counts @ offsets + 0.5 * float(offsets @ penalty)
        return float(value), expected - counts + penalty

    found = minimize(objective, np.zeros(scores.shape[1]), jac=True, method="L-BFGS-B")
    offsets: Floats = found.x - found.x.mean()
    return offsets


def with_offsets(probabilities: Floats, offsets: Floats) -> Floats:
    """Return the probabilities with offsets added to their logarithms, rows summing to 1."""
    shifted = np.log(np.maximum(probabilities, _LEAST)) + offsets
    adjusted: Floats = np.exp(shifted - np.logaddexp.reduce(shifted, axis=1, keepdims=True))
    return adjusted


@dataclass(frozen=True)
class LabelConfidence:
    """The probability that an answer is right, by its confidence and its label.

    logit of it = slope x logit(confidence) + intercept + by_label[answer]. A threshold on it is a
    threshold of its own for each label on the confidence. slope: above 0. by_label: (k,).
    """

    slope: float
    intercept: float
    by_label: Floats

    def __call__(self, confidence: Floats, answers: Labels) -> Floats:
        """Return the fitted confidence, (n,). answers: (n,) label indices."""
        scores = self.slope * _logit(confidence) + self.intercept + self.by_label[answers]
        fitted: Floats = 1.0 / (1.0 + np.exp(-scores))
        return fitted

    def thresholds(self, threshold: float) -> Floats:
        """Return the equal threshold of each label on the plain confidence, (k,)."""
        needed = _logit(np.array(threshold)) - self.intercept - self.by_label
        equal: Floats = 1.0 / (1.0 + np.exp(-needed / self.slope))
        return equal


def fit_label_confidence(
    confidence: Floats, answers: Labels, right: Floats, label_count: int
) -> LabelConfidence:
    """Return the confidence by label that fits the examples best.

    confidence, answers, right: (n,), right in [0, 1]. Logistic regression; what a label adds is
    drawn towards 0 as if by two examples of it, so that a rare label follows the others. Raises
    ValueError for no examples.
    """
    if len(confidence) == 0:
        raise ValueError("there is nothing to calibrate on")
    scores = _logit(confidence)

    def objective(values: Floats) -> tuple[float, Floats]:
        log_slope, intercept, added = values[0], values[1], values[2:]
        slope = np.exp(log_slope)
        fitted = slope * scores + intercept + added[answers]
        loss = np.logaddexp(0.0, fitted).sum() - right @ fitted
        penalty = _SLOPE_PENALTY * log_slope**2 + _LABEL_PENALTY * (added @ added) / 2.0
        wrong = 1.0 / (1.0 + np.exp(-fitted)) - right
        gradient = np.concatenate(
            [
                [wrong @ scores * slope + 2.0 * _SLOPE_PENALTY * log_slope, wrong.sum()],
                np.bincount(answers, weights=wrong, minlength=label_count) + _LABEL_PENALTY * added,
            ]
        )
        return float(loss + penalty), gradient

    found = minimize(objective, np.zeros(2 + label_count), jac=True, method="L-BFGS-B").x
    return LabelConfidence(float(np.exp(found[0])), float(found[1]), found[2:])


def _logit(confidence: Floats) -> Floats:
    inside = np.clip(confidence, _LEAST, 1.0 - _LEAST)
    scores: Floats = np.log(inside) - np.log1p(-inside)
    return scores
