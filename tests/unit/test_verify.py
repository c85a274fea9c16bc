"""The written files are read back: planned precision, every layer, finite scales."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from quantize.layout import layout_of
from quantize.plan import Plan, Workload, make_plan, with_layers_in_16bit
from quantize.recipe import parse_recipe
from quantize.verify import verify_checkpoint
from serving.contracts.errors import QuantizationFailed

from .checkpoints import config, tensors

RECIPE = parse_recipe(
    """
name: mine
description: eight bits
library: llm-compressor
weight_bits: 8
activations: 8-bit dynamic per token
""",
    "mine.yaml",
)
KEPT = "model.layers.1.mlp.down_proj"


def plan() -> Plan:
    made = make_plan(
        RECIPE, layout_of(config(), tensors(), "tiny"), Workload(8, 800, 200), cores=2, gpu=False
    )
    return with_layers_in_16bit(made, [KEPT])


def stored() -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in tensors().items():
        layer = name.removesuffix(".weight")
        if layer.endswith("_proj") and layer != KEPT:
            found[name] = torch.zeros(tensor.shape, dtype=torch.int8)
            found[f"{name}_scale"] = torch.ones(tensor.shape[0], 1, dtype=torch.bfloat16)
        else:
            found[name] = torch.zeros(tensor.shape, dtype=torch.bfloat16)
    return found


def write(folder: Path, content: dict[str, torch.Tensor], *, quantized: bool = True) -> Path:
    description = {**config(), **({"quantization_config": {}} if quantized else {})}
    (folder / "config.json").write_text(json.dumps(description), encoding="utf-8")
    save_file(content, folder / "model.safetensors")
    return folder


def test_a_checkpoint_as_planned_passes_with_the_planned_size(tmp_path: Path) -> None:
    size = verify_checkpoint(write(tmp_path, stored()), RECIPE, plan())
    assert size == plan().size_after


def test_tensors_that_differ_from_the_plan_are_refused(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    still_wide = {**stored(), name: torch.zeros(192, 64, dtype=torch.bfloat16)}
    missing = {key: value for key, value in stored().items() if key != name}
    narrowed = {**stored(), f"{KEPT}.weight": torch.zeros(64, 192, dtype=torch.int8)}
    endless = {**stored(), f"{name}_scale": torch.full((192, 1), float("inf"))}
    for content, complaint in [
        (still_wide, "planned with 8 bits and is stored as BF16"),
        (missing, "no weights for model.layers.0.mlp.up_proj"),
        (narrowed, "planned with 16 bits and is stored as I8"),
        (endless, "not finite"),
    ]:
        with pytest.raises(QuantizationFailed, match=complaint):
            verify_checkpoint(write(tmp_path, content), RECIPE, plan())


def test_a_config_that_hides_the_quantization_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(QuantizationFailed, match="no quantization_config"):
        verify_checkpoint(write(tmp_path, stored(), quantized=False), RECIPE, plan())
