"""Metrics of a task over resamples of its examples.

Each example is reduced once to a row of counts; a metric is a function of the sum of rows, so ten
thousand resamples take seconds. All metrics are in [0, 1]: chrF++ and BLEU are divided by 100.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.contracts.answer import Prediction, Translation
from serving.contracts.task_spec import (
    ClassificationSpec,
    ExtractionSpec,
    TaskSpec,
    TranslationSpec,
)
from serving.tasks.loss import entity_pairs, loss_of

Counts = NDArray[np.float64]
Expected = str | tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric. row: counts of one answer, (k,). values: metrics of summed rows, (..., k)."""

    name: str
    row: Callable[[Prediction, Expected], Sequence[float]]
    values: Callable[[Counts], Counts]

    def value(self, total: Counts) -> float:
        """Return the metric of one sum of rows, (k,)."""
        return float(self.values(total))

    def over(self, rows: Counts) -> Callable[[NDArray[np.intp]], Counts]:
        """Return the metric as a function of row indices, (..., n) in, (...) out.

        rows: (n, k).
        """
        return lambda chosen: self.values(rows[chosen].sum(axis=-2))

    def rows(self, predictions: Sequence[Prediction], expected: Sequence[Expected]) -> Counts:
        """Return (n, k) counts, in the examples' order."""
        pairs = zip(predictions, expected, strict=True)
        return np.array([self.row(prediction, want) for prediction, want in pairs], dtype=float)


def metric_of(spec: TaskSpec) -> Metric:
    """Return the metric that a task names."""
    match spec:
        case ClassificationSpec(metric="accuracy"):
            return Metric("accuracy", _accuracy_row, lambda total: total[..., 0] / total[..., 1])
        case ClassificationSpec():
            return _macro_f1([label.name for label in spec.labels])
        case ExtractionSpec():
            return Metric("micro_f1", _entity_row, _f1)
        case TranslationSpec():
            return _translation(spec.metric)


def is_right(spec: TaskSpec, prediction: Prediction, expected: Expected, seed: str = "") -> bool:
    """Return whether an answer counts as right, for calibration and the error bound.

    An answer with a loss between 0 and 1 counts as wrong with that probability. The expected count
    of wrong answers is then the sum of the losses, and the exact binomial bound holds for it. seed:
    fixes the draw; an example's id.
    """
    loss = loss_of(spec, prediction.value, expected, valid=prediction.valid)
    if loss in (0.0, 1.0):
        return loss == 0.0
    drawn = hashlib.sha256(f"narrowgate-loss:{seed}".encode()).digest()[:7]
    return int.from_bytes(drawn) / 2**56 >= loss


def _accuracy_row(prediction: Prediction, expected: Expected) -> Sequence[float]:
    return (float(prediction.valid and prediction.value == expected), 1.0)


def _macro_f1(labels: list[str]) -> Metric:
    number = {label: index for index, label in enumerate(labels)}
    k = len(labels)

    def row(prediction: Prediction, expected: Expected) -> Sequence[float]:
        # True positives, predictions and expected labels of each class.
        counts = np.zeros(3 * k)
        found, wanted = number[str(prediction.value)], number[str(expected)]
        counts[found] = float(found == wanted)
        counts[k + found] += 1.0
        counts[2 * k + wanted] += 1.0
        return counts.tolist()

    def values(total: Counts) -> Counts:
        right, both = total[..., :k], total[..., k : 2 * k] + total[..., 2 * k :]
        # Classes without expected labels and without answers in a resample do not count.
        f1 = np.divide(2.0 * right, both, out=np.zeros_like(right), where=both > 0)
        mean: Counts = f1.sum(axis=-1) / (both > 0).sum(axis=-1)
        return mean

    return Metric("macro_f1", row, values)


def _entity_row(prediction: Prediction, expected: Expected) -> Sequence[float]:
    assert isinstance(expected, tuple)
    found, wanted = Counter(entity_pairs(prediction.value)), Counter(expected)
    right = sum((found & wanted).values())
    return (float(right), float(sum(found.values())), float(sum(wanted.values())))


def _f1(total: Counts) -> Counts:
    both = total[..., 1] + total[..., 2]
    # No entities expected and none found: F1 is 1.
    return np.divide(2.0 * total[..., 0], both, out=np.ones_like(both), where=both > 0)


def _scorer(name: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(word_order=2) if name == "chrf" else BLEU(effective_order=False)


def _translation(name: str) -> Metric:
    scorer = _scorer(name)

    def row(prediction: Prediction, expected: Expected) -> Sequence[float]:
        assert isinstance(prediction.value, Translation)
        # sacrebleu sums these counts over a corpus. There is no public API for them.
        (counts,) = scorer._extract_corpus_statistics([prediction.value.text], [[str(expected)]])
        return [float(count) for count in counts]

    def value(total: Counts) -> float:
        score = scorer._compute_score_from_stats([int(count) for count in total])
        return float(score.score) / 100

    # One sum at a time: sacrebleu is not vectorized.
    return Metric(name, row, lambda total: np.apply_along_axis(value, -1, total))
