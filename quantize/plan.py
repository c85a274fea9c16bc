"""Predicts the effect of a recipe on a model from shapes: layers, sizes, memory and time. Sizes
follow each format's tensors exactly. Times are estimates from the work to be done and a measured
rate.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from quantize.layout import FUSED, LinearLayer, ModelLayout, matching
from quantize.recipe import BitsAndBytesRecipe, GptqModelRecipe, LlmCompressorRecipe, Recipe
from serving.contracts.errors import UnsuitableModel

_NF4_BLOCK = 64
_NF4_SCALES_BLOCK = 256
_GROUPS_TO_PROPOSE = (16, 32, 64, 128, 256)

# Interpreter and libraries, without weights.
_PROCESS_BYTES = 700 * 2**20


@dataclass(frozen=True, slots=True)
class Rate:
    """The speed of a machine, in multiply-adds a second.

    forward: matrix products of the calibration pass. rounding: GPTQ's updates, column by column.
    block_s: further time of each decoder block. start_s: imports and loading. measured: the run
    that the figures are from.
    """

    forward: float
    rounding: float
    block_s: float
    start_s: float
    measured: str


# From runs with 14,000 and 61,000 tokens: 2.9 ms a token, 0.6 s of rounding a block.
CPU_CORE = Rate(59e9, 6.4e9, 0.1, 20.0, "SmolLM2-135M on 2 cores of an AMD EPYC")
GPU = Rate(30e12, 0.5e12, 2.0, 60.0, "not measured: a guess from data sheets")


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One linear layer. bits: of its weights afterwards. group_size: None for per channel."""

    layer: LinearLayer
    bits: int
    group_size: int | None
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The recipe resolved for one model. Sizes in bytes, times in seconds."""

    layers: tuple[LayerPlan, ...]
    group_size: int | None
    size_before: int
    size_after: int
    peak_memory: int
    peak_accelerator_memory: int
    seconds: float
    rate: Rate
    samples: int
    tokens: int

    def names(self, bits: int) -> tuple[str, ...]:
        """Return the names of the layers that get this many bits."""
        return tuple(item.layer.name for item in self.layers if item.bits == bits)


@dataclass(frozen=True, slots=True)
class Workload:
    """The calibration workload. tokens: of all sequences. longest_batch: tokens of the longest
    batch.
    """

    samples: int
    tokens: int
    longest_batch: int


def make_plan(
    recipe: Recipe, layout: ModelLayout, workload: Workload, *, cores: int, gpu: bool
) -> Plan:
    """Return the plan. Pure.

    Raises UnsuitableModel when no group size divides a layer, a pattern matches nothing, or layers
    that the engine joins would get different precisions.
    """
    kept = _matched(recipe.keep_16bit, layout, "keep_16bit")
    eight: set[str] = set()
    if isinstance(recipe, LlmCompressorRecipe):
        eight = _matched(recipe.eight_bit, layout, "eight_bit") - kept
    in_groups = [layer for layer in layout.linear if layer.name not in kept | eight]
    group_size = choose_group_size(recipe, in_groups)
    bits = {
        layer.name: 16 if layer.name in kept else 8 if layer.name in eight else recipe.weight_bits
        for layer in layout.linear
    }
    _refuse_split_fusions(bits)
    layers = tuple(
        _layer_plan(recipe, layer, bits[layer.name], group_size) for layer in layout.linear
    )
    rate = GPU if gpu else cpu_rate(cores)
    return Plan(
        layers=layers,
        group_size=group_size,
        size_before=layout.total_bytes,
        size_after=layout.other_bytes + sum(item.size_bytes for item in layers),
        peak_memory=_peak_memory(recipe, layout, workload, gpu=gpu),
        peak_accelerator_memory=_peak_accelerator(recipe, layout, workload) if gpu else 0,
        seconds=_seconds(recipe, layout, workload, rate),
        rate=rate,
        samples=workload.samples,
        tokens=workload.tokens,
    )


def with_layers_in_16bit(plan: Plan, names: Collection[str]) -> Plan:
    """Return the plan with these layers in 16 bits."""
    layers = tuple(
        LayerPlan(item.layer, 16, None, 2 * item.layer.weights)
        if item.layer.name in names
        else item
        for item in plan.layers
    )
    more = sum(item.size_bytes for item in layers) - sum(item.size_bytes for item in plan.layers)
    return replace(plan, layers=layers, size_after=plan.size_after + more)


def cpu_rate(cores: int) -> Rate:
    """Return the rate of a processor with this many cores."""
    return replace(CPU_CORE, forward=CPU_CORE.forward * cores, rounding=CPU_CORE.rounding * cores)


def choose_group_size(recipe: Recipe, layers: Sequence[LinearLayer]) -> int | None:
    """Return the recipe's first group size that divides every layer's input; None without groups.

    Raises UnsuitableModel, naming the layers in the way and sizes that would do.
    """
    wanted = None if isinstance(recipe, BitsAndBytesRecipe) else recipe.group_size
    if wanted is None:
        return None
    for size in wanted:
        if all(layer.in_features % size == 0 for layer in layers):
            return size
    size = wanted[-1]
    wrong = [layer for layer in layers if layer.in_features % size]
    common = math.gcd(*(layer.in_features for layer in layers))
    fitting = [str(group) for group in _GROUPS_TO_PROPOSE if common % group == 0]
    named = ", ".join(f"{layer.name} ({layer.in_features} inputs)" for layer in wrong[:3])
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    raise UnsuitableModel(
        f"group_size {list(wanted)}: none divides every layer; {size} does not divide "
        f"{named}{more}",
        field="group_size",
        fix=(f"use {' or '.join(fitting)}" if fitting else "no common group size fits this model")
        + ", or keep those layers in 16 bits (keep_16bit)",
    )


def _matched(patterns: Sequence[str], layout: ModelLayout, field: str) -> set[str]:
    for pattern in patterns:
        if not matching(layout.linear, [pattern]):
            raise UnsuitableModel(
                f"{field}: {pattern!r} matches none of the model's {len(layout.linear)} layers",
                field=field,
                fix=f"names look like {layout.linear[0].name!r}",
            )
    return {layer.name for layer in matching(layout.linear, patterns)}


def _refuse_split_fusions(bits: dict[str, int]) -> None:
    for name, mine in bits.items():
        prefix, _, last = name.rpartition(".")
        for fused in FUSED:
            if last in fused:
                split = [part for part in fused if bits.get(f"{prefix}.{part}", mine) != mine]
                if split:
                    raise UnsuitableModel(
                        f"{name} would have {mine} bits and {split[0]} beside it "
                        f"{bits[f'{prefix}.{split[0]}']}: the engine runs them as one layer",
                        field="keep_16bit",
                        fix="name all of " + ", ".join(fused) + " or none",
                    )


def _layer_plan(recipe: Recipe, layer: LinearLayer, bits: int, group_size: int | None) -> LayerPlan:
    if bits == 16:
        return LayerPlan(layer, 16, None, 2 * layer.weights)
    group = None if bits == 8 and recipe.weight_bits == 4 else group_size
    match recipe:
        case LlmCompressorRecipe():
            size = _compressed_tensors_bytes(recipe, layer, bits, group)
        case GptqModelRecipe():
            size = _gptq_bytes(layer, bits, layer.in_features // (group or layer.in_features))
        case BitsAndBytesRecipe():
            size = _bitsandbytes_bytes(recipe, layer)
    return LayerPlan(layer, bits, group, size)


def _compressed_tensors_bytes(
    recipe: LlmCompressorRecipe, layer: LinearLayer, bits: int, group: int | None
) -> int:
    scales = layer.out_features * (1 if group is None else layer.in_features // group)
    size = layer.weights * bits // 8 + 2 * scales
    if not recipe.symmetric and bits == 4:
        # Zero points, eight to a 32-bit word along the outputs.
        size += 4 * math.ceil(layer.out_features / 8) * (scales // layer.out_features)
    packed = recipe.activations == "16-bit" and bits == recipe.weight_bits
    if packed and recipe.weight_type == "int":
        size += 2 * 8  # weight_shape: two 64-bit numbers
    if recipe.act_order == "group" and group is not None and recipe.rounding == "gptq":
        size += 4 * layer.in_features  # weight_g_idx
    return size


def _gptq_bytes(layer: LinearLayer, bits: int, groups: int) -> int:
    qweight = layer.weights * bits // 8
    scales = 2 * layer.out_features * groups
    qzeros = layer.out_features * groups * bits // 8
    g_idx = 4 * layer.in_features
    return qweight + scales + qzeros + g_idx


def _bitsandbytes_bytes(recipe: BitsAndBytesRecipe, layer: LinearLayer) -> int:
    if recipe.format == "int8":
        return layer.weights + 4 * layer.out_features + 1  # SCB, weight_format
    blocks = math.ceil(layer.weights / _NF4_BLOCK)
    table = 4 * 16  # quant_map
    state = 90  # a line of JSON; a few bytes more or less
    if not recipe.double_quantization:
        return layer.weights // 2 + 4 * blocks + table + state
    nested = 4 * math.ceil(blocks / _NF4_SCALES_BLOCK) + 4 * 256
    return layer.weights // 2 + blocks + nested + table + state


def _peak_memory(recipe: Recipe, layout: ModelLayout, workload: Workload, *, gpu: bool) -> int:
    # The inputs of a block are kept for all sequences until the next block has read them.
    activations = 2 * 2 * workload.tokens * layout.hidden_size
    if gpu:
        return _PROCESS_BYTES + layout.total_bytes + activations
    return (
        _PROCESS_BYTES + layout.total_bytes + activations + _block_bytes(recipe, layout, workload)
    )


def _peak_accelerator(recipe: Recipe, layout: ModelLayout, workload: Workload) -> int:
    if isinstance(recipe, BitsAndBytesRecipe):
        return layout.total_bytes
    block = 2 * layout.linear_weights // layout.blocks
    return 2**29 + block + _block_bytes(recipe, layout, workload)


def _block_bytes(recipe: Recipe, layout: ModelLayout, workload: Workload) -> int:
    """Return the memory for one block, bytes: Hessians, a layer in 32 bits, logits."""
    if isinstance(recipe, BitsAndBytesRecipe):
        return 0
    block = layout.linear[: len(layout.linear) // layout.blocks]
    hessians = sum(4 * layer.in_features**2 for layer in block)
    # The Hessian, its factor and its inverse; the weights, their error and their rounded copy.
    widest = max(4 * (3 * layer.in_features**2 + 4 * layer.weights) for layer in block)
    logits = 2 * 2 * workload.longest_batch * layout.vocab_size
    if isinstance(recipe, LlmCompressorRecipe):
        if recipe.rounding == "nearest":
            hessians = 0
        if recipe.smoothing == "awq":
            # Inputs and 16-bit outputs of the part being scaled, for all sequences.
            widest += 3 * 4 * workload.tokens * layout.hidden_size
    return hessians + max(widest, logits)


def _seconds(recipe: Recipe, layout: ModelLayout, workload: Workload, rate: Rate) -> float:
    if isinstance(recipe, BitsAndBytesRecipe):
        return rate.start_s + layout.total_bytes / 200e6
    passes = 2
    rounding = 0.0
    hessian = float(sum(layer.in_features**2 for layer in layout.linear)) * workload.tokens
    if isinstance(recipe, GptqModelRecipe) or recipe.rounding == "gptq":
        rounding = float(
            sum(layer.weights * layer.in_features + layer.in_features**3 for layer in layout.linear)
        )
    else:
        hessian = 0.0
    if isinstance(recipe, LlmCompressorRecipe) and recipe.smoothing == "awq":
        # Each of four mappings runs its part of the block once for every scale tried.
        passes += 2 * recipe.awq_grid
    forward = passes * float(layout.linear_weights) * workload.tokens + hessian
    blocks_s = layout.blocks * rate.block_s
    return rate.start_s + blocks_s + forward / rate.forward + rounding / rate.rounding
