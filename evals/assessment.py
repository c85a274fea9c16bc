"""Computes a task's findings, every number that is signed, from both models' answers. Pure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from evals.answers import Answered
from evals.certification import accepted_needed, error_bound
from evals.confidence import Confidence, Part
from evals.findings import Half, Outcome, OwnOutcome, TaskFindings
from evals.metrics import Counts, Metric, is_right, metric_of
from evals.pair import Block
from evals.paired import Indices, accuracy_difference, bootstrap_interval
from evals.population import OwnInputs, suite_population
from evals.suite import Suite, calibration_half
from evals.verdict import Evidence, Judgement, judge
from serving.contracts.answer import Entity, Prediction, Translation
from serving.contracts.attestation import (
    CalibrationMap,
    Flips,
    Interval,
    Pair,
    Population,
    ReferenceLabels,
    Speed,
    SuiteRecord,
    TaskResult,
    Verdict,
)
from serving.contracts.task_spec import ClassificationSpec

Bools = NDArray[np.bool_]
Over = Callable[[Indices], Counts]
# A slice can only fail a task, and only if it is clearly worse: fewer resamples are enough.
_SLICE_RESAMPLES = 1000
_EARLY_LEVEL = 0.995
_EARLY_RESAMPLES = 2000
# A block's speed varies by 30 % on a machine that does other work.
_EARLY_SPEED_SHARE = 0.75
_EARLY_BLOCKS = 2
_SPEED_LEVEL = 0.95
# Of two blocks with very different ratios the bound would overflow.
_MOST_LOG_RATIO = math.log(1e6)


@dataclass(frozen=True, slots=True)
class Rules:
    """The requirements of a task. margin: None if none is stated. required_speed: 0 for none.

    weight_bytes: of both models, named as a gain where the candidate is not faster. reference:
    whose answers are the labels; None where they are the suite's own. is_baseline: the baseline
    itself is judged, without a loss or a speed. certified_elsewhere: on the user's own inputs, not
    on a half of the suite.
    """

    margin: float | None
    required_speed: float
    weight_bytes: Pair | None = None
    seed: int = 0
    resamples: int = 10_000
    reference: ReferenceLabels | None = None
    is_baseline: bool = False
    certified_elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class _Judged:
    """One model's answers, and which of them are right, in the order of the examples."""

    answered: Answered
    right: Bools
    rows: Counts


@dataclass(frozen=True, slots=True)
class Certified:
    """The user's own inputs with the candidate's answers, on which error bounds are certified."""

    inputs: OwnInputs
    candidate: Answered


def assess(
    suite: Suite,
    baseline: Answered,
    candidate: Answered,
    blocks: Sequence[Block],
    rules: Rules,
    certified: Certified | None = None,
    stopped: Judgement | None = None,
) -> TaskFindings:
    """Return the verdict on one task with everything behind it.

    certified: takes the place of the suite's certification half; None where there are no own
    inputs. stopped: why the candidate was measured on this part of the suite only; it is then the
    verdict.
    """
    metric = metric_of(suite.spec)
    old, new = _judged(suite, metric, baseline), _judged(suite, metric, candidate)
    difference, own = _intervals(suite, metric, old, new, rules)
    slices = _slices(suite, metric, old, new, rules)
    calibration, certification = _parts(suite, new, certified)
    # Halves of a suite are of about the same size.
    tested = None if certified is None else len(certification.independent)
    confidence = Confidence.of(calibration, certification, suite.spec.target_error, tested)
    speed = _speed(blocks, rules.required_speed)
    judgement = judge(
        Evidence(
            n=len(suite.examples),
            difference=difference,
            own=own,
            margin=rules.margin,
            floor=suite.spec.floor,
            slices=slices,
            certificate=confidence.certificate,
            wrong_at_best=confidence.wrong_at_best,
            own_inputs=certified is not None,
            speed=speed,
            weight_bytes=rules.weight_bytes,
            is_baseline=rules.is_baseline,
            stopped=stopped,
        )
    )
    result = TaskResult(
        verdict=judgement.verdict,
        reasons=judgement.reasons,
        more_examples=judgement.more_examples,
        spec_digest=suite.spec.digest(),
        suite=SuiteRecord(
            name=suite.name, source=suite.source, digest=suite.digest(), n=len(suite.examples)
        ),
        population=_population(suite, certified, rules.reference),
        reference=rules.reference,
        metric=metric.name,
        baseline=metric.value(old.rows.sum(axis=0)),
        candidate=own,
        difference=difference,
        margin=rules.margin,
        floor=suite.spec.floor,
        flips=_flips(old, new),
        invalid=Pair(baseline=_invalid(baseline), candidate=_invalid(candidate)),
        slices=slices,
        label_offsets=candidate.label_offsets,
        calibration=confidence.mapping,
        certificate=confidence.certificate,
        ece_before=confidence.ece_before,
        ece_after=confidence.ece_after,
        speed=speed,
    )
    outcomes = _outcomes(suite, old, new, confidence.mapping, certified)
    own_outcomes = () if certified is None else _own_outcomes(certification, confidence.mapping)
    return TaskFindings(suite.spec, result, outcomes, own_outcomes)


