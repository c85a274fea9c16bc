"""From which confidence on are answers right often enough? Calibration and a certified threshold.

Two disjoint halves: on one the raw confidence is mapped to a probability of being right and the
candidate thresholds are fixed; on the other the thresholds are tested. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.stats import beta

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CalibrationMap:
    """A non-decreasing map from raw confidence to the probability of being right.

    knots: raw confidences, increasing. values: probabilities at the knots; between them linear,
    outside constant.
    """

    knots: tuple[float, ...]
    values: tuple[float, ...]

    def __call__(self, raw: Floats) -> Floats:
        """Return the calibrated confidences. raw: any shape."""
        return np.asarray(np.interp(raw, self.knots, self.values), dtype=np.float64)


def fit_calibration(raw: Floats, right: Bools) -> CalibrationMap:
    """Return the isotonic regression of being right on the raw confidence.

    raw, right: (n,). Equal confidences are pooled first, so the order of the examples does not
    matter. Raises ValueError for no examples.
    """
    if len(raw) == 0:
        raise ValueError("there is nothing to calibrate on")
    knots, where = np.unique(raw, return_inverse=True)
    weights = np.bincount(where).astype(np.float64)
    means = np.bincount(where, weights=right.astype(np.float64)) / weights
    fitted = isotonic_regression(means, weights=weights).x
    # Of a run of equal values the two ends say everything.
    inner = np.ones(len(knots), dtype=bool)
    inner[1:-1] = (fitted[1:-1] != fitted[:-2]) | (fitted[1:-1] != fitted[2:])
    return CalibrationMap(tuple(knots[inner].tolist()), tuple(fitted[inner].tolist()))


def expected_calibration_error(confidence: Floats, right: Bools, bins: int = 10) -> float:
    """Return the ECE over bins of equal width: the mean gap between confidence and accuracy.

    confidence, right: (n,). Source: Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """
    number = np.clip((confidence * bins).astype(int), 0, bins - 1)
    gaps = [
        abs(float(np.sum(confidence[number == b])) - float(np.sum(right[number == b])))
        for b in range(bins)
    ]
    return sum(gaps) / len(confidence)


def error_bound(errors: int, accepted: int, confidence: float = 0.95) -> float:
    """Return the Clopper-Pearson upper bound of an error rate; 1 where nothing was accepted.

    Exact: holds at any number of examples. Source: Clopper and Pearson, Biometrika 26, 1934.
    """
    if accepted == 0 or errors == accepted:
        return 1.0
    return float(beta.ppf(confidence, errors + 1, accepted - errors))


def accepted_needed(target_error: float, confidence: float = 0.95) -> int:
    """Return how many accepted examples, all right, certify the target error."""
    return int(np.ceil(np.log(1.0 - confidence) / np.log(1.0 - target_error)))


@dataclass(frozen=True, slots=True)
class Certificate:
    """The most permissive threshold that holds. Shares in [0, 1].

    threshold: calibrated confidence from which answers are accepted; None where none holds.
    bound: the error among accepted answers is at most this, at the confidence. coverage: share of
    the test half that is accepted. errors, accepted: what was counted there.
    """

    threshold: float | None
    bound: float
    coverage: float
    errors: int
    accepted: int
    tested: int


def candidate_thresholds(confidence: Floats, right: Bools, steps: int = 20) -> list[float]:
    """Return thresholds from strict to permissive, fixed on the calibration half alone.

    confidence, right: (n,), of the calibration half. The first is the one whose error bound is
    lowest there: a stricter one accepts too few to prove anything, and the first failure ends the
    search on the other half.
    """
    if len(confidence) == 0:
        return []
    shares = np.linspace(1.0 / steps, 1.0, steps)
    found = {float(value) for value in np.quantile(confidence, 1.0 - shares, method="lower")}
    ordered = sorted(found, reverse=True)
    bounds = [_bound_from(threshold, confidence, right) for threshold in ordered]
    return ordered[bounds.index(min(bounds)) :]


def _bound_from(threshold: float, confidence: Floats, right: Bools) -> float:
    taken = confidence >= threshold
    return error_bound(int(np.sum(taken & ~right)), int(taken.sum()))


def certify(
    thresholds: Sequence[float],
    confidence: Floats,
    right: Bools,
    target_error: float,
    level: float = 0.95,
) -> Certificate:
    """Test thresholds in their order on the test half and stop at the first that does not hold.

    thresholds: from strict to permissive, chosen without the test half. confidence, right: (n,),
    calibrated, of the test half. A fixed order needs no correction for testing several: a wrong
    threshold is certified only if the first wrong one passes, which happens in at most 1 - level of
    all cases (fixed-sequence testing; Bauer, 1991).
    """
    best = Certificate(None, 1.0, 0.0, 0, 0, len(confidence))
    for threshold in thresholds:
        taken = confidence >= threshold
        accepted = int(taken.sum())
        errors = int(np.sum(taken & ~right))
        bound = error_bound(errors, accepted, level)
        if bound > target_error:
            break
        best = Certificate(
            threshold, bound, accepted / len(confidence), errors, accepted, len(confidence)
        )
    return best
