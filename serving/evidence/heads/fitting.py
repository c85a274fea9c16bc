"""Fits candidates to labelled examples with scikit-learn. Equal rows give equal candidates.

Two kinds of linear classifiers are tried at several strengths of regularisation: multinomial
logistic regression, and linear discriminant analysis with a shrunk covariance, which needs fewer
examples. Cross-validation on the examples decides. Only the process that fits imports this module.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.contracts.errors import FitFailed
from serving.evidence.heads.candidate import (
    CURVE_POINTS,
    DIMENSIONS,
    Candidate,
    Floats,
    Kind,
    Provenance,
    feature_rows,
)
from serving.evidence.heads.examples import FitRows
from serving.evidence.statistics.recalibration import fit_label_confidence

MIN_ROWS = 20
FOLDS = 5
LOGISTIC_C = (3.0, 10.0, 30.0)
SHRINKAGE = (0.5, 0.8, 0.95)
# Beyond these, choosing a strength and its curve gains nothing that 4,000 rows do not show.
_SELECTION_ROWS = 4000
_MAX_ITERATIONS = 300
_TOLERANCE = 1e-3
_TEMPERATURES = 2.0 ** np.arange(-6.0, 3.25, 0.25)
_OFFSET_VARIANCE = 4.0
_GAIN = 0.97
"""Ratio of errors, over all coverages, below which thresholds for each label are taken."""

Doubles = NDArray[np.float64]
Targets = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear map to scores. classes: (c,) int16. weights: (c, features). bias: (c,)."""

    classes: Targets
    weights: Doubles
    bias: Doubles

    def scaled(self, factor: float) -> "Linear":
        """Return the map with all scores multiplied by a factor."""
        return Linear(self.classes, self.weights * factor, self.bias * factor)


Fit = Callable[[Doubles, Targets], Linear]


def fit_candidates(rows: FitRows) -> list[Candidate]:
    """Return what can be fitted: `head`, and with enough rows of the model `recalibrated`, `both`.

    Blocking: seconds to minutes. Raises FitFailed where rows or labels are too few.
    """
    found = [fit_candidate("head", rows)]
    own = rows.with_model()
    if is_enough(own):
        found += [fit_candidate("recalibrated", own), fit_candidate("both", own)]
    return found


def is_enough(rows: FitRows) -> bool:
    """Return whether a candidate can be fitted: 20 rows, and two labels with two rows each."""
    counts = np.bincount(rows.targets) if len(rows) else np.zeros(1, np.int64)
    return len(rows) >= MIN_ROWS and int((counts >= 2).sum()) >= 2


def fit_candidate(kind: Kind, rows: FitRows) -> Candidate:
    """Return the candidate that cross-validation finds best. Raises FitFailed.

    Best: least area under the curve of errors over coverage.
    """
    if not is_enough(rows):
        raise FitFailed(
            f"{len(rows)} examples are too few to fit a head",
            fix=f"{MIN_ROWS} examples, and two of each of two labels, are the least",
        )
    features = feature_rows(kind, rows.inputs(), len(rows.labels)).astype(np.float64)
    scale = _scale(kind, features)
    selected = features[:_SELECTION_ROWS] / scale
    targets = rows.targets[:_SELECTION_ROWS]
    best: tuple[float, str, Fit, float, Doubles] | None = None
    for name, fit in _methods(kind):
        scores = _out_of_fold(fit, selected, targets, len(rows.labels))
        factor = _temperature(scores, targets)
        area = float(_plain_curve(scores * factor, targets)[:, 1].mean())
        if best is None or area < best[0]:
            best = (area, name, fit, factor, scores * factor)
    assert best is not None
    _, name, fit, factor, scores = best
    linear = fit(features / scale, rows.targets).scaled(factor)
    confidence = _confidence(scores, targets)
    method = f"{name} T={factor:.3g}{' by label' if confidence.by_label.size else ''}"
    return _candidate(kind, rows, linear.weights / scale, linear, method, confidence)


