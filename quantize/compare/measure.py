"""Measures every model in the serving engine; speed in interleaved rounds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from quantize.compare import probes
from quantize.compare.divergence import Divergence
from quantize.compare.probes import Throughput
from quantize.compare.workload import WINDOW, Inputs, Passages
from quantize.hardware import Machine
from quantize.layout import weight_bytes
from serving.artifacts.checkpoint import Checkpoint
from serving.contracts.settings import CpuAccelerator, GpuAccelerator, ModelSettings
from serving.local.deployment import offline_arguments, refuse_missing_kernel
from serving.local.offline import OfflineEngine
from serving.local.offline_work import run_works

PROMPT_TOKENS = 128
PROMPTS = 40
DECODE_TOKENS = 32
DECODE_CONCURRENCY = 8
_MAX_MODEL_LEN = 2048
_KV_GIB = 1
# A loaded engine besides its weights and KV cache: interpreter, libraries, buffers.
_ENGINE_BYTES = int(1.5 * 2**30)

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to measure; the first of several is the baseline."""

    name: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Materials:
    """The inputs of all subjects."""

    passages: Passages
    inputs: Inputs | None
    rounds: int
    machine: Machine


@dataclass(slots=True)
class Measured:
    """The figures of one subject. size_bytes: of the weight files. labels: in the inputs' order.

    rounds: one entry for each interleaved round; the first, uncounted one is not here.
    """

    name: str
    size_bytes: int
    load_s: float
    kernels: dict[str, int]
    divergence: Divergence
    labels: list[str]
    rounds: list[Throughput] = field(default_factory=list)


def measure(
    subjects: Sequence[Subject], materials: Materials, scratch: Path, report: Report
) -> list[Measured]:
    """Return the figures of each subject, in order. Blocking, minutes.

    Engines stay loaded side by side where memory allows; otherwise each is loaded for its turns.
    scratch: an empty folder, for the baseline's distributions (16 KiB a token).
    Raises UnsuitableTarget before anything is loaded, EngineFailure when a model does not load.
    """
    for subject in subjects:
        settings = _settings(subject, materials.machine, share=1.0)
        refuse_missing_kernel(settings, _checkpoint(subject))
    resident = _fit_together(subjects, materials.machine)
    reference = str(scratch / "reference.npz")
    engines: dict[str, OfflineEngine] = {}
    try:
        measured = []
        for number, subject in enumerate(subjects):
            report(f"{subject.name}: loading and measuring quality")
            share = 1.0 / len(subjects) if resident else 1.0
            engine = _start(subject, materials.machine, scratch, share=share)
            engines[subject.name] = engine
            measured.append(_quality(subject, engine, materials, reference, write=number == 0))
            if not resident:
                engines.pop(subject.name).stop()
        prompts = materials.passages.slices(PROMPT_TOKENS, PROMPTS)
        for number in range(materials.rounds + 1):
            for subject, item in zip(subjects, measured, strict=True):
                report(f"{subject.name}: throughput, round {number} of {materials.rounds}")
                if not resident:
                    engines[subject.name] = _start(subject, materials.machine, scratch, share=1.0)
                speed = engines[subject.name].call(
                    probes.throughput, prompts, DECODE_TOKENS, DECODE_CONCURRENCY
                )
                if not resident:
                    engines.pop(subject.name).stop()
                if number > 0:
                    item.rounds.append(speed)
        return measured
    finally:
        for engine in engines.values():
            engine.stop()


def _quality(
    subject: Subject, engine: OfflineEngine, materials: Materials, reference: str, *, write: bool
) -> Measured:
    labels: list[str] = []
    if materials.inputs is not None:
        outputs = engine.call(run_works, materials.inputs.works).outputs
        for request, output in zip(materials.inputs.requests, outputs, strict=True):
            labels.append(str(materials.inputs.tasks[request.task].read(request, output).value))
    return Measured(
        name=subject.name,
        size_bytes=weight_bytes(subject.folder),
        load_s=engine.load_s,
        kernels=engine.call(probes.kernels),
        divergence=engine.call(
            probes.diverge, materials.passages.token_ids, reference, write=write
        ),
        labels=labels,
    )


def _settings(subject: Subject, machine: Machine, *, share: float) -> ModelSettings:
    accelerator = (
        CpuAccelerator(kind="cpu", kv_cache_gib=_KV_GIB)
        if machine.gpu is None
        else GpuAccelerator(kind="gpu", memory_utilization=0.9 * share)
    )
    return ModelSettings(
        id="compared",
        source=str(subject.folder),
        accelerator=accelerator,
        max_model_len=_MAX_MODEL_LEN,
        # The recorder reads a prompt's logits in one piece.
        engine_args={
            "enforce_eager": machine.gpu is None,
            "max_num_batched_tokens": max(_MAX_MODEL_LEN, 2 * WINDOW),
        },
    )


def _checkpoint(subject: Subject) -> Checkpoint:
    return Checkpoint(str(subject.folder.resolve()), None)


def _start(subject: Subject, machine: Machine, scratch: Path, *, share: float) -> OfflineEngine:
    settings = _settings(subject, machine, share=share)
    engine_kwargs, environment = offline_arguments(settings, _checkpoint(subject))
    # Rounds repeat their prompts, and reading prompts is measured.
    engine_kwargs["enable_prefix_caching"] = False
    engine_kwargs["worker_extension_cls"] = "quantize.compare.recorder.LogitsRecorder"
    # The recorder runs in the engine's process, so that distributions need not be copied.
    environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return OfflineEngine.start(engine_kwargs, environment, scratch / "engine.log")


def _fit_together(subjects: Sequence[Subject], machine: Machine) -> bool:
    weights = sum(weight_bytes(subject.folder) for subject in subjects)
    needed = weights + len(subjects) * (_ENGINE_BYTES + _KV_GIB * 2**30)
    free = machine.available_bytes if machine.gpu is None else machine.gpu.free_bytes
    return needed < 0.9 * free
