"""Verdicts: each boundary, missing numbers, and how many examples would decide."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.paired import accuracy_difference
from evals.verdict import Evidence, Judgement, judge
from serving.contracts.attestation import Certificate, Interval, Pair, Speed, Verdict

MARGIN, FLOOR = 0.02, 0.5
bounds = st.lists(st.floats(-0.3, 0.3), min_size=3, max_size=3).map(sorted)


def interval(lower: float, estimate: float, upper: float) -> Interval:
    return Interval(estimate=estimate, lower=lower, upper=upper, method="given")


def certificate(threshold: float | None = 0.9) -> Certificate:
    return Certificate(
        threshold=threshold, target_error=0.1, bound=0.08, coverage=0.5, errors=1, accepted=60,
        tested=120,
    )  # fmt: skip


def speed(lower: float | None, ratio: float, upper: float | None) -> Speed:
    return Speed(
        examples_per_s=Pair(baseline=1.0, candidate=ratio), ratio=ratio, lower=lower,
        upper=upper, blocks=4, required=0.9,
    )  # fmt: skip


GOOD = Evidence(
    n=300,
    difference=interval(-0.01, 0.0, 0.01),
    own=interval(0.6, 0.7, 0.8),
    margin=MARGIN,
    floor=FLOOR,
    slices={},
    certificate=certificate(),
    wrong_at_best=0.0,
    speed=speed(1.0, 1.2, 1.3),
)


def test_good_evidence_passes_with_its_reasons() -> None:
    found = judge(GOOD)
    assert found.verdict is Verdict.PASS
    assert len(found.reasons) == 4


@pytest.mark.parametrize(
    ("found", "weights", "expected"),
    [
        (speed(1.08, 1.15, 1.22), Pair(baseline=2.0, candidate=1.0),
         "its throughput is 1.15 (1.08 to 1.22) of the baseline's: faster"),
        (speed(0.92, 0.97, 0.999), Pair(baseline=3.0, candidate=2.0),
         "its throughput is 0.97 (0.92 to 1.00) of the baseline's: slower; its weights take 0.67 "
         "of the baseline's memory, so that 1.5 times as many replicas' weights fit"),
        (speed(1.0, 1.1, 1.3), Pair(baseline=2.0, candidate=2.0),
         "its throughput is 1.10 (1.00 to 1.30) of the baseline's: not shown to be faster; its "
         "weights take 1.00 of the baseline's memory: nothing is gained"),
        (speed(None, 1.1, None), None,
         "its throughput is 1.10 of the baseline's: not shown to be faster"),
    ],
)  # fmt: skip
def test_only_bounds_above_one_are_called_faster(
    found: Speed, weights: Pair | None, expected: str
) -> None:
    judged = judge(replace(GOOD, speed=found, weight_bytes=weights))
    assert judged.verdict is Verdict.PASS
    assert judged.reasons[-1] == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"difference": interval(-0.02, 0.0, 0.01)}, Verdict.PASS),
        ({"difference": interval(math.nextafter(-0.02, -1), 0.0, 0.01)}, Verdict.INCONCLUSIVE),
        ({"difference": interval(-0.1, -0.05, math.nextafter(-0.02, -1))}, Verdict.FAIL),
        ({"difference": interval(-0.1, -0.05, -0.02)}, Verdict.INCONCLUSIVE),
        ({"difference": None}, Verdict.FAIL),
        ({"margin": None}, Verdict.FAIL),
        ({"own": interval(0.5, 0.5, 0.6)}, Verdict.PASS),
        ({"own": interval(math.nextafter(0.5, 0), 0.5, 0.6)}, Verdict.INCONCLUSIVE),
        ({"own": interval(0.3, 0.4, math.nextafter(0.5, 0))}, Verdict.FAIL),
        ({"slices": {"en-de": interval(-0.3, -0.2, -0.1)}}, Verdict.FAIL),
        ({"slices": {"en-de": interval(-0.3, -0.2, 0.0)}}, Verdict.PASS),
        ({"certificate": None}, Verdict.INCONCLUSIVE),
        ({"certificate": certificate(None)}, Verdict.INCONCLUSIVE),
        ({"certificate": certificate(None), "wrong_at_best": 0.11}, Verdict.FAIL),
        ({"speed": speed(0.4, 0.5, math.nextafter(0.9, 0))}, Verdict.FAIL),
        ({"speed": speed(0.4, 0.5, 0.9)}, Verdict.PASS),
        ({"speed": speed(None, 0.5, None)}, Verdict.PASS),
        ({"speed": None}, Verdict.PASS),
    ],
)
def test_each_boundary_without_rounding(change: dict[str, object], expected: Verdict) -> None:
    found = judge(replace(GOOD, **change))
    assert found.verdict is expected
    assert found.reasons
    assert (found.more_examples > 0) == (expected is Verdict.INCONCLUSIVE)


@pytest.mark.parametrize("change", [{}, {"margin": None}])
def test_a_stop_is_the_verdict_whatever_the_part_that_was_seen_shows(
    change: dict[str, object],
) -> None:
    stop = Judgement(Verdict.INCONCLUSIVE, ("stopped after 8 examples: too few right",), 40)
    assert judge(replace(GOOD, stopped=stop, **change)) == stop


def test_a_missing_margin_permits_no_loss() -> None:
    (reason,) = judge(replace(GOOD, margin=None)).reasons
    assert "no margin is stated" in reason


def test_a_failure_outweighs_what_is_undecided() -> None:
    both = replace(GOOD, certificate=None, own=interval(0.1, 0.2, 0.3))
    found = judge(both)
    assert found.verdict is Verdict.FAIL
    assert found.reasons == ("its own metric is at most 0.3000; the floor is 0.5",)


@given(bounds, st.floats(0.0, 0.2))
def test_a_wider_margin_never_takes_a_pass_away(three: list[float], margin: float) -> None:
    found = judge(replace(GOOD, difference=interval(*three), margin=margin))
    assert (found.verdict is Verdict.PASS) == (three[0] >= -margin)
    assert (found.verdict is Verdict.FAIL) == (three[2] < -margin)
    if found.verdict is Verdict.PASS:
        wider = judge(replace(GOOD, difference=interval(*three), margin=margin + 0.05))
        assert wider.verdict is Verdict.PASS


def test_twenty_examples_are_inconclusive_and_the_number_named_decides() -> None:
    right = np.ones(20, dtype=bool)
    few = replace(GOOD, n=20, difference=accuracy_difference(right, right))
    # An identical copy: at the margin's own distance from zero the estimate is on one side.
    found = judge(few)
    assert found.verdict is Verdict.INCONCLUSIVE
    many = np.ones(20 + found.more_examples, dtype=bool)
    enough = replace(GOOD, n=len(many), difference=accuracy_difference(many, many))
    assert judge(enough).verdict is Verdict.PASS


def test_a_baseline_is_judged_by_its_floor_and_its_error_bound_alone() -> None:
    own = replace(GOOD, difference=None, margin=None, speed=None, is_baseline=True)
    assert judge(own).verdict is Verdict.PASS
    assert judge(replace(own, is_baseline=False)).verdict is Verdict.FAIL
    low = judge(replace(own, own=interval(0.3, 0.4, FLOOR - 0.01)))
    assert low.verdict is Verdict.FAIL
    assert "floor" in low.reasons[0]
    uncertain = judge(replace(own, certificate=certificate(None)))
    assert uncertain.verdict is Verdict.INCONCLUSIVE
