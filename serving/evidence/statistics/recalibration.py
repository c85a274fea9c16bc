"""A threshold for each label: one threshold on a confidence that is fitted for each label.

What it gives is a new candidate, to be tested on later examples only. A map that only rises, such
as an isotonic one, would keep the order of confidences, so that no threshold on it covers more.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.evidence.statistics.betting import Floats

Labels = NDArray[np.int64]

_LABEL_PENALTY = 2.0
_SLOPE_PENALTY = 0.1
_LEAST = 1e-6


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

    # Takes 23 MB, which a gateway that never fits saves.
    from scipy.optimize import minimize

    found = minimize(objective, np.zeros(2 + label_count), jac=True, method="L-BFGS-B").x
    return LabelConfidence(float(np.exp(found[0])), float(found[1]), found[2:])


def _logit(confidence: Floats) -> Floats:
    inside = np.clip(confidence, _LEAST, 1.0 - _LEAST)
    scores: Floats = np.log(inside) - np.log1p(-inside)
    return scores
