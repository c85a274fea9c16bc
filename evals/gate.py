"""One gate run: both models on every suite, a verdict for each task, one signed statement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evals.answers import Answered, works
from evals.assessment import Certified, Rules, assess, assess_baseline, cannot_pass
from evals.findings import Findings, TaskFindings
from evals.harness import General, HarnessResult, run_harness
from evals.pair import SIDES, Block, Side, StoppingRule
from evals.pair import Pair as SubjectPair
from evals.paired import Indices, bootstrap_interval
from evals.population import OwnInputs
from evals.signing import GateRun, Loaded
from evals.subject import Precision, Subject, calibration_digests, precision_of, weight_bytes
from evals.suite import Suite
from evals.verdict import Judgement, judge_loss
from serving.artifacts.manifest import Manifest, file_manifest
from serving.artifacts.probes import measure_probes
from serving.contracts.attestation import (
    GeneralResult,
    Pair,
    ReferenceLabels,
    TaskResult,
    Verdict,
)
from serving.contracts.errors import (
    AttestationRefused,
    CalibrationOverlap,
    EngineFailure,
    InvalidSuite,
    UnsuitableModel,
)
from serving.contracts.settings import ModelSettings
from serving.host.progress import StepObserver, StepTimes
from serving.local.offline_work import device_name, kernels, run_works


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of a run. margins: by task, stated for this run; otherwise those of the specs.

    settings: how both models are served; their source is not used. stop_early: stop measuring a
    model on a task that it cannot pass. own_inputs: by task, the user's own inputs that certify in
    place of a half of the suite. references: by task, where a reference model's answers are the
    labels. attest_baseline: judge the baseline too, by its own metric, so that it can serve.
    """

    baseline: Path
    candidate: Path
    suites: Sequence[Suite]
    settings: ModelSettings
    margins: Mapping[str, float]
    general: General
    required_speed: float
    stop_early: bool = False
    seed: int = 0
    own_inputs: Mapping[str, OwnInputs] = field(default_factory=dict)
    references: Mapping[str, ReferenceLabels] = field(default_factory=dict)
    attest_baseline: bool = False


def run_gate(request: Request, observer: StepObserver) -> Findings:
    """Evaluate both models and judge. Blocking, minutes. Does not sign or write anything.

    Raises ConfigurationError before anything is spent, EngineFailure when a model does not run.
    """
    refuse_unfit_request(request)
    precision = precision_of(request.candidate)
    steps = StepTimes(observer)
    steps.step("digesting both models")
    manifests: dict[Side, Manifest] = {
        "baseline": file_manifest(request.baseline),
        "candidate": file_manifest(request.candidate),
    }
    subjects: dict[Side, Subject] = {
        "baseline": Subject("baseline", request.baseline, request.settings),
        "candidate": Subject("candidate", request.candidate, request.settings),
    }
    own_inputs = {name: found.suite for name, found in request.own_inputs.items()}
    for inputs in own_inputs.values():
        # An input that does not fit is refused before the models are loaded.
        works(subjects["candidate"], inputs)
    pair = SubjectPair(subjects, request.suites, steps, stopping_rule(request), own_inputs)
    with pair.running():
        if request.stop_early:
            # lm-eval needs the number of examples before it starts.
            pair.run()
        names = [suite.name for suite in request.suites]
        pair.report_step("scoring with lm-eval")
        reported = {
            side: run_harness(
                pair, side, [pair.suite(side, name) for name in names], request.general
            )
            for side in SIDES
        }
        tasks = {}
        for name in names:
            pair.report_step("judging")
            suite = pair.suite("candidate", name)
            tasks[name] = assess(
                suite,
                pair.compared(name),
                pair.answered("candidate", name),
                pair.blocks[name],
                _rules(request, suite, precision),
                _certified(request, pair, name),
                pair.stopped("candidate", name),
            )
        results: dict[Side, dict[str, TaskResult]] = {
            "candidate": {name: found.result for name, found in tasks.items()}
        }
        if request.attest_baseline:
            results["baseline"] = {
                name: assess_baseline(
                    pair.suite("baseline", name),
                    pair.answered("baseline", name),
                    _rules(request, pair.suite("baseline", name), "16-bit"),
                    pair.stopped("baseline", name),
                )
                for name in names
            }
        pair.report_step("measuring probes")
        loaded = {
            side: _loaded(pair, side, subjects[side], results[side], request) for side in results
        }
        pair.report_step("stopping the engines")
        pair.measure_memory()
    steps.step("checking the results")
    _refuse_disagreement(tasks, results, reported)
    for side in results:
        _refuse_changed(subjects[side].folder, manifests[side])
    run = GateRun(
        date=datetime.now(UTC).replace(microsecond=0),
        baseline=manifests["baseline"].root,
        max_model_len=request.settings.max_model_len,
        seed=request.seed,
        weight_bytes=_weights(request),
        memory_bytes=Pair(
            baseline=subjects["baseline"].memory_bytes,
            candidate=subjects["candidate"].memory_bytes,
        ),
    )
    general = {name: _general(name, reported, request) for name in request.general.names}
    predicates = {
        side: run.predicate(subjects[side], manifests[side], results[side], loaded[side])
        for side in results
    }
    predicate = predicates["candidate"].model_copy(update={"general": general})
    name = request.candidate.resolve().name
    return Findings(
        name,
        manifests["candidate"].root,
        predicate,
        tasks,
        steps.seconds(),
        baseline=predicates.get("baseline"),
    )


