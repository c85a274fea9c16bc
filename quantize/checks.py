"""Checks before expensive work: memory, disk, and whether the engine can serve the result."""

from importlib import metadata
from pathlib import Path

from quantize.hardware import Machine, free_disk_bytes
from quantize.plan import Plan
from quantize.recipe import BitsAndBytesRecipe, Recipe
from quantize.targets import Target
from serving.contracts.errors import InsufficientResources, UnsuitableTarget

_GIB = 2**30
# Tokenizer, description and a temporary copy of the header.
_DISK_SLACK = 64 * 2**20
_BNB_PLUGIN = "vllm-bnb-plugin"


def refuse_too_little_space(plan: Plan, machine: Machine, out: Path) -> None:
    """Refuse a run that the machine has no memory or disk for. Raises InsufficientResources."""
    needed, free = plan.size_after + _DISK_SLACK, free_disk_bytes(out)
    if needed > free:
        raise InsufficientResources(
            f"the artifact takes {_gib(needed)} and {_gib(free)} are free for {str(out)!r}",
            field="out",
            fix="free disk space or write elsewhere",
        )
    if plan.peak_memory > machine.available_bytes:
        raise InsufficientResources(
            f"the run takes about {_gib(plan.peak_memory)} of memory and "
            f"{_gib(machine.available_bytes)} are available",
            field="memory",
            fix="use a machine with more memory, or fewer or shorter calibration samples",
        )
    if machine.gpu is not None and plan.peak_accelerator_memory > machine.gpu.free_bytes:
        raise InsufficientResources(
            f"the run takes about {_gib(plan.peak_accelerator_memory)} of GPU memory and "
            f"{_gib(machine.gpu.free_bytes)} are free on {machine.gpu.name}",
            field="device",
            fix="stop other programs on the GPU, or pass --device cpu",
        )


def refuse_unservable(recipe: Recipe, target: Target, plan: Plan) -> None:
    """Refuse an artifact that the serving engine could not load. Raises UnsuitableTarget."""
    if isinstance(recipe, BitsAndBytesRecipe) and not _installed(_BNB_PLUGIN):
        raise UnsuitableTarget(
            f"recipe {recipe.name!r}: vLLM 0.29 needs the package {_BNB_PLUGIN} for bitsandbytes, "
            "and it is not installed",
            field="recipe",
            fix=f"install {_BNB_PLUGIN} where the artifact is to be served",
        )
    if target.memory_gib is not None and plan.size_after > 0.9 * target.memory_gib * _GIB:
        raise UnsuitableTarget(
            f"the artifact's {_gib(plan.size_after)} leave no memory for the KV cache in the "
            f"{target.memory_gib:.0f} GiB of target {target.name!r}",
            field="target",
            fix="use a recipe with fewer bits, or a larger GPU",
        )


def _installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB"
