"""Calibration maps and certified thresholds: properties, exact values, and the promised error."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from evals.certification import (
    accepted_needed,
    calibrated,
    candidate_thresholds,
    certify,
    error_bound,
    expected_calibration_error,
    fit_calibration,
)

pairs = st.lists(
    st.tuples(st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9, 1.0]), st.booleans()),
    min_size=1, max_size=60,
)  # fmt: skip


def arrays(examples):  # type: ignore[no-untyped-def]
    raw = np.array([confidence for confidence, _ in examples])
    return raw, np.array([right for _, right in examples], dtype=bool)


@given(pairs, st.randoms(use_true_random=False))
def test_a_map_never_falls_is_never_certain_and_ignores_the_order(examples, random) -> None:  # type: ignore[no-untyped-def]
    raw, right = arrays(examples)
    fitted = fit_calibration(raw, right)
    assert all(a <= b for a, b in zip(fitted.values, fitted.values[1:], strict=False))
    assert all(a < b for a, b in zip(fitted.knots, fitted.knots[1:], strict=False))
    assert all(0.0 < value < 1.0 for value in fitted.values)
    random.shuffle(examples)
    again = fit_calibration(*arrays(examples))
    assert again.knots == fitted.knots
    assert again.values == pytest.approx(fitted.values)


def test_a_map_repairs_overconfidence() -> None:
    random = np.random.default_rng(0)
    truth = random.random(20_000)
    right = random.random(20_000) < truth
    raw = truth**0.25
    fitted = fit_calibration(raw[:10_000], right[:10_000])
    before = expected_calibration_error(raw[10_000:], right[10_000:])
    after = expected_calibration_error(calibrated(fitted, raw[10_000:]), right[10_000:])
    assert before > 0.2
    assert after < 0.03


def test_the_calibration_error_of_a_known_case() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.15, 0.15])
    right = np.array([True, True, True, False, False, False])
    assert expected_calibration_error(confidence, right) == pytest.approx((0.8 + 0.3) / 6)
    assert expected_calibration_error(np.array([1.0]), np.array([True])) == 0.0


@given(st.integers(1, 400), st.data())
def test_the_bound_is_where_the_counted_errors_become_unlikely(n: int, data) -> None:  # type: ignore[no-untyped-def]
    errors = data.draw(st.integers(0, n - 1))
    bound = error_bound(errors, n)
    assert errors / n < bound <= 1.0
    assert binom.cdf(errors, n, bound) == pytest.approx(0.05, abs=1e-6)
    exact = binomtest(errors, n, alternative="less").proportion_ci(0.95, method="exact")
    assert bound == pytest.approx(exact.high, abs=1e-10)


def test_without_errors_the_numbers_are_those_that_are_promised() -> None:
    assert [accepted_needed(alpha) for alpha in (0.05, 0.02, 0.01)] == [59, 149, 299]
    for alpha in (0.05, 0.02, 0.01):
        needed = accepted_needed(alpha)
        assert error_bound(0, needed) <= alpha < error_bound(0, needed - 1)
    assert error_bound(0, 0) == error_bound(5, 5) == 1.0


@given(pairs)
def test_thresholds_go_from_strict_to_permissive_and_the_last_takes_all(examples) -> None:  # type: ignore[no-untyped-def]
    confidence, right = arrays(examples)
    found = candidate_thresholds(confidence, right)
    assert found == sorted(set(found), reverse=True)
    assert found[-1] == confidence.min()
    assert candidate_thresholds(np.array([]), np.array([], dtype=bool)) == []


def test_the_first_threshold_accepts_enough_to_prove_something() -> None:
    confidence = np.linspace(0.0, 1.0, 400)
    right = np.ones(400, dtype=bool)
    right[:99] = False
    (first, *_) = candidate_thresholds(confidence, right)
    # One in twenty of the examples would be the strictest; all 301 right ones prove most.
    assert (confidence >= first).sum() == 301


@given(pairs, st.sampled_from([0.1, 0.3, 0.49]))
def test_the_certified_bound_holds_for_the_counted_examples(examples, alpha) -> None:  # type: ignore[no-untyped-def]
    confidence, right = arrays(examples)
    found = certify(sorted(set(confidence), reverse=True), confidence, right, alpha)
    if found.threshold is None:
        assert (found.bound, found.coverage, found.accepted) == (1.0, 0.0, 0)
        return
    taken = confidence >= found.threshold
    assert found.accepted == taken.sum()
    assert found.errors == (taken & ~right).sum()
    assert found.bound == error_bound(found.errors, found.accepted) <= alpha
    assert found.coverage == pytest.approx(taken.mean())


def test_the_search_stops_at_the_first_failure() -> None:
    confidence = np.array([0.9] * 100 + [0.8] * 20 + [0.7] * 2000)
    right = np.array([True] * 100 + [False] * 20 + [True] * 2000)
    found = certify([0.9, 0.8, 0.7], confidence, right, 0.05)
    assert found.threshold == 0.9, "0.7 would pass, and comes after one that does not"


def test_twenty_examples_certify_nothing_at_five_percent() -> None:
    confidence, right = np.full(20, 0.99), np.ones(20, dtype=bool)
    assert certify([0.99], confidence, right, 0.05).threshold is None


@pytest.mark.parametrize(("alpha", "sharpness"), [(0.05, 8.0), (0.10, 5.5)])
def test_over_random_splits_the_bound_is_broken_in_at_most_five_percent(
    alpha: float, sharpness: float
) -> None:
    random = np.random.default_rng(11)
    n = 10_000
    raw = random.random(n)
    chance = 1 / (1 + np.exp(-sharpness * (raw - 0.2)))
    right = random.random(n) < chance
    broken = certified = 0
    for _ in range(200):
        sample = random.choice(n, size=1200, replace=False)
        one, other = sample[:600], sample[600:]
        fitted = fit_calibration(raw[one], right[one])
        thresholds = candidate_thresholds(calibrated(fitted, raw[one]), right[one])
        found = certify(thresholds, calibrated(fitted, raw[other]), right[other], alpha)
        if found.threshold is None:
            continue
        certified += 1
        accepted = calibrated(fitted, raw) >= found.threshold
        broken += float(1 - chance[accepted].mean()) > alpha
    print(f"alpha={alpha}: certified {certified} of 200 splits, bound broken in {broken}")
    assert certified > 100, "a certificate that is hardly ever given proves little"
    assert broken <= 0.05 * 200


@given(pairs, st.lists(st.floats(-0.5, 1.5), min_size=2, max_size=30))
def test_serving_and_evaluation_calibrate_alike_and_in_order(examples, raws) -> None:  # type: ignore[no-untyped-def]
    fitted = fit_calibration(*arrays(examples))
    found = [fitted.calibrated(raw) for raw in sorted(raws)]
    assert found == sorted(found)
    assert found == calibrated(fitted, np.array(sorted(raws))).tolist()
    assert found == pytest.approx(np.interp(sorted(raws), fitted.knots, fitted.values).tolist())


def test_more_tested_answers_start_at_a_stricter_threshold() -> None:
    # The surest 20 are all right, the next 140 are wrong once in 40, the rest once in 4.
    confidence = np.linspace(1.0, 0.0, 400)
    places = np.arange(400)
    every = np.where(places < 20, 401, np.where(places < 160, 40, 4))
    right = places % every != every - 1
    usual = candidate_thresholds(confidence, right)
    assert candidate_thresholds(confidence, right, len(confidence)) == usual
    more = candidate_thresholds(confidence, right, 8000)
    assert more[0] > usual[0]
    assert more[-len(usual) :] == usual
    assert candidate_thresholds(confidence, right, 40)[0] <= usual[0]
