"""Calibrates confidences and certifies the threshold above which answers are accepted.

There are two disjoint halves. On the calibration half, the raw confidence is mapped to a
probability of being right and the candidate thresholds are fixed. On the certification half, the
thresholds are tested. Pure.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from scipy.stats import beta

from serving.contracts.attestation import CalibrationMap, Certificate

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def fit_calibration(raw: Floats, right: Bools) -> CalibrationMap:
    """Return the isotonic regression of being right on the raw confidence.

    raw, right: (n,). Equal confidences are pooled first, so the order of the examples does not
    matter. Each level is shrunk towards one half by one right and one wrong answer (Laplace's rule
    of succession), so that no level is 0 or 1. Raises ValueError for no examples.
    """
    if len(raw) == 0:
        raise ValueError("no examples to calibrate on")
    knots, where = np.unique(raw, return_inverse=True)
    weights = np.bincount(where).astype(np.float64)
    means = np.bincount(where, weights=right.astype(np.float64)) / weights
    fitted = isotonic_regression(means, weights=weights).x
    _, level = np.unique(fitted, return_inverse=True)
    size = np.bincount(level, weights=weights)[level]
    # Small levels shrink more than large ones, which may break the order.
    drawn = isotonic_regression((fitted * size + 1.0) / (size + 2.0), weights=weights).x
    # Rounding errors may separate equal levels, and a threshold could fall between them.
    drawn = np.round(drawn, 12)
    # Interpolation needs only the first and the last of a run of equal values.
    inner = np.ones(len(knots), dtype=bool)
    inner[1:-1] = (drawn[1:-1] != drawn[:-2]) | (drawn[1:-1] != drawn[2:])
    return CalibrationMap(knots=tuple(knots[inner].tolist()), values=tuple(drawn[inner].tolist()))


def calibrated(mapping: CalibrationMap, raw: Floats) -> Floats:
    """Return the calibrated confidences, equal bit for bit to `mapping.calibrated`. raw: (n,)."""
    knots, values = np.array(mapping.knots), np.array(mapping.values)
    right = np.searchsorted(knots, raw, side="right")
    if len(knots) == 1:
        return np.full(len(raw), values[0])
    above = np.clip(right, 1, len(knots) - 1)
    low, high, start, end = knots[above - 1], knots[above], values[above - 1], values[above]
    between = np.clip(start + (raw - low) / (high - low) * (end - start), start, end)
    return np.where(right == 0, values[0], np.where(right == len(knots), values[-1], between))


def equal_width_bins(confidence: Floats, bins: int) -> NDArray[np.int64]:
    """Return each confidence's bin, (n,), numbered from 0; a confidence of 1 is in the last bin."""
    return np.clip((confidence * bins).astype(np.int64), 0, bins - 1)


def expected_calibration_error(confidence: Floats, right: Bools, bins: int = 10) -> float:
    """Return the ECE over bins of equal width: the mean gap between confidence and accuracy.

    confidence, right: (n,). Source: Guo et al., "On Calibration of Modern Neural Networks", 2017.
    """
    number = equal_width_bins(confidence, bins)
    gaps = [
        abs(float(np.sum(confidence[number == b])) - float(np.sum(right[number == b])))
        for b in range(bins)
    ]
    return sum(gaps) / len(confidence)


@lru_cache(maxsize=16_384)
def error_bound(errors: int, accepted: int, confidence: float = 0.95) -> float:
    """Return the Clopper-Pearson upper bound of an error rate; 1 if no answer was accepted.

    Exact: holds at any number of examples. Source: Clopper and Pearson, Biometrika 26, 1934.
    """
    if accepted == 0 or errors == accepted:
        return 1.0
    # Equals scipy.stats.binomtest(...).proportion_ci(method="exact"), and is ten times faster.
    return float(beta.ppf(confidence, errors + 1, accepted - errors))


def accepted_needed(target_error: float, confidence: float = 0.95) -> int:
    """Return the number of accepted examples, all right, that certify the target error."""
    return int(np.ceil(np.log(1.0 - confidence) / np.log(1.0 - target_error)))


def candidate_thresholds(
    confidence: Floats, right: Bools, tested: int | None = None, steps: int = 20
) -> list[float]:
    """Return thresholds from strict to permissive, fixed on the calibration half.

    confidence, right: (n,), of the calibration half. tested: how many answers they are tested on;
    None for n. The first is the one with the lowest error bound at that number: a stricter one
    accepts too few examples, and the first failure ends the search. With more tested answers, a
    stricter threshold can be certified.
    """
    if len(confidence) == 0:
        return []
    shares = np.linspace(1.0 / steps, 1.0, steps)
    found = {float(value) for value in np.quantile(confidence, 1.0 - shares, method="lower")}
    ordered = sorted(found, reverse=True)
    scale = 1.0 if tested is None else tested / len(confidence)
    bounds = [_bound_from(threshold, confidence, right, scale) for threshold in ordered]
    return ordered[bounds.index(min(bounds)) :]


def _bound_from(threshold: float, confidence: Floats, right: Bools, scale: float) -> float:
    taken = confidence >= threshold
    errors, accepted = int(np.sum(taken & ~right)), int(taken.sum())
    return error_bound(round(errors * scale), round(accepted * scale))


def certify(
    thresholds: Sequence[float],
    confidence: Floats,
    right: Bools,
    target_error: float,
    level: float = 0.95,
) -> Certificate:
    """Test thresholds in order on the certification half; stop at the first that fails.

    thresholds: from strict to permissive, chosen without the certification half. confidence, right:
    (n,), calibrated, of the certification half. A fixed order needs no correction for testing
    several: a wrong threshold is certified only if the first wrong one passes, which happens in at
    most 1 - level of all cases (fixed-sequence testing; Bauer, 1991).
    """
    tested = len(confidence)
    best = Certificate(
        threshold=None, target_error=target_error, bound=1.0, coverage=0.0, errors=0, accepted=0,
        tested=tested,
    )  # fmt: skip
    for threshold in thresholds:
        taken = confidence >= threshold
        accepted = int(taken.sum())
        errors = int(np.sum(taken & ~right))
        bound = error_bound(errors, accepted, level)
        if bound > target_error:
            break
        best = best.model_copy(
            update={
                "threshold": threshold, "bound": bound, "coverage": accepted / tested,
                "errors": errors, "accepted": accepted,
            }
        )  # fmt: skip
    return best