@dataclass(frozen=True, slots=True)
class _Confidence:
    """curve, by_label: of the candidate."""

    curve: Floats
    by_label: Floats


def _confidence(scores: Doubles, targets: Targets) -> _Confidence:
    """Return how confidence is computed: by label where that lowers the errors of unseen folds.

    scores: (n, labels) by cross-validation. The fit for each label is cross-validated, too.
    """
    plain = _plain_curve(scores, targets)
    found = _softmax(scores)
    highest, answers = found.max(axis=1), found.argmax(axis=1)
    right = (answers == targets).astype(np.float64)
    labels, folds = scores.shape[1], np.arange(len(targets)) % FOLDS
    fitted = np.zeros(len(targets))
    for fold in range(FOLDS):
        out, known = folds == fold, folds != fold
        one = fit_label_confidence(highest[known], answers[known], right[known], labels)
        fitted[out] = one(highest[out], answers[out])
    curve = risk_curve(fitted, 1.0 - right)
    if float(curve[:, 1].mean()) >= _GAIN * float(plain[:, 1].mean()):
        return _Confidence(plain, np.empty(0, np.float32))
    whole = fit_label_confidence(highest, answers, right, labels)
    values = np.concatenate([[whole.slope, whole.intercept], whole.by_label])
    return _Confidence(curve, values.astype(np.float32))


def _plain_curve(scores: Doubles, targets: Targets) -> Floats:
    found = _softmax(scores)
    wrong = (found.argmax(axis=1) != targets).astype(np.float64)
    return risk_curve(found.max(axis=1), wrong)


def risk_curve(confidence: Doubles, wrong: Doubles) -> Floats:
    """Return for each coverage of 1 to 100 % the least confidence and the share of errors.

    confidence, wrong: (n,). Returns (100, 2) float32.
    """
    order = np.argsort(-confidence, kind="stable")
    errors = np.cumsum(wrong[order]) / np.arange(1, len(order) + 1)
    last = np.ceil(np.arange(1, CURVE_POINTS + 1) / CURVE_POINTS * len(order)).astype(int) - 1
    return np.stack([confidence[order][last], errors[last]], axis=1).astype(np.float32)


def _candidate(
    kind: Kind, rows: FitRows, weights: Doubles, linear: Linear, method: str, found: _Confidence
) -> Candidate:
    provenance = Provenance(
        scope=rows.scope.id,
        task=rows.scope.task,
        spec_digest=rows.scope.spec_digest,
        encoder="" if kind == "recalibrated" else rows.encoder,
        model="" if kind == "head" else rows.model,
        method=method,
        rows=len(rows),
        rows_digest=rows.digest(),
    )
    return Candidate(
        kind, rows.labels, provenance, linear.classes, weights.astype(np.float32),
        linear.bias.astype(np.float32), found.curve, found.by_label,
    )  # fmt: skip


def _methods(kind: Kind) -> Iterator[tuple[str, Fit]]:
    if kind == "recalibrated":
        yield "temperature and offsets", _fit_offsets
        return
    for shrinkage in SHRINKAGE:
        yield f"discriminant analysis shrinkage={shrinkage:g}", _discriminant(shrinkage)
    for strength in LOGISTIC_C:
        yield f"logistic regression C={strength:g}", _logistic(strength)


def _logistic(strength: float) -> Fit:
    from sklearn.linear_model import LogisticRegression

    def fit(features: Doubles, targets: Targets) -> Linear:
        linear = LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS, tol=_TOLERANCE)
        linear.fit(features, targets)
        return _two_sided(linear)

    return fit


def _discriminant(shrinkage: float) -> Fit:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    def fit(features: Doubles, targets: Targets) -> Linear:
        linear = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
        with warnings.catch_warnings():
            # A label with one example has no covariance of its own: it counts as none.
            warnings.filterwarnings("ignore", "Only one sample available", UserWarning)
            linear.fit(features, targets)
        return _two_sided(linear)

    return fit


