"""Decides a task's verdict: pass, fail or inconclusive. Pure; compares unrounded numbers."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from evals.certification import accepted_needed
from serving.contracts.attestation import Certificate, Interval, Pair, Speed, Verdict

_SEVERITY = {Verdict.PASS: 0, Verdict.INCONCLUSIVE: 1, Verdict.FAIL: 2}
# The estimate is at the limit: no realistic number of examples decides.
_MOST_TIMES_N = 100


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with its reasons. more_examples: number that would decide; 0 if it is decided."""

    verdict: Verdict
    reasons: tuple[str, ...]
    more_examples: int = 0


@dataclass(frozen=True, slots=True)
class Evidence:
    """The numbers that decide one task's verdict, in the metric's units.

    difference: candidate - baseline; None if the metric could not be computed. own: the candidate's
    metric with its bounds. margin: largest acceptable loss; None if none is stated, which permits
    no loss. floor: lowest acceptable metric. slices: differences within parts of the suite.
    certificate: None without examples to certify on. wrong_at_best: lower bound of the error rate
    among the most confident answers. speed: None if not measured. own_inputs: whether the
    certificate is of the user's own inputs. weight_bytes: of both models; None if not known.
    is_baseline: the model is the baseline itself, so that no loss is checked. stopped: why the
    model was measured on a part of the suite only; None where it was measured on all of it.
    """

    n: int
    difference: Interval | None
    own: Interval | None
    margin: float | None
    floor: float
    slices: Mapping[str, Interval]
    certificate: Certificate | None
    wrong_at_best: float
    speed: Speed | None
    own_inputs: bool = False
    weight_bytes: Pair | None = None
    is_baseline: bool = False
    stopped: Judgement | None = None


def judge(evidence: Evidence) -> Judgement:
    """Return the verdict of one task: the worst of its checks, with their reasons.

    Of a model that was stopped it is the reason of the stop. The other numbers are of a part of the
    suite that its own answers chose, and prove nothing.
    """
    if evidence.stopped is not None:
        return evidence.stopped
    return _worst(list(_checks(evidence)))


def judge_loss(difference: Interval | None, n: int, margin: float | None) -> Judgement:
    """Return the verdict on only the loss against the baseline."""
    if difference is None or math.isnan(difference.estimate):
        return _fail("the metric could not be computed")
    if margin is None:
        return _fail("no margin is stated for this precision (--margin TASK=LOSS)")
    if difference.upper < -margin:
        return _fail(f"worse by at least {-difference.upper:.4f}; the margin is {margin}")
    if difference.lower >= -margin:
        return _pass(f"worse by at most {max(-difference.lower, 0.0):.4f}; the margin is {margin}")
    return Judgement(
        Verdict.INCONCLUSIVE,
        (
            f"the loss is between {-difference.upper:.4f} and {-difference.lower:.4f}; the "
            f"margin is {margin}",
        ),
        _more_examples(difference, -margin, n),
    )


def _checks(evidence: Evidence) -> Iterator[Judgement]:
    if not evidence.is_baseline:
        yield judge_loss(evidence.difference, evidence.n, evidence.margin)
    for name, difference in evidence.slices.items():
        if evidence.margin is not None and difference.upper < -evidence.margin:
            yield _fail(
                f"{name} is worse by at least {-difference.upper:.4f}; the margin is "
                f"{evidence.margin}"
            )
    if evidence.own is not None:
        yield _floor(evidence.own, evidence.floor, evidence.n)
    yield _certified(evidence.certificate, evidence.wrong_at_best, evidence.own_inputs)
    if evidence.speed is not None:
        yield _fast_enough(evidence.speed, evidence.weight_bytes)


def _floor(own: Interval, floor: float, n: int) -> Judgement:
    if own.upper < floor:
        return _fail(f"its own metric is at most {own.upper:.4f}; the floor is {floor}")
    if own.lower >= floor:
        return _pass(f"its own metric is at least {own.lower:.4f}; the floor is {floor}")
    return Judgement(
        Verdict.INCONCLUSIVE,
        (f"its own metric is between {own.lower:.4f} and {own.upper:.4f}; the floor is {floor}",),
        _more_examples(own, floor, n),
    )


def _certified(
    certificate: Certificate | None, wrong_at_best: float, own_inputs: bool
) -> Judgement:
    if certificate is None:
        return Judgement(
            Verdict.INCONCLUSIVE, ("there were no examples to certify an error bound with",), 1
        )
    target = certificate.target_error
    if certificate.threshold is not None:
        return _pass(
            f"at most {certificate.bound:.4f} of the answers with confidence "
            f"{certificate.threshold:.3f} or more are wrong; the target is {target}"
        )
    if wrong_at_best > target:
        return _fail(
            f"at least {wrong_at_best:.4f} of its most confident answers are wrong; the target is "
            f"{target}"
        )
    # Acceptance is assumed for at most half of the examples. Both halves of a suite grow together.
    needed, halves = accepted_needed(target), 1 if own_inputs else 2
    more = halves * max(2 * needed - certificate.tested, needed)
    return Judgement(
        Verdict.INCONCLUSIVE,
        (f"no threshold is certified for an error of {target}: too few examples",),
        more,
    )


def _fast_enough(speed: Speed, weights: Pair | None) -> Judgement:
    # Other programs on the machine affect the speed: a candidate fails only where its bounds show
    # that it is too slow.
    if speed.upper is not None and speed.upper < speed.required:
        return _fail(f"{speed}; the required ratio is {speed.required}")
    if speed.finding != "faster" and weights is not None:
        return _pass(f"{speed}; {_smaller(weights)}")
    return _pass(str(speed))


def _smaller(weights: Pair) -> str:
    """Say what a candidate that is not faster gains."""
    share = weights.candidate / weights.baseline
    if share >= 1.0:
        return f"its weights take {share:.2f} of the baseline's memory: nothing is gained"
    return (
        f"its weights take {share:.2f} of the baseline's memory, so that {1 / share:.1f} times as "
        "many replicas' weights fit"
    )


def _more_examples(interval: Interval, border: float, n: int) -> int:
    """Return the number of further examples that would decide, if the estimate does not change. The
    width of the bounds is proportional to 1 / sqrt(n).
    """
    distance = abs(interval.estimate - border)
    half_width = (
        interval.estimate - interval.lower
        if interval.estimate > border
        else interval.upper - interval.estimate
    )
    if half_width >= distance * math.sqrt(_MOST_TIMES_N):
        return (_MOST_TIMES_N - 1) * n
    return max(math.ceil(n * (half_width / distance) ** 2) - n, 1)


def _worst(judgements: Sequence[Judgement]) -> Judgement:
    verdict = max((item.verdict for item in judgements), key=_SEVERITY.__getitem__)
    decisive = [item for item in judgements if item.verdict == verdict]
    more = max(item.more_examples for item in decisive)
    return Judgement(verdict, tuple(r for item in decisive for r in item.reasons), more)


def _fail(reason: str) -> Judgement:
    return Judgement(Verdict.FAIL, (reason,))


def _pass(reason: str) -> Judgement:
    return Judgement(Verdict.PASS, (reason,))