def assess_baseline(
    suite: Suite, baseline: Answered, rules: Rules, stopped: Judgement | None = None
) -> TaskResult:
    """Return the 16-bit model's verdict on one task: by its floor and its error bound alone.

    stopped: why it is judged on this part of the suite only, by its own answers.
    """
    own = replace(rules, margin=None, required_speed=0.0, weight_bytes=None, is_baseline=True)
    return assess(suite, baseline, baseline, [], own, stopped=stopped).result


def cannot_pass(
    whole: Suite, seen: Suite, answered: Answered, blocks: Sequence[Block], rules: Rules
) -> Judgement | None:
    """Return why a model cannot pass a task whatever its remaining answers are; None if it may.

    whole: the suite. seen, answered, blocks: what was run of it; without blocks the speed is not
    tested. A model that is stopped does not pass, so looking early adds no false pass. Tested are:
    the floor, at 99.5 %; the speed, of which every block must be clearly too slow; and, unless the
    user's own inputs certify, whether enough answers can be right for any error bound, at 99.5 %.
    Each look at the floor or at the right answers stops at most half a percent of the models that
    would pass.
    """
    count = len(seen.examples)
    if _far_too_slow(blocks, rules.required_speed):
        fastest = max(block.ratio for block in blocks)
        return _stopped(
            count,
            f"its throughput was at most {fastest:.2f} of the baseline's in each block; the "
            f"required ratio is {rules.required_speed}",
        )
    own = _early_interval(seen, answered, rules)
    if own.upper < seen.spec.floor:
        return _stopped(
            count,
            f"its own metric is at most {own.upper:.4f}, at {_EARLY_LEVEL:.1%} confidence; the "
            f"floor is {seen.spec.floor}",
        )
    return None if rules.certified_elsewhere else _too_few_right(whole, seen, answered)


