"""The error against people, where a model is the reference: prediction-powered inference.

People label a random sample of the audited inputs. The reference's verdict is known for all of
them; the sample measures by how much it is off (the rectifier). Angelopoulos, Bates, Fannjiang,
Jordan and Zrnic, "Prediction-powered inference" (2023); with the weight of "PPI++" (2023).
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from serving.evidence.statistics.betting import Floats
from serving.evidence.statistics.intervals import CONFIDENCE, Interval, clopper_pearson

_ADDED = 2
"""Disagreements of each sign that the variance of the rectifier is computed with besides.

Few disagreements are seen, and with their own variance the interval of 100 labels missed an error
above it in 15 of 100 simulated samples (reference wrong at 1 %); with these, in 2 at most (in 3 to
5, of 500 labels).
"""

MIN_LABELS = 100
"""Labels by people from which the normal approximation of the rectifier is used."""


def error_against_people(
    judged: Floats, judged_labelled: Floats, people: Floats, confidence: float = CONFIDENCE
) -> Interval:
    """Return the error against people, of a fixed sample.

    judged: (N,) losses against the reference of audited inputs without a person's label.
    judged_labelled, people: (n,) losses against the reference and against people of the inputs that
    people labelled, a random sample of the same inputs. With fewer than 100 labels their own exact
    interval is returned (losses above one half count as errors). Raises ValueError.
    """
    _require_pairs(judged_labelled, people)
    if len(people) < MIN_LABELS or len(judged) == 0:
        return clopper_pearson(int(np.count_nonzero(people > 0.5)), len(people), confidence)
    n, more = len(people), len(judged)
    weight = _power(judged, judged_labelled, people)
    rectifier = people - weight * judged_labelled
    mean = weight * float(judged.mean()) + float(rectifier.mean())
    variance = weight**2 * float(judged.var(ddof=1)) / more + _variance(rectifier) / n
    half = float(special.ndtri((1.0 + confidence) / 2.0)) * math.sqrt(variance)
    return Interval(mean, max(0.0, mean - half), min(1.0, mean + half))


def _variance(rectifier: Floats) -> float:
    """Return the variance of values in [-1, 1] about their mean, with the added disagreements."""
    mean = rectifier.mean()
    added = _ADDED * ((1.0 - mean) ** 2 + (1.0 + mean) ** 2)
    return float((((rectifier - mean) ** 2).sum() + added) / (len(rectifier) + 2 * _ADDED))


def _require_pairs(judged_labelled: Floats, people: Floats) -> None:
    if len(people) != len(judged_labelled):
        raise ValueError(f"{len(judged_labelled)} verdicts for {len(people)} labels of people")
    if len(people) == 0:
        raise ValueError("people labelled no audited input")


def _power(judged: Floats, judged_labelled: Floats, people: Floats) -> float:
    """Return the weight of the reference's verdicts that makes the variance least, in [0, 1]."""
    spread = float(np.concatenate([judged, judged_labelled]).var())
    if spread == 0.0:
        return 0.0
    shared = float(np.cov(people, judged_labelled)[0, 1])
    return min(1.0, max(0.0, shared / (spread * (1.0 + len(people) / len(judged)))))


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often two people gave one input the same label.

    share: with its exact 95 % interval. kappa: Cohen's (1960): 1 is perfect, 0 is chance; None
    where both always gave one label.
    """

    inputs: int
    share: Interval
    kappa: float | None


def agreement(pairs: Sequence[tuple[str, str]]) -> Agreement:
    """Return the agreement of pairs of labels. Raises ValueError without any."""
    count = len(pairs)
    same = sum(one == other for one, other in pairs)
    share = clopper_pearson(same, count)
    first, second = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    chance = sum(first[label] * second[label] for label in first) / count**2
    kappa = None if chance == 1.0 else (share.mean - chance) / (1.0 - chance)
    return Agreement(count, share, kappa)
