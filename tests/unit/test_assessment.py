"""From answers to a verdict: scripted models whose quality is known."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from evals.answers import Answered
from evals.assessment import Certified, Rules, assess, assess_baseline
from evals.findings import TaskFindings
from evals.pair import Block
from evals.population import OwnInputs
from evals.suite import Example, Suite, calibration_half
from serving.contracts.answer import Prediction, TaskRequest, Translation
from serving.contracts.attestation import Verdict
from serving.contracts.task_spec import ClassificationSpec, TranslationSpec

LABELS = ["a", "b", "c"]
SPEC = ClassificationSpec(
    name="letters", kind="classification", instruction="Which?", labels=LABELS, floor=0.5,
    target_error=0.1, margins={"int8": 0.03},
)  # fmt: skip
RULES = Rules(margin=0.03, required_speed=0.9, resamples=200)
BLOCKS = (Block(100, 1.0, 0.8), Block(100, 1.0, 0.9))


def suite(n: int) -> Suite:
    examples = tuple(
        Example(f"e{i}", f"e{i}", TaskRequest("letters", f"text {i}"), LABELS[i % 3])
        for i in range(n)
    )
    return Suite("letters", "test", SPEC, examples)


def answers(tested: Suite, accuracy: float, seed: int, *, sharp: bool = True) -> Answered:
    """Return answers that are right that often, surer where they are right if sharp."""
    source = random.Random(seed)  # noqa: S311  # a repeatable choice
    predictions = []
    for example in tested.examples:
        right = source.random() < accuracy
        wrong = [name for name in LABELS if name != example.expected]
        value = str(example.expected) if right else source.choice(wrong)
        confidence = source.betavariate(6, 2) if right and sharp else source.betavariate(3, 4)
        predictions.append(Prediction(value=value, confidence=confidence))
    return Answered(tuple(predictions), None)


def changed(answered: Answered, tested: Suite, places: range, *, to: str) -> Answered:
    """Return answers that are made right, or wrong, at those places."""
    predictions = list(answered.predictions)
    for place in places:
        expected = str(tested.examples[place].expected)
        other = LABELS[(LABELS.index(expected) + 1) % 3]
        value = expected if to == "right" else other
        predictions[place] = predictions[place].model_copy(update={"value": value})
    return Answered(tuple(predictions), None)


def gate(tested: Suite, old: Answered, new: Answered, rules: Rules = RULES) -> TaskFindings:
    return assess(tested, old, new, BLOCKS, rules)


def test_an_identical_copy_passes_with_every_number() -> None:
    tested = suite(600)
    same = answers(tested, 0.9, 1)
    found = gate(tested, same, same)
    result = found.result
    assert result.verdict is Verdict.PASS, result.reasons
    assert (result.flips.changed, result.flips.gained, result.flips.lost) == (0, 0, 0)
    assert result.difference is not None
    assert result.difference.estimate == 0.0
    assert -0.03 < result.difference.lower < 0
    assert result.certificate is not None
    assert result.certificate.threshold is not None
    assert result.certificate.bound <= 0.1
    assert result.certificate.tested == sum(not calibration_half(f"e{i}") for i in range(600))
    assert result.ece_before is not None
    assert result.ece_after is not None
    assert result.ece_after < result.ece_before
    assert result.speed is not None
    assert result.speed.ratio == pytest.approx((1 / 0.8 * 1 / 0.9) ** 0.5)
    assert len(found.outcomes) == 600
    assert {outcome.half for outcome in found.outcomes} == {"calibration", "certification"}


def test_flips_show_where_accuracy_does_not_change() -> None:
    tested = suite(900)
    old = changed(answers(tested, 1.0, 1), tested, range(0, 90), to="wrong")
    new = changed(answers(tested, 1.0, 1), tested, range(90, 180), to="wrong")
    found = gate(tested, old, new)
    assert found.result.candidate is not None
    assert found.result.baseline == pytest.approx(found.result.candidate.estimate, abs=0.01)
    flips = found.result.flips
    assert (flips.changed, flips.gained, flips.lost) == (180, 90, 90)
    assert flips.rate == 0.2
    assert sum(outcome.flipped for outcome in found.outcomes) == 180
    # So many flips widen the bounds: fewer examples would not have shown that nothing was lost.
    copy = gate(tested, old, old).result.difference
    assert found.result.difference is not None
    assert copy is not None
    assert found.result.difference.lower < copy.lower - 0.01


def test_a_worse_candidate_fails_and_a_slower_one_too() -> None:
    tested = suite(600)
    old = answers(tested, 0.9, 1)
    worse = changed(old, tested, range(0, 90), to="wrong")
    found = gate(tested, old, worse).result
    assert found.verdict is Verdict.FAIL
    assert any("worse by at least" in reason for reason in found.reasons)
    slow = assess(tested, old, old, (Block(100, 1.0, 2.0), Block(100, 1.0, 1.9)), RULES).result
    assert slow.verdict is Verdict.FAIL
    accepted = replace(RULES, required_speed=0.0)
    assert (
        assess(tested, old, old, (Block(100, 1.0, 2.0),), accepted).result.verdict is Verdict.PASS
    )


def test_twenty_examples_are_inconclusive_even_for_a_copy() -> None:
    tested = suite(20)
    same = answers(tested, 1.0, 1)
    result = gate(tested, same, same).result
    assert result.verdict is Verdict.INCONCLUSIVE
    assert result.more_examples > 20
    assert any("no threshold is certified" in reason for reason in result.reasons)


def test_uninformative_confidence_certifies_no_threshold() -> None:
    tested = suite(600)
    same = answers(tested, 0.6, 1, sharp=False)
    result = gate(tested, same, same).result
    assert result.verdict is Verdict.FAIL
    assert any("of its most confident answers" in reason for reason in result.reasons)
    assert result.certificate is not None
    assert result.certificate.threshold is None


def test_without_a_stated_margin_no_task_passes() -> None:
    tested = suite(600)
    same = answers(tested, 0.9, 1)
    result = gate(tested, same, same, replace(RULES, margin=None)).result
    assert result.verdict is Verdict.FAIL
    assert result.margin is None


def test_an_unreadable_answer_is_never_right_and_is_counted() -> None:
    tested = suite(600)
    good = answers(tested, 0.95, 1)
    broken = Answered(
        tuple(p.model_copy(update={"valid": i % 4 > 0}) for i, p in enumerate(good.predictions)),
        None,
    )
    result = gate(tested, good, broken).result
    assert result.invalid.candidate == 0.25
    assert result.flips.lost > 100


def translations(n: int) -> Suite:
    spec = TranslationSpec(
        name="t", kind="translation", instruction="Translate.", floor=0.2, target_error=0.1,
        languages={"en": "English", "de": "German", "fr": "French"}, max_output_tokens=64,
    )  # fmt: skip
    codes = ("en", "de", "fr")
    examples = tuple(
        Example(
            f"{i}/{a}-{b}", str(i), TaskRequest("t", f"text {i}", a, b),
            f"das ist der Satz Nummer {i} von vielen", f"{a}-{b}",
        )
        for i in range(n) for a in codes for b in codes if a != b
    )  # fmt: skip
    return Suite("t", "test", spec, examples)


def translated(tested: Suite, broken: str | None) -> Answered:
    predictions = []
    for example in tested.examples:
        text = "nichts" if example.slice == broken else str(example.expected)
        value = Translation(
            text=text, source_language=example.request.source_language or "",
            target_language=example.request.target_language or "", source_detected=False,
        )  # fmt: skip
        predictions.append(Prediction(value=value, confidence=0.2 if text == "nichts" else 0.9))
    return Answered(tuple(predictions), None)


def test_one_broken_direction_fails_a_translation_that_is_good_on_the_whole() -> None:
    tested = translations(160)
    rules = replace(RULES, margin=0.2)
    good = translated(tested, None)
    assert assess(tested, good, good, BLOCKS, rules).result.verdict is Verdict.PASS
    result = assess(tested, good, translated(tested, "de-fr"), BLOCKS, rules).result
    assert result.difference is not None
    assert result.difference.lower > -0.2, "on the whole the loss is acceptable"
    assert result.verdict is Verdict.FAIL
    assert any(reason.startswith("de-fr is worse") for reason in result.reasons)
    assert set(result.slices) == {"en-de", "en-fr", "de-en", "de-fr", "fr-en", "fr-de"}


def test_directions_of_one_text_count_once_in_the_certificate() -> None:
    tested = translations(160)
    good = translated(tested, None)
    certificate = assess(tested, good, good, BLOCKS, RULES).result.certificate
    assert certificate is not None
    assert certificate.tested == sum(not calibration_half(str(i)) for i in range(160))


def own(n: int) -> OwnInputs:
    examples = tuple(
        Example(
            f"mine, line {i}", f"mine, line {i}", TaskRequest("letters", f"own {i}"), "abc"[i % 3]
        )
        for i in range(n)
    )
    return OwnInputs(Suite("letters", "mine.jsonl", SPEC, examples), "sha256:1")


def test_own_inputs_take_the_place_of_the_certification_half() -> None:
    tested, inputs = suite(600), own(400)
    same = answers(tested, 0.9, 1)
    mine = Certified(inputs, answers(inputs.suite, 0.9, 2))
    alone = gate(tested, same, same)
    found = assess(tested, same, same, BLOCKS, RULES, mine)
    certificate = found.result.certificate
    assert certificate is not None
    assert certificate.tested == 400
    assert certificate.threshold is not None
    # Pairing and calibration use the suite, as before.
    for name in ("difference", "candidate", "flips", "speed", "calibration", "suite"):
        assert getattr(found.result, name) == getattr(alone.result, name)
    assert len(found.own_outcomes) == 400
    assert {outcome.half for outcome in found.outcomes} == {"calibration", "comparison"}
    assert found.result.population == inputs.population
    assert alone.result.population is not None
    assert alone.result.population.sentence == "600 inputs of suite letters"


def test_own_inputs_that_are_answered_worse_than_the_suite_are_not_certified() -> None:
    tested, inputs = suite(600), own(400)
    same = answers(tested, 0.95, 1)
    assert gate(tested, same, same).result.verdict is Verdict.PASS
    mine = Certified(inputs, answers(inputs.suite, 0.5, 2, sharp=False))
    result = assess(tested, same, same, BLOCKS, RULES, mine).result
    assert result.verdict is Verdict.FAIL
    assert result.certificate is not None
    assert result.certificate.threshold is None
    assert any("of its most confident answers are wrong" in reason for reason in result.reasons)


def test_too_few_own_inputs_need_only_more_of_them() -> None:
    tested, inputs = suite(600), own(29)
    same = answers(tested, 0.95, 1)
    mine = Certified(inputs, answers(inputs.suite, 0.9, 3))
    result = assess(tested, same, same, BLOCKS, RULES, mine).result
    assert result.verdict is Verdict.INCONCLUSIVE
    # 29 accepted ones are the fewest, and half of the inputs are accepted.
    assert result.more_examples == 29


def test_the_bounds_of_the_speed_are_those_of_the_mean_of_logarithms() -> None:
    tested = suite(60)
    same = answers(tested, 0.95, 1)
    blocks = [Block(16, seconds, 1.0) for seconds in (1.0, 2.0, 4.0)]
    speed = assess(tested, same, same, blocks, RULES).result.speed
    assert speed is not None
    assert speed.ratio == pytest.approx(2.0)
    # Student's t of 2 degrees of freedom: 2.920 at 95 %; deviation log 2 over three blocks.
    half = 2.0 ** (2.920 / math.sqrt(3))
    assert speed.lower == pytest.approx(2.0 / half, rel=1e-3)
    assert speed.upper == pytest.approx(2.0 * half, rel=1e-3)
    assert speed.finding == "not shown to be faster"
    alone = assess(tested, same, same, blocks[:1], RULES).result.speed
    assert alone is not None
    assert (alone.lower, alone.upper, alone.blocks) == (None, None, 1)


def test_a_model_as_fast_as_the_other_is_rarely_called_faster() -> None:
    # 400 runs of 8 blocks that vary by 20 %: 20 are expected at a level of 95 %.
    tested = suite(30)
    same = answers(tested, 0.95, 1)
    noise = np.exp(np.random.default_rng(7).normal(0.0, 0.2, (400, 8)))
    rules = replace(RULES, required_speed=0.0, resamples=20)
    found = [
        assess(tested, same, same, [Block(16, float(ratio), 1.0) for ratio in row], rules)
        for row in noise
    ]
    faster = sum(one.result.speed is not None and one.result.speed.finding == "faster"
                 for one in found)  # fmt: skip
    # The exact binomial 99.9 % limit.
    assert 0 < faster <= stats.binom.ppf(0.999, 400, 0.05)


def test_a_baseline_is_attested_with_its_own_numbers() -> None:
    tested = suite(600)
    good = answers(tested, 0.93, seed=3)
    found = assess_baseline(tested, good, RULES)
    as_candidate = assess(tested, good, good, BLOCKS, RULES).result
    assert found.verdict is Verdict.PASS
    assert (found.difference, found.margin, found.speed, found.slices) == (None, None, None, {})
    for name in ("candidate", "calibration", "certificate", "floor", "spec_digest", "suite"):
        assert getattr(found, name) == getattr(as_candidate, name)
    assert found.flips.changed == 0
    bad = assess_baseline(tested, answers(tested, 0.3, seed=4), RULES)
    assert bad.verdict is Verdict.FAIL
    assert "floor" in bad.reasons[0]
