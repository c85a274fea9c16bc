"""The error against people: prediction-powered inference, and exact intervals of few labels."""

import numpy as np
import pytest

from serving.evidence.statistics.betting import Floats
from serving.evidence.statistics.intervals import clopper_pearson
from serving.evidence.statistics.people import (
    MIN_LABELS,
    agreement,
    error_against_people,
)

ERROR, NOISE = 0.12, 0.04
TRUE = ERROR * (1.0 - NOISE) + (1.0 - ERROR) * NOISE


def _sample(
    rng: np.random.Generator, audits: int, labels: int, noise: float = NOISE
) -> tuple[Floats, Floats, Floats]:
    """Return verdicts without labels, those with them, and people's. noise: reference's error."""
    verdicts = (rng.random(audits) < ERROR).astype(np.float64)
    people = np.where(rng.random(audits) < noise, 1.0 - verdicts, verdicts)
    return verdicts[labels:], verdicts[:labels], people[:labels]


def test_few_labels_give_their_own_exact_interval() -> None:
    judged, labelled, people = _sample(np.random.default_rng(1), 3000, MIN_LABELS - 1)
    expected = clopper_pearson(int(people.sum()), MIN_LABELS - 1)
    assert error_against_people(judged, labelled, people) == expected


def test_a_reference_without_errors_counts_as_labels_of_all_audits() -> None:
    """The weight is N / (N + n) and the rectifier what is left of the labels' verdicts."""
    judged, labelled = np.repeat([0.0, 1.0], [2376, 324]), np.repeat([0.0, 1.0], [264, 36])
    interval = error_against_people(judged, labelled, labelled)
    variance = 0.12 * 0.88
    weight = 0.9 * 300 / 299
    # Two disagreements of each sign are added to those seen.
    mean = (1.0 - weight) * 0.12
    left = (300 * (1.0 - weight) ** 2 * variance + 4.0 + 4.0 * mean**2) / 304
    half = 1.959964 * np.sqrt(weight**2 * variance / 2699 + left / 300)
    assert interval.mean == pytest.approx(0.12, abs=1e-12)
    assert interval.high - interval.mean == pytest.approx(half, rel=1e-6)


def test_a_reference_that_says_nothing_leaves_the_labels_alone() -> None:
    rng = np.random.default_rng(3)
    people = (rng.random(400) < 0.3).astype(np.float64)
    interval = error_against_people(np.zeros(2000), np.zeros(400), people)
    half = 1.96 * np.sqrt(people.var(ddof=1) / 400)
    assert interval.mean == pytest.approx(people.mean())
    assert interval.high - interval.mean == pytest.approx(half, rel=0.03)


@pytest.mark.parametrize(("labels", "noise"), [(100, 0.0), (100, 0.01), (200, 0.04), (500, 0.1)])
def test_the_interval_misses_the_error_in_at_most_one_of_twenty_samples(
    labels: int, noise: float
) -> None:
    rng = np.random.default_rng(4)
    true = ERROR * (1.0 - noise) + (1.0 - ERROR) * noise
    misses, narrower = 0, 0
    for _ in range(400):
        judged, labelled, people = _sample(rng, 3000, labels, noise)
        interval = error_against_people(judged, labelled, people)
        misses += not interval.low <= true <= interval.high
        alone = clopper_pearson(int(people.sum()), labels)
        narrower += interval.high - interval.low < alone.high - alone.low
    assert clopper_pearson(misses, 400).low <= 0.05
    assert narrower > 360


def test_labels_and_verdicts_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="1 verdicts for 2 labels"):
        error_against_people(np.zeros(3), np.zeros(1), np.zeros(2))
    with pytest.raises(ValueError, match="people labelled no audited input"):
        error_against_people(np.zeros(3), np.empty(0), np.empty(0))


def test_kappa_of_a_published_table() -> None:
    # Cohen (1960), as in the usual worked example of 50 proposals: 20 yes-yes, 15 no-no, 5 and 10.
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    found = agreement(pairs)
    assert found.share.mean == pytest.approx(0.7)
    assert found.kappa == pytest.approx(0.4)
    assert agreement([("y", "y")] * 3).kappa is None
