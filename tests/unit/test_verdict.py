"""Verdicts: each boundary, what is missing, and how many examples would decide."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.paired import Difference, accuracy_difference
from evals.verdict import Verdict, examples_to_decide, judge

MARGIN, FLOOR = 0.02, 0.5
bounds = st.lists(st.floats(-0.3, 0.3), min_size=3, max_size=3).map(sorted)


def difference(lower: float, estimate: float, upper: float) -> Difference:
    return Difference(estimate, lower, upper, "given")


@pytest.mark.parametrize(
    ("found", "own", "expected"),
    [
        (difference(-0.02, 0.0, 0.01), 0.6, Verdict.PASS),
        (difference(math.nextafter(-0.02, -1), 0.0, 0.01), 0.6, Verdict.INCONCLUSIVE),
        (difference(-0.1, -0.05, math.nextafter(-0.02, -1)), 0.6, Verdict.FAIL),
        (difference(-0.1, -0.05, -0.02), 0.6, Verdict.INCONCLUSIVE),
        (difference(0.1, 0.2, 0.3), math.nextafter(0.5, 0), Verdict.FAIL),
        (difference(0.1, 0.2, 0.3), 0.5, Verdict.PASS),
        (None, 0.6, Verdict.FAIL),
        (difference(0.1, 0.2, 0.3), None, Verdict.FAIL),
    ],
)
def test_nothing_is_rounded_before_it_is_compared(
    found: Difference | None, own: float | None, expected: Verdict
) -> None:
    assert judge(found, own, n=300, margin=MARGIN, floor=FLOOR).verdict is expected


def test_no_margin_is_no_permission() -> None:
    found = judge(difference(0.1, 0.2, 0.3), 0.9, n=300, margin=None, floor=FLOOR)
    assert found.verdict is Verdict.FAIL
    assert "margin" in found.reason


@given(bounds, st.floats(0.0, 1.0), st.floats(0.0, 0.2))
def test_the_three_verdicts_exclude_each_other(
    three: list[float], own: float, margin: float
) -> None:
    found = difference(*three)
    verdict = judge(found, own, n=100, margin=margin, floor=FLOOR).verdict
    assert (verdict is Verdict.PASS) == (found.lower >= -margin and own >= FLOOR)
    if own >= FLOOR:
        assert (verdict is Verdict.FAIL) == (found.upper < -margin)
    wider = judge(found, own, n=100, margin=margin + 0.05, floor=FLOOR).verdict
    if verdict is Verdict.PASS:
        assert wider is Verdict.PASS, "a wider margin never takes a pass away"


def test_twenty_examples_are_inconclusive_and_the_number_named_decides() -> None:
    right = np.ones(20, dtype=bool)
    found = accuracy_difference(right, right)
    verdict = judge(found, 0.9, n=20, margin=MARGIN, floor=FLOOR)
    assert verdict.verdict is Verdict.INCONCLUSIVE
    assert verdict.more_examples > 0
    many = np.ones(20 + verdict.more_examples, dtype=bool)
    decided = accuracy_difference(many, many)
    assert judge(decided, 0.9, n=len(many), margin=MARGIN, floor=FLOOR).verdict is Verdict.PASS


@given(bounds, st.integers(10, 1000))
def test_more_examples_are_always_more(three: list[float], n: int) -> None:
    assert examples_to_decide(difference(*three), n, MARGIN) > n
