"""The hardware that serves an artifact, and which precisions run fast on it.

Capabilities: the least ones that vLLM 0.29's kernels name (get_min_capability), and its refusal
of INT8 matrix products on Blackwell. Memory: NVIDIA's data sheets.
"""

import re
from dataclasses import dataclass

from quantize.recipe import BitsAndBytesRecipe, GptqModelRecipe, LlmCompressorRecipe, Recipe
from serving.contracts.errors import UnsuitableTarget

_TURING = 75
_ADA = 89
_BLACKWELL = 100
# Marlin, the kernel for 4-bit weights on GPUs, takes these and whole rows.
_MARLIN_GROUPS = frozenset({32, 64, 128})


@dataclass(frozen=True, slots=True)
class Target:
    """One kind of serving hardware. capability: 10 x major + minor, None for a processor."""

    name: str
    capability: int | None
    memory_gib: float | None


TARGETS = {
    target.name: target
    for target in (
        Target("cpu", None, None),
        Target("v100", 70, 16),
        Target("t4", 75, 16),
        Target("a100", 80, 40),
        Target("a10g", 86, 24),
        Target("l4", 89, 24),
        Target("l40s", 89, 48),
        Target("h100", 90, 80),
        Target("h200", 90, 141),
        Target("b200", 100, 180),
    )
}


def find_target(name: str) -> Target:
    """Return a target by name, or by capability (`sm86`). Raises UnsuitableTarget."""
    if name in TARGETS:
        return TARGETS[name]
    found = re.fullmatch(r"sm(\d{2,3})", name)
    if found is None:
        raise UnsuitableTarget(
            f"no target {name!r}",
            field="target",
            fix="use one of: " + ", ".join(TARGETS) + "; or a compute capability such as sm86",
        )
    return Target(name, int(found.group(1)), None)


def refuse_unsuitable(recipe: Recipe, group_size: int | None, target: Target) -> None:
    """Refuse a recipe that the target cannot run, or only through a slow fallback.

    group_size: weights a scale, None without groups.
    Raises UnsuitableTarget with the reason.
    """
    match recipe:
        case LlmCompressorRecipe():
            reason = _compressed_tensors(recipe, group_size, target)
        case GptqModelRecipe():
            reason = _weight_only(recipe.weight_bits, group_size, target)
        case BitsAndBytesRecipe():
            reason = None
    if reason is not None:
        what, instead = reason
        raise UnsuitableTarget(
            f"recipe {recipe.name!r} on target {target.name!r}: {what}",
            field="target",
            fix=f"{instead}, or name the hardware that will serve it with --target",
        )


def _compressed_tensors(
    recipe: LlmCompressorRecipe, group_size: int | None, target: Target
) -> tuple[str, str] | None:
    capability = target.capability
    if recipe.weight_type == "float":
        if capability is None or capability < _ADA:
            return "FP8 needs tensor cores of compute capability 8.9 or later", "use int8-w8a8"
        return None
    if recipe.activations == "16-bit":
        reason = _weight_only(recipe.weight_bits, group_size, target)
        if reason is not None or not recipe.eight_bit:
            return reason
    if capability is not None and capability < _TURING:
        return "8-bit activations need INT8 tensor cores (compute capability 7.5)", "use bnb-int8"
    if capability is not None and capability >= _BLACKWELL:
        return "vLLM has no INT8 matrix product for Blackwell", "use an FP8 recipe"
    return None


def _weight_only(bits: int, group_size: int | None, target: Target) -> tuple[str, str] | None:
    if target.capability is None:
        if bits == 8:
            return "vLLM has no kernel for 8-bit weights with 16-bit activations on processors", (
                "use int8-w8a8"
            )
        return None
    if target.capability < _TURING:
        return "its kernel (Marlin) needs compute capability 7.5", "use a bitsandbytes recipe"
    if group_size is not None and group_size not in _MARLIN_GROUPS:
        return (
            f"its kernel (Marlin) takes groups of {sorted(_MARLIN_GROUPS)} weights, "
            f"not {group_size}",
            "change group_size",
        )
    return None
