"""Which hypotheses of a new candidate are worth testing: thresholds, by cross-validation.

Every hypothesis that a scope tests raises the bar of the next. So few are opened, each where it is
expected to be earned within a given number of inputs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.evidence.statistics.betting import Floats, examples_needed

FIT_SIZES = (100, 200, 600)
"""Labels at which a candidate is fitted again."""

COVERAGES = (0.6, 0.4, 0.8)
"""Shares of inputs that the thresholds of a fit would accept, in the order of testing."""

WIDER = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4)
"""Shares of inputs that are looked at beside a held claim, which one of them may widen."""

COMPARED_AT = 0.6
"""Coverage at which the candidates of one fit are compared: one is tested, as tests are costly."""

GAIN = 0.05
"""Coverage that a newer fit must promise beyond that of the held claim to be tested."""

HORIZON = 5_000.0
"""Inputs within which a hypothesis is expected to be earned, else it is not opened."""

FALSE_CLAIMS = 0.05
"""Probability that any claim of a scope is false when it is earned."""


def bar(hypothesis: int) -> float:
    """Return the e-value at which the j-th hypothesis of a scope is claimed: j (j + 1) / 0.05.

    The inverses sum to 0.05 over all j. Raises ValueError below 1.
    """
    if hypothesis < 1:
        raise ValueError(f"hypotheses are numbered from 1, not {hypothesis!r}")
    return hypothesis * (hypothesis + 1) / FALSE_CLAIMS


@dataclass(frozen=True, slots=True)
class Opening:
    """Opens the test of "from `threshold` on, the mean loss is at least the target".

    expected_error, expected_coverage: by cross-validation on the examples that fitted the
    candidate. The error is in (0, 1); a wrong one costs evidence, never validity.
    """

    candidate: str
    threshold: float
    expected_error: float
    expected_coverage: float

    def inputs_needed(self, target: float, hypothesis: int) -> float:
        """Return how many inputs would earn it as the given hypothesis of the scope, inf if none.

        Ideal bets; the running estimate costs some more.
        """
        needed = examples_needed(self.expected_error, target, bar(hypothesis))
        return needed / max(self.expected_coverage, 1e-9)


def place_thresholds(
    candidate: str,
    confidence: Floats,
    loss: Floats,
    target: float,
    *,
    first: int = 1,
    coverages: Sequence[float] = COVERAGES,
    horizon: float = HORIZON,
) -> tuple[Opening, ...]:
    """Return the hypotheses of a new fit in the order of testing; those off course are left out.

    confidence, loss: (n,) of the examples that fitted the candidate, each from a model that did not
    see it (cross-validation); of any earlier examples for a candidate that was not fitted.
    first: number of the next hypothesis of the scope. horizon: inputs within which a hypothesis is
    expected to be earned to be opened. Raises ValueError for no examples.
    """
    if len(confidence) == 0 or len(confidence) != len(loss):
        raise ValueError(f"{len(confidence)} confidences and {len(loss)} losses")
    order = np.argsort(-confidence, kind="stable")
    errors = np.cumsum(loss[order]) / np.arange(1, len(order) + 1)
    sizes = (max(1, math.ceil(coverage * len(order) - 1e-9)) for coverage in coverages)
    # Equal confidences are accepted together.
    last = [int(np.count_nonzero(confidence >= confidence[order[size - 1]])) - 1 for size in sizes]
    points = [(float(confidence[order[at]]), float(errors[at]), at + 1) for at in last]
    return _on_course(candidate, points, len(order), target, first, horizon)


def widest(openings: Sequence[Opening], covered: float) -> tuple[Opening, ...]:
    """Return the opening that accepts most, where that is visibly more than the held claim does.

    covered: share of inputs that the held claim accepts. One at most: each test raises the bar of
    the next.
    """
    more = [one for one in openings if one.expected_coverage >= covered + GAIN]
    return tuple(sorted(more, key=lambda one: -one.expected_coverage)[:1])


def place_on_curve(
    candidate: str,
    curve: Floats,
    examples: int,
    target: float,
    *,
    first: int = 1,
    coverages: Sequence[float] = COVERAGES,
    horizon: float = HORIZON,
) -> tuple[Opening, ...]:
    """Return the same from a curve of errors over coverage.

    curve: (points, 2), least confidence and error at equally spaced coverages up to 1, by
    cross-validation on `examples` examples. Raises ValueError for an empty curve.
    """
    if len(curve) == 0 or examples < 1:
        raise ValueError(f"a curve of {len(curve)} points on {examples!r} examples")
    points = []
    for coverage in coverages:
        at = max(0, math.ceil(coverage * len(curve) - 1e-9) - 1)
        size = max(1, round((at + 1) / len(curve) * examples))
        points.append((float(curve[at, 0]), float(curve[at, 1]), size))
    return _on_course(candidate, points, examples, target, first, horizon)


def _on_course(
    candidate: str,
    points: Sequence[tuple[float, float, int]],
    examples: int,
    target: float,
    first: int,
    horizon: float,
) -> tuple[Opening, ...]:
    """Return openings at (threshold, error, accepted examples) that are expected to be earned."""
    openings: list[Opening] = []
    for threshold, error, size in points:
        # One example at the target: a fit that made no error is not taken for perfect.
        expected = (error * size + target) / (size + 1)
        opening = Opening(candidate, threshold, expected, size / examples)
        known = any(other.threshold == threshold for other in openings)
        if not known and opening.inputs_needed(target, first + len(openings)) <= horizon:
            openings.append(opening)
    return tuple(openings)