def _two_sided(linear: Any) -> Linear:
    """Return a fitted model with a row for each class; for two classes it has only one row."""
    classes = np.asarray(linear.classes_, np.int16)
    weights, bias = np.asarray(linear.coef_), np.asarray(linear.intercept_)
    if len(classes) == 2:
        weights, bias = np.vstack([-weights, weights]) / 2, np.array([-bias[0], bias[0]]) / 2
    return Linear(classes, weights, bias)


def _fit_offsets(features: Doubles, targets: Targets) -> Linear:
    """Fit one temperature and one offset for each label. features: log-probabilities."""
    from scipy.optimize import minimize

    labels = features.shape[1]
    chosen = (np.arange(len(targets)), targets)

    def loss(values: Doubles) -> tuple[float, Doubles]:
        slope, offsets = np.exp(values[0]), values[1:]
        scores = features * slope + offsets
        found = _softmax(scores)
        residual = found.copy()
        residual[chosen] -= 1.0
        # Offsets of labels that no example has stay near 0.
        penalty = float(offsets @ offsets) / (2 * _OFFSET_VARIANCE)
        gradient = residual.sum(axis=0) + offsets / _OFFSET_VARIANCE
        slope_gradient = float((residual * features).sum() * slope)
        value = -float(np.log(np.maximum(found[chosen], 1e-300)).sum()) + penalty
        return value, np.concatenate([[slope_gradient], gradient])

    bounds = [(-3.0, 3.0)] + [(-20.0, 20.0)] * labels
    found = minimize(loss, np.zeros(labels + 1), jac=True, method="L-BFGS-B", bounds=bounds)
    slope = float(np.exp(found.x[0]))
    return Linear(np.arange(labels, dtype=np.int16), np.eye(labels) * slope, found.x[1:])


def _out_of_fold(fit: Fit, features: Doubles, targets: Targets, labels: int) -> Doubles:
    """Return (n, labels) scores of each row by a fit without its fold; -inf for unseen labels."""
    # Rows are in the order of their digests, so that position modulo 5 is a random fold.
    folds = np.arange(len(targets)) % FOLDS
    scores = np.full((len(targets), labels), -np.inf)
    for fold in range(FOLDS):
        held_out = folds == fold
        if len(np.unique(targets[~held_out])) < 2:
            raise FitFailed("all examples but a few have one label", fix="wait for more examples")
        linear = fit(features[~held_out], targets[~held_out])
        rows = np.flatnonzero(held_out)
        scores[np.ix_(rows, linear.classes)] = features[rows] @ linear.weights.T + linear.bias
    return scores


def _temperature(scores: Doubles, targets: Targets) -> float:
    """Return the factor of the scores with the least log-loss, on a grid."""
    rows = np.arange(len(targets))
    known = np.isfinite(scores[rows, targets])
    if not known.any():
        return 1.0
    rows, targets = np.arange(int(known.sum())), targets[known]
    losses = [
        -np.log(np.maximum(_softmax(scores[known] * factor)[rows, targets], 1e-300)).mean()
        for factor in _TEMPERATURES
    ]
    return float(_TEMPERATURES[int(np.argmin(losses))])


def _scale(kind: Kind, features: Doubles) -> Doubles:
    """Return the divisor of each feature before a fit.

    Features beside the vector get the standard deviation of a component of the vector, so that
    regularisation treats them alike.
    """
    scale = np.ones(features.shape[1])
    if kind != "recalibrated":
        deviation = features.std(axis=0)
        component = float(deviation[:DIMENSIONS].mean())
        scale[DIMENSIONS:] = np.maximum(deviation[DIMENSIONS:], 1e-6) / component
    return scale


def _softmax(scores: Doubles) -> Doubles:
    exps = np.exp(scores - scores.max(axis=1, keepdims=True))
    return exps / exps.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]
