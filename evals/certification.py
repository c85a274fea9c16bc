"""From which confidence on are answers right often enough? Calibration and a certified threshold.

Two disjoint halves: on one the raw confidence is mapped to a probability of being right and the
candidate thresholds are fixed; on the other the thresholds are tested. Pure.
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
    matter. Each level is drawn towards one half by one right and one wrong answer (Laplace's rule
    of succession): no finite number of right answers makes a certainty. Raises ValueError for no
    examples.
    """
    if len(raw) == 0:
        raise ValueError("there is nothing to calibrate on")
    knots, where = np.unique(raw, return_inverse=True)
    weights = np.bincount(where).astype(np.float64)
    means = np.bincount(where, weights=right.astype(np.float64)) / weights
    fitted = isotonic_regression(means, weights=weights).x
    _, level = np.unique(fitted, return_inverse=True)
    size = np.bincount(level, weights=weights)[level]
    # Small levels are drawn further than large ones, which may undo the order.
    drawn = isotonic_regression((fitted * size + 1.0) / (size + 2.0), weights=weights).x
    # Equal levels may come out a rounding error apart, and a threshold would fall between them.
    drawn = np.round(drawn, 12)
    # Only the first and the last of a run of equal values are needed.
    inner = np.ones(len(knots), dtype=bool)
    inner[1:-1] = (drawn[1:-1] != drawn[:-2]) | (drawn[1:-1] != drawn[2:])
    return CalibrationMap(knots=tuple(knots[inner].tolist()), values=tuple(drawn[inner].tolist()))


def calibrated(mapping: CalibrationMap, raw: Floats) -> Floats:
    """Return the calibrated confidences, bit for bit those of `mapping.calibrated`. raw: (n,)."""
    knots, values = np.array(mapping.knots), np.array(mapping.values)
    right = np.searchsorted(knots, raw, side="right")
    if len(knots) == 1:
        return np.full(len(raw), values[0])
    above = np.clip(right, 1, len(knots) - 1)
    low, high, start, end = knots[above - 1], knots[above], values[above - 1], values[above]
    between = np.clip(start + (raw - low) / (high - low) * (end - start), start, end)
    return np.where(right == 0, values[0], np.where(right == len(knots), values[-1], between))


def equal_width_bins(confidence: Floats, bins: int) -> NDArray[np.int64]:
    """Return each confidence's bin in [0, 1], numbered from 0; 1 falls into the last. (n,)."""
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
    """Return the Clopper-Pearson upper bound of an error rate; 1 where nothing was accepted.

    Exact: holds at any number of examples. Source: Clopper and Pearson, Biometrika 26, 1934.
    """
    if accepted == 0 or errors == accepted:
        return 1.0
    # What scipy.stats.binomtest(...).proportion_ci(method="exact") searches for; ten times faster.
    return float(beta.ppf(confidence, errors + 1, accepted - errors))


def accepted_needed(target_error: float, confidence: float = 0.95) -> int:
    """Return how many accepted examples, all right, certify the target error."""
    return int(np.ceil(np.log(1.0 - confidence) / np.log(1.0 - target_error)))


def candidate_thresholds(
    confidence: Floats, right: Bools, tested: int | None = None, steps: int = 20
) -> list[float]:
    """Return thresholds from strict to permissive, fixed on the calibration half alone.

    confidence, right: (n,), of the calibration half. tested: how many answers they are tested on;
    None for n. The first is the one whose error bound would be lowest at that number: a stricter
    one accepts too few to prove anything, and the first failure ends the search. More tested
    answers can prove more with a stricter one.
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
    """Test thresholds in their order on the test half and stop at the first that does not hold.

    thresholds: from strict to permissive, chosen without the test half. confidence, right: (n,),
    calibrated, of the test half. A fixed order needs no correction for testing several: a wrong
    threshold is certified only if the first wrong one passes, which happens in at most 1 - level of
    all cases (fixed-sequence testing; Bauer, 1991).
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
