"""Writes an artifact's provenance as JSON and as a model card."""

from dataclasses import dataclass
from typing import Any

from quantize.calibration import CalibrationSet
from quantize.hardware import Machine
from quantize.job import Done
from quantize.plan import Plan
from quantize.recipe import Recipe
from quantize.source import ModelSource
from quantize.targets import Target
from serving.artifacts.manifest import Manifest

FILE = "provenance.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Run:
    """The facts of a finished run. Sizes in bytes, duration in seconds."""

    source: ModelSource
    base: Manifest
    recipe: Recipe
    plan: Plan
    outliers: dict[str, float]
    calibration: CalibrationSet | None
    target: Target
    machine: Machine
    seed: int
    done: Done
    duration_s: float
    size_bytes: int
    version: str
    date: str


def provenance(run: Run) -> dict[str, Any]:
    """Return the document. It has digests of the calibration texts, not the texts."""
    precision: dict[str, int] = {}
    for item in run.plan.layers:
        precision[str(item.bits)] = precision.get(str(item.bits), 0) + 1
    return {
        "format": FORMAT,
        "narrowgate": run.version,
        "date": run.date,
        "base": {
            "id": run.source.id,
            "revision": run.source.revision,
            "digest": f"sha256:{run.base.root}",
            "files": run.base.files,
        },
        "recipe": {"digest": run.recipe.digest(), **run.recipe.model_dump(mode="json")},
        "resolved": {
            "group_size": run.plan.group_size,
            "layers_by_bits": precision,
            "layers_16bit": list(run.plan.names(16)),
            "outliers": run.outliers,
            "losses": run.done.losses,
        },
        "calibration": _calibration(run.calibration),
        "seed": run.seed,
        "target": run.target.name,
        "libraries": run.done.libraries,
        "hardware": {
            "cpu": run.machine.cpu,
            "cores": run.machine.cores,
            "gpu": run.done.accelerator_name,
        },
        "duration_s": round(run.duration_s, 1),
        "peak_memory_bytes": run.done.peak_memory_bytes,
        "peak_accelerator_bytes": run.done.peak_accelerator_bytes,
        "size_before_bytes": run.plan.size_before,
        "size_after_bytes": run.size_bytes,
    }


def _calibration(used: CalibrationSet | None) -> dict[str, Any] | None:
    if used is None:
        return None
    return {
        "source": used.source,
        "digest": used.digest(),
        "samples": len(used.sequences),
        "tokens": used.tokens,
        "left_out": used.left_out,
        "example_digests": list(used.example_digests),
    }


def model_card(run: Run) -> str:
    """Return the artifact's README.md, with the metadata header that the hub reads."""
    mib = 2**20
    method = {
        "llm-compressor": "compressed-tensors",
        "gptqmodel": "gptq",
        "bitsandbytes": "bitsandbytes",
    }[run.recipe.library]
    facts = {
        "base model": f"`{run.source.id}`"
        + (f" at `{run.source.revision}`" if run.source.revision else ""),
        "base digest": f"`sha256:{run.base.root}`",
        "recipe": f"`{run.recipe.name}` (`{run.recipe.digest()}`)",
        "library": f"{run.recipe.library}, format {method}",
        "group size": str(run.plan.group_size or "per channel"),
        "layers left in 16 bits": ", ".join(run.plan.names(16)) or "output head and embeddings",
        "calibration": "none"
        if run.calibration is None
        else f"{len(run.calibration.sequences)} sequences, {run.calibration.tokens} tokens, "
        f"{run.calibration.source} (`{run.calibration.digest()}`)",
        "weights": f"{run.plan.size_before / mib:.1f} MiB before, {run.size_bytes / mib:.1f} MiB "
        "after",
        "made on": f"{run.done.accelerator_name or run.machine.cpu} in {run.duration_s:.0f} s, "
        f"peak memory {run.done.peak_memory_bytes / mib:.0f} MiB",
        "date": run.date,
        "libraries": ", ".join(f"{name} {v}" for name, v in run.done.libraries.items()),
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    base = f"base_model: {run.source.id}\n" if run.source.on_hub else ""
    return (
        f"---\n{base}library_name: transformers\npipeline_tag: text-generation\ntags:\n"
        f"- {method}\n- narrowgate\n---\n\n# {run.source.id}, {run.recipe.name}\n\n"
        f"{run.recipe.description}\n\n| | |\n| --- | --- |\n{rows}\n\n"
        "This file does not state whether the model is good enough for a task: the evaluation gate "
        f"decides that. All facts, with the digest of every base file, are in `{FILE}`.\n"
    )
