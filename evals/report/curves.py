"""Computes the data of the report's plots. Pure; nothing is rounded."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from evals.certification import equal_width_bins, error_bound
from evals.findings import Outcome

Model = Literal["baseline", "candidate"]
FlipKind = Literal["lost", "gained", "changed"]
FLIP_ORDER: tuple[FlipKind, ...] = ("lost", "gained", "changed")

OUTSIDE = "(no label)"
"""Column of a confusion matrix for answers that are not a label."""


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers of similar confidence. Shares in [0, 1]; lower, upper: one-sided 95 % bounds.

    start, end: the bin's edges. confidence: mean in the bin. accuracy: share of right answers.
    """

    start: float
    end: float
    count: int
    confidence: float
    accuracy: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class RiskPoint:
    """Coverage and errors at one confidence threshold. Shares in [0, 1].

    risk: share of errors among accepted answers. bound: its Clopper-Pearson upper bound at 95 %,
    for this threshold only.
    """

    threshold: float
    coverage: float
    errors: int
    accepted: int
    risk: float
    bound: float


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of expected labels (rows) by answered labels (columns)."""

    labels: tuple[str, ...]
    counts: NDArray[np.int64]

    @property
    def shares(self) -> NDArray[np.float64]:
        """Return the counts as shares of their row; 0 where a label does not occur."""
        rows = np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        return np.asarray(self.counts / rows, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Flip:
    """A changed answer. lost: was right, is wrong; gained: was wrong, is right."""

    kind: FlipKind
    outcome: Outcome


def certification_half(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Return the outcomes of the certification half."""
    return [outcome for outcome in outcomes if outcome.half == "certification"]


def reliability(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> list[Bin]:
    """Return the occupied bins of equal width over [0, 1], as for the ECE.

    confidence, right: (n,). The bounds are Clopper-Pearson bounds.
    """
    values = np.asarray(confidence, dtype=np.float64)
    hits = np.asarray(right, dtype=bool)
    number = equal_width_bins(values, bins)
    found = []
    for index in range(bins):
        inside = number == index
        count, hit = int(inside.sum()), int(hits[inside].sum())
        if count:
            found.append(
                Bin(
                    start=index / bins,
                    end=(index + 1) / bins,
                    count=count,
                    confidence=float(values[inside].mean()),
                    accuracy=hit / count,
                    lower=1.0 - error_bound(count - hit, count),
                    upper=error_bound(hit, count),
                )
            )
    return found


def risk_coverage(confidence: Sequence[float], right: Sequence[bool]) -> list[RiskPoint]:
    """Return one point per distinct confidence, from strict to permissive; the last accepts all.

    confidence, right: (n,). No threshold separates equal confidences, so they are accepted
    together.
    """
    order = sorted(zip(confidence, right, strict=True), key=lambda pair: -pair[0])
    points = []
    accepted = errors = 0
    for threshold, same in groupby(order, key=lambda pair: pair[0]):
        hits = [hit for _, hit in same]
        accepted += len(hits)
        errors += hits.count(False)
        points.append(
            RiskPoint(
                threshold=threshold,
                coverage=accepted / len(order),
                errors=errors,
                accepted=accepted,
                risk=errors / accepted,
                bound=error_bound(errors, accepted),
            )
        )
    return points


def confusion(labels: Sequence[str], outcomes: Sequence[Outcome], model: Model) -> Confusion:
    """Return one model's confusion matrix.

    If either model gave an answer that is not a label, OUTSIDE is added as the last label. Both
    models' matrices have the same shape.
    """
    known = frozenset(labels)
    answers = {answer for outcome in outcomes for answer in (outcome.baseline, outcome.candidate)}
    names = (*labels, OUTSIDE) if answers - known else tuple(labels)
    index = {name: position for position, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for outcome in outcomes:
        answer = outcome.baseline if model == "baseline" else outcome.candidate
        counts[index[outcome.expected], index.get(answer, len(names) - 1)] += 1
    return Confusion(names, counts)


def flips(outcomes: Sequence[Outcome]) -> list[Flip]:
    """Return the answers that changed: lost, then gained, then the rest, each in their order."""
    found = [Flip(_kind(outcome), outcome) for outcome in outcomes if outcome.flipped]
    return sorted(found, key=lambda flip: FLIP_ORDER.index(flip.kind))


def _kind(outcome: Outcome) -> FlipKind:
    if outcome.baseline_right == outcome.candidate_right:
        return "changed"
    return "lost" if outcome.baseline_right else "gained"
