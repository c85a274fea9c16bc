"""Runs one quantization, from checks to the published artifact."""

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from quantize import calibration as calibration_data
from quantize.artifact import Workspace, workspace
from quantize.calibration import CalibrationSet, Example, batches
from quantize.checks import refuse_too_little_space, refuse_unservable
from quantize.environment import quantize_python, refuse_no_interpreter, worker_environment
from quantize.hardware import Machine, this_machine
from quantize.job import REPORT, Done, Failed, Job, Outliers
from quantize.layout import ModelLayout, read_layout
from quantize.plan import Plan, Workload, make_plan, with_layers_in_16bit
from quantize.progress import RunSteps
from quantize.provenance import FILE, Run, model_card, provenance
from quantize.recipe import Recipe
from quantize.source import ModelSource
from quantize.targets import Target, find_target, refuse_unsuitable
from quantize.verify import verify_checkpoint
from serving.artifacts.manifest import Manifest, file_manifest
from serving.contracts.errors import NarrowgateError, QuantizationFailed, UnsuitableTarget
from serving.contracts.task_spec import TaskSpec
from serving.host.progress import StepObserver
from serving.host.safe_write import refuse_used_output
from serving.tasks.prompt import CheckpointTokenizer

# Tokens in one forward pass of calibration: enough to keep the machine busy.
_BATCH_TOKENS = {"cpu": 2048, "cuda": 4096}
_LOG_LINES = 20
_NOTHING = Workload(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of a run. calibration: a file, None for the built-in texts."""

    source: ModelSource
    recipe: Recipe
    out: Path
    specs: Mapping[str, TaskSpec]
    calibration: Path | None
    held_out: Sequence[Path]
    target: str | None
    device: str
    seed: int
    python: Path | None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that was checked and resolved, before any expensive work."""

    request: Request
    layout: ModelLayout
    machine: Machine
    gpu: bool
    target: Target
    calibration: CalibrationSet | None
    plan: Plan


@dataclass(frozen=True, slots=True)
class Artifact:
    """A published artifact."""

    folder: Path
    manifest: Manifest
    provenance: dict[str, Any]


def prepare(request: Request) -> Prepared:
    """Check everything that can be checked before the run. Blocking, seconds.

    Raises ConfigurationError.
    """
    refuse_used_output(request.out)
    machine = this_machine()
    gpu = _uses_gpu(request.device, machine)
    target = _target(request.target, machine)
    if request.python is not None:
        refuse_no_interpreter(request.python)
    examples: Sequence[Example] | None = None
    if request.source.models is not None:
        # The bundled model takes a minute to write: what needs no model is refused before.
        examples = _examples(request)
        request = replace(request, source=request.source.made())
    layout = read_layout(request.source)

    def plan_for(workload: Workload) -> Plan:
        return make_plan(request.recipe, layout, workload, cores=machine.cores, gpu=gpu)

    # Shapes and target first: rendering the calibration set is the slowest of the checks.
    shapes = plan_for(_NOTHING)
    refuse_unsuitable(request.recipe, shapes.group_size, target)
    refuse_unservable(request.recipe, target, shapes)
    used = _calibration(request, _examples(request) if examples is None else examples)
    plan = plan_for(_workload(used, gpu=gpu))
    refuse_too_little_space(plan, machine, request.out)
    return Prepared(request, layout, machine, gpu, target, used, plan)


def carry_out(prepared: Prepared, observer: StepObserver) -> Artifact:
    """Quantize, check the written checkpoint and publish it. Blocking, minutes to hours.

    Raises QuantizationFailed with the end of the library's log; the whole log is kept beside the
    output.
    """
    request = prepared.request
    steps = RunSteps(observer, prepared.layout.blocks)
    python = quantize_python(gpu=prepared.gpu, given=request.python, announce=steps.begin)
    steps.begin("fetching the checkpoint")
    base = request.source.fetch()
    started = time.monotonic()
    with workspace(request.out) as space:
        space.checkpoint.mkdir()
        space.job.write_text(_job(prepared, base, space).model_dump_json(), encoding="utf-8")
        worked = _work(python, space, steps, gpu=prepared.gpu)
        plan = with_layers_in_16bit(prepared.plan, worked.outliers)
        steps.begin("checking and digesting the written files")
        space.copy_description(base)
        size = verify_checkpoint(space.checkpoint, request.recipe, plan)
        facts = Run(
            source=request.source,
            base=file_manifest(base),
            recipe=request.recipe,
            plan=plan,
            outliers=worked.outliers,
            calibration=prepared.calibration,
            target=prepared.target,
            machine=prepared.machine,
            seed=request.seed,
            done=worked.done,
            duration_s=time.monotonic() - started,
            size_bytes=size,
            version=metadata.version("narrowgate"),
            date=datetime.now(UTC).strftime("%Y-%m-%d"),
        )
        document = provenance(facts)
        _write(space.checkpoint / FILE, json.dumps(document, indent=1, ensure_ascii=False))
        _write(space.checkpoint / "README.md", model_card(facts))
        manifest = file_manifest(space.checkpoint)
        _write(space.checkpoint / "manifest.json", manifest.to_json())
        space.publish()
    return Artifact(request.out, manifest, document)


def _examples(request: Request) -> list[Example]:
    """Return the texts to calibrate on; none where the recipe needs none."""
    if request.recipe.calibration is None:
        return []
    if request.calibration is None:
        examples = calibration_data.built_in_examples(request.specs, request.seed)
    else:
        examples = calibration_data.read_examples(request.calibration)
    suites = [calibration_data.built_in_suites(), *request.held_out]
    calibration_data.refuse_overlap(examples, calibration_data.held_out_digests(suites))
    return examples


def _calibration(request: Request, examples: Sequence[Example]) -> CalibrationSet | None:
    need = request.recipe.calibration
    if need is None:
        return None
    source = "built-in texts" if request.calibration is None else request.calibration.name
    tokenizer = CheckpointTokenizer.load(request.source.fetch_description())
    return calibration_data.build_calibration(
        examples, need, request.specs, tokenizer, source=source, seed=request.seed
    )


def _workload(used: CalibrationSet | None, *, gpu: bool) -> Workload:
    if used is None:
        return _NOTHING
    limit = _BATCH_TOKENS["cuda" if gpu else "cpu"]
    longest = max(len(batch) * len(batch[0]) for batch in batches(used.sequences, limit))
    return Workload(len(used.sequences), used.tokens, longest)


def _uses_gpu(device: str, machine: Machine) -> bool:
    if device == "cuda" and machine.gpu is None:
        raise UnsuitableTarget(
            "--device cuda was passed, and no NVIDIA GPU was found",
            field="device",
            fix="use --device cpu, or check the driver with nvidia-smi",
        )
    return device == "cuda" or (device == "auto" and machine.gpu is not None)


def _target(name: str | None, machine: Machine) -> Target:
    if name is not None:
        return find_target(name)
    if machine.gpu is None:
        return find_target("cpu")
    return Target(machine.gpu.name, machine.gpu.capability, machine.gpu.total_bytes / 2**30)


def _job(prepared: Prepared, base: Path, space: Workspace) -> Job:
    request = prepared.request
    device = "cuda" if prepared.gpu else "cpu"
    lifted = request.recipe.weight_bits == 4
    return Job(
        recipe=request.recipe,
        base=base.resolve(),
        out=space.checkpoint.resolve(),
        group_size=prepared.plan.group_size,
        linear=tuple(item.layer.name for item in prepared.plan.layers),
        layers_16bit=prepared.plan.names(16),
        layers_8bit=prepared.plan.names(8) if lifted else (),
        sequences=prepared.calibration.sequences if prepared.calibration else (),
        batch_tokens=_BATCH_TOKENS[device],
        device=device,
        threads=prepared.machine.cores,
        seed=request.seed,
    )


@dataclass(frozen=True, slots=True)
class _Worked:
    done: Done
    outliers: dict[str, float]


def _work(python: Path, space: Workspace, steps: RunSteps, *, gpu: bool) -> _Worked:
    """Run the worker to its end and return its report."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    if not gpu:
        # The libraries use every visible GPU.
        environment["CUDA_VISIBLE_DEVICES"] = ""
    failure = "it ended without a report"
    with (
        worker_environment(space.folder) as code,
        space.log.open("wb") as log,
        subprocess.Popen(  # noqa: S603  # our own module
            [python, "-m", "quantize.worker", space.job],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**environment, **code},
        ) as worker,
    ):
        assert worker.stdout is not None
        done, outliers = None, {}
        try:
            for line in worker.stdout:
                report = REPORT.validate_json(line)
                steps.report(report)
                if isinstance(report, Done):
                    done = report
                elif isinstance(report, Outliers):
                    outliers = report.layers
                elif isinstance(report, Failed):
                    failure = report.message
        except BaseException:  # KeyboardInterrupt too: no worker may remain; re-raised
            worker.kill()
            raise
    # A library may crash while it shuts down, after everything was written. The files are checked
    # next.
    if done is None:
        raise _failed(space, f"{failure} (status {worker.returncode})")
    return _Worked(done, outliers)


def _failed(space: Workspace, message: str) -> NarrowgateError:
    lines = space.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
    return QuantizationFailed(
        f"the quantization failed: {message}\n" + "\n".join(lines),
        fix=f"the whole log is {space.log}",
    )


def _write(path: Path, text: str) -> None:
    path.write_text(text + ("" if text.endswith("\n") else "\n"), encoding="utf-8")