def refuse_unfit_request(request: Request) -> None:
    """Refuse margins without a task, and inputs that the candidate was calibrated on.

    Raises ConfigurationError.
    """
    _refuse_unknown_margins(request)
    precision_of(request.candidate)
    _refuse_other_baseline(request)
    _refuse_overlap(request)


def _certified(request: Request, pair: SubjectPair, name: str) -> Certified | None:
    answered = pair.own_answered(name)
    return None if answered is None else Certified(request.own_inputs[name], answered)


def _loaded(
    pair: SubjectPair,
    side: Side,
    subject: Subject,
    results: Mapping[str, TaskResult],
    request: Request,
) -> Loaded:
    """Ask a model's engine for its hardware, kernels and probes.

    Probes are of the tasks that will be served, or of the first where none will be.
    """
    specs = [suite.spec for suite in request.suites]
    passed = [spec for spec in specs if results[spec.name].verdict is Verdict.PASS]
    return Loaded(
        hardware=pair.call(side, device_name),
        kernels=pair.call(side, kernels),
        probes=measure_probes(
            passed or specs[:1],
            subject.tokenizer,
            request.settings.max_model_len,
            lambda works: pair.call(side, run_works, works).outputs,
        ),
    )


def stopping_rule(request: Request) -> StoppingRule | None:
    """Return the rule by which a model's test on a task is stopped early; None where none is.

    A model that is attested ends its test by its own answers and, the candidate, by its speed. The
    other's answers must not decide when: its bounds would be of examples that they chose.
    """
    if not request.stop_early:
        return None
    whole = {suite.name: suite for suite in request.suites}

    def candidate(seen: Suite, answered: Answered, blocks: Sequence[Block]) -> Judgement | None:
        rules = replace(
            _rules(request, seen, "16-bit"), certified_elsewhere=seen.name in request.own_inputs
        )
        return cannot_pass(whole[seen.name], seen, answered, blocks, rules)

    def baseline(seen: Suite, answered: Answered) -> Judgement | None:
        return cannot_pass(whole[seen.name], seen, answered, [], _rules(request, seen, "16-bit"))

    return StoppingRule(candidate, baseline if request.attest_baseline else None)


def _rules(request: Request, suite: Suite, precision: Precision) -> Rules:
    return Rules(
        margin=_margin(request, suite, precision),
        required_speed=request.required_speed,
        weight_bytes=_weights(request),
        seed=request.seed,
        reference=request.references.get(suite.name),
    )