def _too_few_right(whole: Suite, seen: Suite, answered: Answered) -> Judgement | None:
    """Return that no error bound can be certified on a suite; None where one may be.

    A larger suite might certify one, unless the most confident answers are too often wrong as well.
    A bound needs a number of right answers in the certification half, as if none were wrong. The
    half is run in the order of a hash, so that the right ones among those seen are a draw without
    replacement (hypergeometric distribution).
    """
    half = [e for e in whole.examples if not calibration_half(e.group)]
    tested = {half[index].id for index in whole.holding(half).independent()}
    needed = accepted_needed(seen.spec.target_error)
    right = _judged(seen, metric_of(seen.spec), answered).right
    drawn = [bool(found) for e, found in zip(seen.examples, right, strict=True) if e.id in tested]
    found = sum(drawn)
    # A suite that is too small for any bound is tested to its end, for the other findings.
    if needed > len(tested) or not drawn:
        return None
    if stats.hypergeom.cdf(found, len(tested), needed, len(drawn)) >= 1.0 - _EARLY_LEVEL:
        return None
    target = seen.spec.target_error
    reason = (
        f"{found} of {len(drawn)} answers of the certification half are right, and an error bound "
        f"of {target} needs {needed} of its {len(tested)}"
    )
    calibration = Part.half(seen, answered, right, calibration=True)
    certification = Part.half(seen, answered, right, calibration=False)
    wrong = Confidence.of(calibration, certification, target, None, _EARLY_LEVEL).wrong_at_best
    if wrong > target:
        return _stopped(
            len(seen.examples),
            f"{reason}; at least {wrong:.4f} of its most confident answers are wrong, at "
            f"{_EARLY_LEVEL:.1%} confidence",
        )
    rate = error_bound(found, len(drawn), _EARLY_LEVEL)
    more = max(1, math.ceil(len(whole.examples) * (needed / (rate * len(tested)) - 1.0)))
    return replace(_stopped(len(seen.examples), reason, Verdict.INCONCLUSIVE), more_examples=more)


def _stopped(seen: int, reason: str, verdict: Verdict = Verdict.FAIL) -> Judgement:
    return Judgement(verdict, (f"stopped after {seen} examples: {reason}",))


def _far_too_slow(blocks: Sequence[Block], required: float) -> bool:
    if len(blocks) < _EARLY_BLOCKS:
        return False
    return all(block.ratio < _EARLY_SPEED_SHARE * required for block in blocks)


def _early_interval(suite: Suite, answered: Answered, rules: Rules) -> Interval:
    metric = metric_of(suite.spec)
    rows = _by_group(suite, _judged(suite, metric, answered).rows)
    return bootstrap_interval(
        metric.over(rows),
        len(rows),
        seed=rules.seed,
        resamples=min(rules.resamples, _EARLY_RESAMPLES),
        confidence=_EARLY_LEVEL,
    )


def _judged(suite: Suite, metric: Metric, answered: Answered) -> _Judged:
    expected = [example.expected for example in suite.examples]
    pairs = zip(suite.examples, answered.predictions, strict=True)
    right = np.array(
        [is_right(suite.spec, found, example.expected, example.id) for example, found in pairs]
    )
    return _Judged(answered, right, metric.rows(answered.predictions, expected))


def _intervals(
    suite: Suite, metric: Metric, old: _Judged, new: _Judged, rules: Rules
) -> tuple[Interval | None, Interval]:
    before, after = _by_group(suite, old.rows), _by_group(suite, new.rows)

    own, reference = metric.over(after), metric.over(before)

    def gain(chosen: Indices) -> Counts:
        return own(chosen) - reference(chosen)

    n = len(after)
    found = bootstrap_interval(own, n, seed=rules.seed, resamples=rules.resamples)
    if rules.is_baseline:
        return None, found
    if isinstance(suite.spec, ClassificationSpec) and suite.spec.metric == "accuracy":
        return accuracy_difference(old.right, new.right), found
    return bootstrap_interval(gain, n, seed=rules.seed, resamples=rules.resamples), found


def _slices(
    suite: Suite, metric: Metric, old: _Judged, new: _Judged, rules: Rules
) -> dict[str, Interval]:
    found: dict[str, Interval] = {}
    if rules.is_baseline:
        return found
    resamples = min(rules.resamples, _SLICE_RESAMPLES)
    for name in sorted({example.slice for example in suite.examples if example.slice}):
        inside = np.array([example.slice == name for example in suite.examples])
        before, after = metric.over(old.rows[inside]), metric.over(new.rows[inside])

        def gain(chosen: Indices, before: Over = before, after: Over = after) -> Counts:
            return after(chosen) - before(chosen)

        found[name] = bootstrap_interval(gain, int(inside.sum()), seed=0, resamples=resamples)
    return found


