"""Earning of a claim: what counts, when a hypothesis is claimed, and what a suspension takes."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from serving.evidence.statistics.betting import Floats
from serving.evidence.statistics.earning import Earning, EarningRules, Reopened, Row
from serving.evidence.statistics.examples import Example, Outcome
from serving.evidence.statistics.intervals import clopper_pearson
from serving.evidence.statistics.placement import (
    COVERAGES,
    WIDER,
    Opening,
    bar,
    place_on_curve,
    place_thresholds,
    widest,
)

from .capital_paths import capital_path

TARGET = 0.15
RULES = EarningRules(TARGET, min_groups=50, min_span_h=0.0)
OPENING = Opening("model", 0.5, 0.05, 0.6)


def _example(
    at: int, loss: float, confidence: float = 0.9, *, missing: bool = False, name: str = "model"
) -> Example:
    outcomes = {name: Outcome(confidence, loss)}
    return Example(str(at), str(at), str(at), 60.0 * at, 1.0, outcomes, missing=missing)


def _later(at_s: float) -> Row:
    """Return a row that counts for nothing and completes the groups before it."""
    return Example("later", "later", "later", at_s, None, {})


def _right(count: int, start: int = 0) -> Iterator[Row]:
    return (_example(at, 0.0) for at in range(start, start + count))


def test_a_claim_is_earned_at_the_bar_of_its_number_and_not_before() -> None:
    rng = np.random.default_rng(1)
    losses = (rng.random(300) < 0.05).astype(np.float64)
    # The group of an example is complete with the next one.
    path = capital_path(losses, TARGET, OPENING.expected_error)
    reached = int((path >= math.log(bar(1))).argmax()) + 1
    earning = Earning(RULES)
    earning.add(OPENING)
    found = [earning.add(_example(at, loss)) for at, loss in enumerate(losses)]
    earned = [at for at, hypothesis in enumerate(found) if hypothesis is not None]
    assert earned == [max(reached, RULES.min_groups)]
    assert earning.earned is not None
    assert earning.hypotheses[0].capital.log_e == pytest.approx(path[-2], abs=1e-9)


def test_only_examples_after_the_opening_count_for_a_hypothesis() -> None:
    earning = Earning(RULES).extend(_right(200))
    earning.add(OPENING)
    assert earning.hypotheses[0].seen == 0
    earning.extend(_right(11, start=200))
    # The example before the opening was open still; it counts for the scope and not for this.
    assert (earning.hypotheses[0].seen, earning.counted) == (10, 210)


def test_the_second_hypothesis_needs_three_times_the_evidence_of_the_first() -> None:
    first, second = Earning(RULES), Earning(RULES)
    first.add(OPENING)
    second.extend([replace(OPENING, candidate="other"), OPENING])
    rows = list(_right(120))
    counts = []
    for earning in (first, second):
        found = [earning.add(row) is not None for row in rows]
        counts.append(found.index(True))
    assert counts[0] == RULES.min_groups
    assert first.earned is not None
    assert second.earned is not None
    assert second.earned.capital.log_e >= math.log(bar(2)) > math.log(bar(1))


def test_the_claim_goes_to_the_hypothesis_that_accepts_most() -> None:
    rng = np.random.default_rng(2)
    earning = Earning(RULES)
    earning.extend([replace(OPENING, threshold=0.7), replace(OPENING, threshold=0.2)])
    earning.extend(_example(at, 0.0, rng.random()) for at in range(600))
    assert earning.earned is not None
    assert earning.earned.opening.threshold == 0.2
    assert earning.earned.coverage == pytest.approx(0.8, abs=0.05)


def test_two_hypotheses_of_about_equal_coverage_do_not_take_turns() -> None:
    rng = np.random.default_rng(4)
    earning = Earning(RULES)
    earning.extend([OPENING, replace(OPENING, candidate="other")])
    claimed = []
    for at in range(2000):
        # Each accepts half of the inputs, and not the same ones: now one is ahead, now the other.
        outcomes = {name: Outcome(rng.random(), 0.0) for name in (OPENING.candidate, "other")}
        found = earning.add(replace(_example(at, 0.0), outcomes=outcomes))
        claimed += [] if found is None else [found.number]
    # While few examples are seen, chance may put one clearly ahead.
    assert len(claimed) <= 2


def test_a_missing_verdict_is_a_loss_and_many_prevent_a_claim() -> None:
    one, other = Earning(RULES), Earning(RULES)
    for earning, missing in ((one, True), (other, False)):
        earning.add(OPENING)
        earning.extend(
            _example(at, float(at % 50 == 0), missing=missing and at % 50 == 0) for at in range(300)
        )
    assert one.hypotheses == other.hypotheses
    assert one.earned is not None
    assert one.missing == 6
    many = Earning(replace(RULES, target=0.6))
    many.add(OPENING)
    many.extend(_example(at, 0.0, missing=at % 15 == 0) for at in range(300))
    assert many.hypotheses[0].has_enough_evidence
    assert many.earned is None


def test_a_claim_needs_groups_and_a_span_that_doubles_with_suspensions() -> None:
    rules = replace(RULES, min_span_h=2.0, max_span_h=5.0)
    earning = Earning(rules)
    earning.add(OPENING)
    # One example a minute: the span is reached at the 121st.
    found = [earning.add(row) is not None for row in _right(200)]
    assert found.index(True) == 121
    spans = []
    for _ in range(3):
        earning.add(Reopened("the error rose above the target"))
        spans.append(earning.min_span_h)
    assert spans == [4.0, 5.0, 5.0]


def test_after_a_suspension_only_later_evidence_counts_and_bars_go_on_rising() -> None:
    earning = Earning(RULES)
    earning.extend([OPENING, *_right(200)])
    assert earning.earned is not None
    earning.add(Reopened("the error rose above the target"))
    assert (earning.earned, earning.hypotheses, earning.counted) == (None, [], 0)
    earning.add(OPENING)
    assert earning.hypotheses[0].number == 2
    assert earning.hypotheses[0].capital.log_e == 0.0


def test_a_text_counts_once_for_the_scope_and_a_burst_once() -> None:
    earning = Earning(RULES)
    earning.add(OPENING)
    flood = [replace(_example(at, 0.0), text="same") for at in range(400)]
    earning.extend(flood)
    assert earning.earned is None
    earning.add(Reopened())
    earning.add(OPENING)
    earning.extend(replace(_example(at, 0.0), text="same") for at in range(400, 800))
    earning.add(_later(47_980.0))
    assert earning.counted == 0
    burst = [replace(_example(at, 0.0), group="burst", at_s=48_000.0) for at in range(800, 1000)]
    earning.extend(burst)
    earning.add(_later(48_020.0))
    assert earning.counted == 1


def test_equal_rows_give_an_equal_state_in_bounded_memory() -> None:
    rng = np.random.default_rng(3)
    rows: list[Row] = [OPENING]
    rows += [
        replace(
            _example(at, float(rng.random() < 0.1), rng.random()),
            group=str(rng.integers(800)), text=str(rng.integers(900)),
        )
        for at in range(1500)
    ]  # fmt: skip
    rows.insert(700, Reopened())
    rows.insert(750, replace(OPENING, threshold=0.3))
    whole = Earning(RULES).extend(rows)
    parts = Earning(RULES)
    for row in rows:
        parts.add(row)
    assert parts == whole
    assert whole.counted > 0


def test_nothing_on_course_after_the_stop_is_not_earnable() -> None:
    rules = replace(RULES, stop_after=300)
    hopeless, hopeful = Earning(rules), Earning(rules)
    for earning, error in ((hopeless, 0.3), (hopeful, 0.1)):
        earning.add(OPENING)
        rng = np.random.default_rng(4)
        earning.extend(_example(at, float(rng.random() < error)) for at in range(302))
    assert hopeless.is_not_earnable
    assert not hopeful.is_not_earnable
    assert not Earning(rules).extend([OPENING, *_right(20)]).is_not_earnable


def test_evidence_grows_at_most_as_fast_as_inputs_that_no_coin_drew_allow() -> None:
    earning = Earning(RULES)
    earning.add(OPENING)
    earning.extend(replace(_example(at, 0.0), coin=None) for at in range(200))
    earning.add(_later(12_000.0))
    assert earning.counted == 0


@pytest.mark.slow
def test_bursts_at_the_target_earn_no_claim() -> None:
    """Of 200 streams of 60 bursts of 20 with a correlation of 0.17, at most one in twenty."""
    rng = np.random.default_rng(5)
    false, pooled = 0, 0
    for _ in range(200):
        # A beta distribution of the error of a burst: 1 / (a + b + 1) is the correlation.
        size = 1.0 / 0.17 - 1.0
        error = rng.beta(TARGET * size, (1.0 - TARGET) * size, 60)
        losses = (rng.random((60, 20)) < error[:, None]).astype(np.float64)
        earning = Earning(RULES)
        earning.add(OPENING)
        earning.extend(_bursts(losses))
        earning.add(_later(6_000.0))
        assert earning.counted == 60
        false += earning.earned is not None
        pooled += bool(
            (capital_path(losses.ravel(), TARGET, OPENING.expected_error) >= math.log(bar(1))).any()
        )
    assert clopper_pearson(false, 200).high <= 0.05
    assert clopper_pearson(pooled, 200).low > 0.2


def _bursts(losses: Floats) -> Iterator[Row]:
    for burst, row in enumerate(losses):
        for at, loss in enumerate(row):
            example = _example(burst * 20 + at, float(loss))
            yield replace(example, group=str(burst), at_s=100.0 * burst)


def test_thresholds_are_placed_at_coverages_of_the_fitting_examples() -> None:
    confidence = np.linspace(0.0, 1.0, 101)
    loss = np.zeros(101)
    openings = place_thresholds("head", confidence, loss, TARGET)
    assert [each.expected_coverage for each in openings] == pytest.approx(COVERAGES, abs=0.01)
    assert [each.threshold for each in openings] == pytest.approx([0.4, 0.6, 0.2], abs=0.01)
    # An error of 0 in 61 examples is not taken for perfect.
    assert openings[0].expected_error == pytest.approx(TARGET / 62)


def test_hopeless_hypotheses_are_not_opened() -> None:
    rng = np.random.default_rng(6)
    confidence = rng.random(400)
    loss = (rng.random(400) < 0.4 * (1.0 - confidence)).astype(np.float64)
    openings = place_thresholds("head", confidence, loss, TARGET)
    assert 0 < len(openings) < 3
    assert all(each.expected_error < TARGET for each in openings)
    assert place_thresholds("head", confidence, np.ones(400), TARGET) == ()
    # A late hypothesis of a scope is expected to need more inputs than the horizon.
    assert place_thresholds("head", confidence, loss, TARGET, first=40, horizon=300.0) == ()


def test_equal_confidences_are_accepted_together() -> None:
    confidence = np.array([0.9] * 30 + [0.5] * 70)
    (opening,) = place_thresholds("head", confidence, np.zeros(100), TARGET)
    assert (opening.threshold, opening.expected_coverage) == (0.5, 1.0)


def test_a_curve_places_what_its_examples_would() -> None:
    rng = np.random.default_rng(7)
    confidence = np.sort(rng.random(200))[::-1]
    loss = (rng.random(200) < 0.05).astype(np.float64)
    curve = np.column_stack([confidence, np.cumsum(loss) / np.arange(1, 201)])
    assert place_on_curve("head", curve, 200, TARGET) == place_thresholds(
        "head", confidence, loss, TARGET
    )


def test_nothing_is_placed_without_examples() -> None:
    with pytest.raises(ValueError, match="0 confidences"):
        place_thresholds("head", np.empty(0), np.empty(0), TARGET)
    with pytest.raises(ValueError, match="a curve of 0 points"):
        place_on_curve("head", np.empty((0, 2)), 10, TARGET)


def test_beside_a_held_claim_only_the_widest_test_that_gains_is_opened() -> None:
    confidence = np.linspace(1.0, 0.0, 400)
    loss = (np.arange(400) % 25 == 24).astype(np.float64)
    openings = place_thresholds("head@2", confidence, loss, 0.15, first=4, coverages=WIDER)
    (chosen,) = widest(openings, 0.6)
    assert chosen.expected_coverage == pytest.approx(0.95)
    assert widest(openings, 0.92) == ()
    assert widest((), 0.1) == ()
