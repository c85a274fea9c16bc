"""One gate run: both models on every suite, a verdict for each task, one signed statement."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evals.answers import Answered, works
from evals.assessment import Certified, Rules, assess, certain_to_fail
from evals.findings import Findings, TaskFindings
from evals.harness import General, HarnessResult, run_harness
from evals.pair import SIDES, Block, Futile, Side
from evals.pair import Pair as SubjectPair
from evals.paired import Indices, bootstrap_interval
from evals.population import OwnInputs
from evals.subject import (
    Precision,
    Subject,
    calibration_digests,
    precision_of,
    recipe_of,
    weight_bytes,
)
from evals.suite import Suite
from evals.verdict import judge_loss
from serving.artifacts.manifest import Manifest, file_manifest
from serving.artifacts.probes import measure_probes
from serving.contracts.attestation import (
    Artifact,
    Engine,
    GatePredicate,
    GeneralResult,
    Pair,
    ReferenceLabels,
    TaskProbes,
    Verdict,
)
from serving.contracts.errors import (
    AttestationRefused,
    CalibrationOverlap,
    EngineFailure,
    InvalidSuite,
)
from serving.contracts.settings import ModelSettings
from serving.host.progress import StepObserver, StepTimes
from serving.local.offline_work import device_name, kernels, run_works

_TOOLS = ("lm-eval", "numpy", "sacrebleu", "scipy", "transformers", "model-signing")


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of a run. margins: by task, stated for this run; otherwise those of the specs.

    settings: how both models are served; their source is not used. stop_early: stop a task that
    can only fail. own_inputs: by task, the user's own inputs that certify in place of a half of
    the suite. references: by task, where a reference model's answers are the labels.
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
    pair = SubjectPair(subjects, request.suites, steps, _futile(request), own_inputs)
    with pair.running():
        if request.stop_early:
            # lm-eval needs the number of examples before it starts.
            pair.run()
        suites = list(pair.suites.values())
        pair.report_step("scoring with lm-eval")
        reported = {side: run_harness(pair, side, suites, request.general) for side in SIDES}
        hardware = pair.call("candidate", device_name)
        tasks = {}
        for suite in suites:
            pair.report_step("judging")
            tasks[suite.name] = assess(
                suite,
                pair.answered("baseline", suite.name),
                pair.answered("candidate", suite.name),
                pair.blocks[suite.name],
                _rules(request, suite, precision),
                _certified(request, pair, suite.name),
            )
        pair.report_step("measuring probes")
        chosen_kernels = pair.call("candidate", kernels)
        probes = _probes(pair, subjects["candidate"], tasks, request)
        pair.report_step("stopping the engines")
        pair.measure_memory()
    steps.step("checking the results")
    _refuse_disagreement(tasks, reported)
    _refuse_changed(request.candidate, manifests["candidate"])
    predicate = GatePredicate(
        narrowgate=metadata.version("narrowgate"),
        date=datetime.now(UTC).replace(microsecond=0),
        artifact=Artifact(
            files=manifests["candidate"].files,
            precision=precision,
            recipe=recipe_of(request.candidate),
            weight_bytes=_weights(request),
            memory_bytes=Pair(
                baseline=subjects["baseline"].memory_bytes,
                candidate=subjects["candidate"].memory_bytes,
            ),
        ),
        baseline=manifests["baseline"].root,
        engine=Engine(
            name="vllm",
            version=subjects["candidate"].version,
            max_model_len=request.settings.max_model_len,
            hardware=hardware,
            arguments=subjects["candidate"].arguments,
            environment=subjects["candidate"].environment,
            kernels=chosen_kernels,
        ),
        tools={"python": platform.python_version(), **{t: metadata.version(t) for t in _TOOLS}},
        seed=request.seed,
        tasks={name: found.result for name, found in tasks.items()},
        general={name: _general(name, reported, request) for name in request.general.names},
        probes=probes,
    )
    name = request.candidate.resolve().name
    return Findings(name, manifests["candidate"].root, predicate, tasks, steps.seconds())


def refuse_unfit_request(request: Request) -> None:
    """Refuse margins without a task, and inputs that the candidate was calibrated on.

    Raises ConfigurationError.
    """
    _refuse_unknown_margins(request)
    precision_of(request.candidate)
    _refuse_overlap(request)


def _certified(request: Request, pair: SubjectPair, name: str) -> Certified | None:
    answered = pair.own_answered(name)
    return None if answered is None else Certified(request.own_inputs[name], answered)


def _probes(
    pair: SubjectPair, candidate: Subject, tasks: Mapping[str, TaskFindings], request: Request
) -> dict[str, TaskProbes]:
    """Measure probes of the tasks that will be served, or of the first where none will be."""
    passed = [found.spec for found in tasks.values() if found.result.verdict is Verdict.PASS]
    specs = passed or [found.spec for found in list(tasks.values())[:1]]
    return measure_probes(
        specs,
        candidate.tokenizer,
        request.settings.max_model_len,
        lambda works: pair.call("candidate", run_works, works).outputs,
    )


def _futile(request: Request) -> Futile | None:
    if not request.stop_early:
        return None

    def futile(seen: Suite, candidate: Answered, blocks: Sequence[Block]) -> bool:
        return certain_to_fail(seen, candidate, blocks, _rules(request, seen, "16-bit"))

    return futile


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
    tasks: Mapping[str, TaskFindings], reported: Mapping[Side, HarnessResult]
) -> None:
    """Compare the gate's metrics with lm-eval's for the same answers; a difference is an error."""
    for name, found in tasks.items():
        assert found.result.candidate is not None
        ours = {"baseline": found.result.baseline, "candidate": found.result.candidate.estimate}
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