def _by_group(suite: Suite, rows: Counts) -> Counts:
    """Add up the rows of each group: the same text in several directions is one draw."""
    _, group = np.unique([example.group for example in suite.examples], return_inverse=True)
    summed = np.zeros((int(group.max()) + 1, rows.shape[1]))
    np.add.at(summed, group, rows)
    return summed


def _parts(suite: Suite, new: _Judged, certified: Certified | None) -> tuple[Part, Part]:
    """Return what confidences are calibrated on and what error bounds are certified on."""
    calibration = Part.half(suite, new.answered, new.right, calibration=True)
    if certified is None:
        return calibration, Part.half(suite, new.answered, new.right, calibration=False)
    inputs, answered = certified.inputs.suite, certified.candidate
    right = _judged(inputs, metric_of(inputs.spec), answered).right
    return calibration, Part.of(inputs, answered, right)


def _population(
    suite: Suite, certified: Certified | None, reference: ReferenceLabels | None
) -> Population:
    if certified is not None:
        return certified.inputs.population
    return suite_population(suite, None if reference is None else reference.model)


def _flips(old: _Judged, new: _Judged) -> Flips:
    pairs = zip(old.answered.predictions, new.answered.predictions, strict=True)
    changed = sum(before.value != after.value for before, after in pairs)
    return Flips(
        changed=changed,
        gained=int((new.right & ~old.right).sum()),
        lost=int((old.right & ~new.right).sum()),
        rate=changed / len(old.right),
    )


def _invalid(answered: Answered) -> float:
    found = answered.predictions
    return sum(not prediction.valid for prediction in found) / len(found)


def _speed(blocks: Sequence[Block], required: float) -> Speed | None:
    if not blocks:
        return None
    logs = np.log([block.ratio for block in blocks])
    mean, lower, upper = float(logs.mean()), None, None
    if len(logs) > 1:
        half = float(stats.t.ppf(_SPEED_LEVEL, len(logs) - 1) * stats.sem(logs))
        lower, upper = math.exp(mean - half), math.exp(min(mean + half, _MOST_LOG_RATIO))
    examples = sum(block.examples for block in blocks)
    return Speed(
        examples_per_s=Pair(
            baseline=examples / sum(block.baseline_s for block in blocks),
            candidate=examples / sum(block.candidate_s for block in blocks),
        ),
        ratio=math.exp(mean),
        lower=lower,
        upper=upper,
        blocks=len(blocks),
        required=required,
    )


def _own_outcomes(part: Part, mapping: CalibrationMap | None) -> tuple[OwnOutcome, ...]:
    return tuple(
        OwnOutcome(raw, None if mapping is None else mapping.calibrated(raw), right)
        for raw, right in zip(part.raw.tolist(), part.right.tolist(), strict=True)
    )


def _outcomes(
    suite: Suite,
    old: _Judged,
    new: _Judged,
    mapping: CalibrationMap | None,
    certified: Certified | None,
) -> tuple[Outcome, ...]:
    other: Half = "certification" if certified is None else "comparison"
    outcomes = []
    for index, example in enumerate(suite.examples):
        before, after = old.answered.predictions[index], new.answered.predictions[index]
        expected = example.expected
        outcomes.append(
            Outcome(
                id=example.id,
                text=example.request.text,
                slice=example.slice,
                expected=expected if isinstance(expected, str) else _readable(expected),
                baseline=_as_read(before),
                candidate=_as_read(after),
                baseline_right=bool(old.right[index]),
                candidate_right=bool(new.right[index]),
                raw=after.confidence,
                calibrated=None if mapping is None else mapping.calibrated(after.confidence),
                half="calibration" if calibration_half(example.group) else other,
            )
        )
    return tuple(outcomes)


def _as_read(prediction: Prediction) -> str:
    match prediction.value:
        case Translation() as translation:
            return translation.text
        case str() as label:
            return label
        case entities:
            found = [(item.text, item.type) for item in entities if isinstance(item, Entity)]
            return _readable(sorted(found))


def _readable(entities: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{text} ({kind})" for text, kind in entities) or "none"
