"""Checks that the written checkpoint matches the plan, by reading its files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quantize.layout import Tensor, folder_tensors
from quantize.plan import Plan
from quantize.recipe import BitsAndBytesRecipe, GptqModelRecipe, Recipe
from serving.artifacts.checkpoint_config import read_config
from serving.contracts.errors import QuantizationFailed

_INTEGER = frozenset({"I8", "U8", "I32", "F8_E4M3"})


def verify_checkpoint(folder: Path, recipe: Recipe, plan: Plan) -> int:
    """Check every planned layer's tensors and scales; return the weights' size in bytes.

    Blocking: reads the scales, not the weights. Raises QuantizationFailed, naming the layer.
    """
    tensors = folder_tensors(folder)
    config = read_config(folder, "out")
    if "quantization_config" not in config:
        raise QuantizationFailed("the written config.json has no quantization_config")
    for item in plan.layers:
        name = item.layer.name
        packed = _stored_weight(tensors, name, recipe)
        if packed is None:
            raise QuantizationFailed(f"the written checkpoint has no weights for {name}")
        if (packed.dtype in _INTEGER) != (item.bits < 16):
            raise QuantizationFailed(
                f"{name} was planned with {item.bits} bits and is stored as {packed.dtype}"
            )
    _refuse_bad_scales(folder, tensors)
    return sum(tensor.size_bytes for tensor in tensors.values())


def _stored_weight(tensors: Mapping[str, Tensor], name: str, recipe: Recipe) -> Tensor | None:
    if isinstance(recipe, GptqModelRecipe):
        return tensors.get(f"{name}.qweight")
    if isinstance(recipe, BitsAndBytesRecipe):
        return tensors.get(f"{name}.weight")
    return tensors.get(f"{name}.weight_packed") or tensors.get(f"{name}.weight")


def _refuse_bad_scales(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    import torch
    from safetensors import safe_open

    wanted = {name for name in tensors if name.endswith(("_scale", ".scales", ".SCB", ".absmax"))}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            for name in wanted & set(stored.keys()):
                scales: Any = stored.get_tensor(name)
                if scales.dtype != torch.uint8 and not bool(torch.isfinite(scales).all()):
                    raise QuantizationFailed(
                        f"{name} holds values that are not finite",
                        fix="raise the recipe's dampening, or use more calibration samples",
                    )