def _weights(request: Request) -> Pair:
    return Pair(baseline=weight_bytes(request.baseline), candidate=weight_bytes(request.candidate))


def _margin(request: Request, suite: Suite, precision: Precision) -> float | None:
    if suite.name in request.margins:
        return request.margins[suite.name]
    margins = suite.spec.margins
    return margins.int4 if precision == "int4" else margins.int8


def _general(name: str, reported: Mapping[Side, HarnessResult], request: Request) -> GeneralResult:
    old = np.array(reported["baseline"].general[name])
    new = np.array(reported["candidate"].general[name])

    def gain(chosen: Indices) -> NDArray[np.float64]:
        mean: NDArray[np.float64] = (new[chosen] - old[chosen]).mean(axis=-1)
        return mean

    difference = bootstrap_interval(gain, len(old), seed=request.seed)
    judgement = judge_loss(difference, len(old), request.general.margin)
    return GeneralResult(
        verdict=judgement.verdict,
        reasons=judgement.reasons,
        more_examples=judgement.more_examples,
        n=len(old),
        baseline=float(old.mean()),
        difference=difference,
        margin=request.general.margin,
    )


def _refuse_unknown_margins(request: Request) -> None:
    names = {suite.name for suite in request.suites}
    for name in request.margins:
        if name not in names:
            raise InvalidSuite(
                f"--margin names task {name!r}, which no suite tests",
                field="margin",
                fix="use one of: " + ", ".join(sorted(names)),
            )


def _refuse_other_baseline(request: Request) -> None:
    if request.attest_baseline and precision_of(request.baseline) != "16-bit":
        raise UnsuitableModel(
            f"{str(request.baseline)!r} has quantized weights, and only a 16-bit baseline can be "
            "attested by its own metric",
            field="baseline",
            fix="name the 16-bit checkpoint, or leave --attest-baseline out",
        )


def _refuse_overlap(request: Request) -> None:
    tuned_on = calibration_digests(request.candidate)
    for suite in request.suites:
        shared = [name for digest, name in suite.text_digests().items() if digest in tuned_on]
        if shared:
            raise CalibrationOverlap(
                f"the candidate was calibrated on {len(shared)} examples of suite "
                f"{suite.name!r}; the first is {shared[0]!r}",
                field="suite",
                fix="quantize again with --held-out naming the suite, or test on other examples",
            )
    for own in request.own_inputs.values():
        inputs = own.suite
        shared = [name for digest, name in inputs.text_digests().items() if digest in tuned_on]
        if shared:
            raise CalibrationOverlap(
                f"the candidate was calibrated on {len(shared)} inputs of {inputs.source}; the "
                f"first is {shared[0]!r}",
                field="examples",
                fix="quantize again with --held-out naming the file, or leave these inputs out",
            )


def _refuse_disagreement(
    tasks: Mapping[str, TaskFindings],
    results: Mapping[Side, Mapping[str, TaskResult]],
    reported: Mapping[Side, HarnessResult],
) -> None:
    """Compare the gate's metrics with lm-eval's for the same answers; a difference is an error."""
    for name, found in tasks.items():
        assert found.result.candidate is not None
        # An attested baseline is judged on examples of its own number.
        own = results.get("baseline", {}).get(name, found.result)
        ours = {"baseline": own.baseline, "candidate": found.result.candidate.estimate}
        for side in SIDES:
            if abs((ours[side] or 0.0) - reported[side].metrics[name]) > 1e-9:
                raise EngineFailure(
                    f"{name}: lm-eval reports {reported[side].metrics[name]!r} for the {side}, "
                    f"and the gate computes {ours[side]!r}"
                )


def _refuse_changed(folder: Path, before: Manifest) -> None:
    if file_manifest(folder).files != before.files:
        raise AttestationRefused(
            f"{str(folder)!r} changed while it was evaluated", fix="run the gate again"
        )
