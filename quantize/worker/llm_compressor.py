"""Recipes carried out by llm-compressor, layer by layer, on a processor or a GPU."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import is_module_quantized
from llmcompressor import oneshot
from llmcompressor.core import Event, State
from llmcompressor.modifiers import Modifier
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQMapping, AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from loguru import logger
from pydantic import PrivateAttr
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer

from quantize.calibration import batches
from quantize.job import Job, Layer, Outliers, Stage
from quantize.recipe import LlmCompressorRecipe
from quantize.worker.reporter import Reporter
from quantize.worker.sensitivity import outlier_layers
from serving.host.processor import multiplies_bfloat16

_AWQ_PAIRS = (
    ("input_layernorm", ("q_proj", "k_proj", "v_proj")),
    ("v_proj", ("o_proj",)),
    ("post_attention_layernorm", ("gate_proj", "up_proj")),
    ("up_proj", ("down_proj",)),
)
_BLOCK = re.compile(r"\blayers\.(\d+)\.")
_LOSS = re.compile(r"^error ([\d.]+(?:e[+-]?\d+)?)")
_LAYERS = re.compile(r"^Quantizing \d+ module\(s\): (.+)")


def run(job: Job, reporter: Reporter) -> dict[str, float]:
    """Quantize, save under job.out and return each layer's loss."""
    recipe = job.recipe
    assert isinstance(recipe, LlmCompressorRecipe)
    if job.device == "cpu":
        _without_pinned_memory()
    # On a GPU too the model stays in main memory: the pipeline brings one block at a time over.
    in_float32 = job.device == "cpu" and not multiplies_bfloat16()
    dtype = torch.float32 if in_float32 else "auto"
    model = AutoModelForCausalLM.from_pretrained(job.base, dtype=dtype, local_files_only=True)
    reporter.send(Stage(name="quantize"))
    kept = job.layers_16bit
    if recipe.keep_outliers is not None:
        outliers = _outliers(model, recipe, job)
        reporter.send(Outliers(layers=outliers))
        kept = (*kept, *outliers)
    losses = Losses()
    sink = logger.add(losses.read, level="INFO", format="{message}")
    try:
        oneshot(
            model=model,
            tokenizer=AutoTokenizer.from_pretrained(job.base, local_files_only=True),
            recipe=[*_modifiers(recipe, job, kept), _progress(model, losses, reporter)],
            **_data(job),
        )
    finally:
        logger.remove(sink)
    reporter.send(Stage(name="save"))
    if in_float32:
        _narrow_to_bfloat16(model)
    model.save_pretrained(job.out, save_compressed=True)
    # It repeats the recipe of provenance.json in the library's terms, and names the progress hook.
    (job.out / "recipe.yaml").unlink(missing_ok=True)
    return losses.by_layer


def _narrow_to_bfloat16(model: Any) -> None:
    """Store the unquantized layers in bfloat16, after a run that computed in float32.

    Quantized layers keep their float32 scales, from which their integers are computed exactly.
    """
    for module in model.modules():
        if not is_module_quantized(module):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.bfloat16)
    model.config.dtype = torch.bfloat16


def _outliers(model: Any, recipe: LlmCompressorRecipe, job: Job) -> dict[str, float]:
    assert recipe.keep_outliers is not None
    # Layers whose precision the job fixes are left out, also of the median.
    assigned = {*job.layers_16bit, *job.layers_8bit}
    return outlier_layers(
        model,
        [name for name in job.linear if name not in assigned],
        job.sequences,
        bits=recipe.weight_bits,
        group_size=job.group_size,
        symmetric=recipe.symmetric,
        multiple=recipe.keep_outliers,
    )


def _data(job: Job) -> dict[str, Any]:
    if not job.sequences:
        return {"pipeline": "datafree"}
    grouped = [
        {"input_ids": torch.tensor(batch), "attention_mask": torch.ones_like(torch.tensor(batch))}
        for batch in batches(job.sequences, job.batch_tokens)
    ]
    return {
        "dataset": DataLoader(grouped, batch_size=None, shuffle=False),
        "num_calibration_samples": len(grouped),
        # One epoch for all modifiers: smoothing, then rounding, block after block, so that the
        # model is walked through once and a block's rounding sees the smoothed block.
        "pipeline": "sequential",
    }


def _modifiers(recipe: LlmCompressorRecipe, job: Job, kept: Sequence[str]) -> list[Modifier]:
    modifiers: list[Modifier] = []
    match recipe.smoothing:
        case "smoothquant":
            modifiers.append(SmoothQuantModifier(smoothing_strength=recipe.smoothing_strength))
        case "awq":
            modifiers.append(AWQModifier(n_grid=recipe.awq_grid, mappings=awq_mappings(kept)))
        case "none":
            pass
    scheme: dict[str, Any] = {
        "config_groups": _groups(recipe, job),
        "ignore": ["lm_head", *kept],
    }
    if recipe.rounding == "nearest":
        modifiers.append(QuantizationModifier(**scheme))
    else:
        order = None if recipe.act_order == "none" else recipe.act_order
        modifiers.append(GPTQModifier(**scheme, dampening_frac=recipe.dampening, actorder=order))
    return modifiers


def awq_mappings(kept: Sequence[str]) -> list[AWQMapping]:
    """Return which layer's scale evens out which others', without those that are not rounded.

    The pairs are the Llama family's. By default AWQ also searches scales for layers that stay in
    16 bits, and then divides by the number of rounded layers, which is zero.
    """
    mappings = []
    for smooth, balanced in _AWQ_PAIRS:
        found = [_BLOCK.search(name) for name in kept if name.endswith(balanced)]
        blocks = [match.group(1) for match in found if match]
        others = rf"(?!(?:{'|'.join(blocks)})\.)" if blocks else ""
        prefix = rf"re:.*layers\.{others}\d+\..*"
        targets = [f"{prefix}{name}$" for name in balanced]
        mappings.append(AWQMapping(f"{prefix}{smooth}$", targets))
    return mappings


def _groups(recipe: LlmCompressorRecipe, job: Job) -> dict[str, QuantizationScheme]:
    eight = _scheme(_names(job.layers_8bit), 8, None, symmetric=True, recipe=recipe, dynamic=True)
    rest = _scheme(
        ["Linear"],
        recipe.weight_bits,
        job.group_size,
        symmetric=recipe.symmetric,
        recipe=recipe,
        dynamic=recipe.activations != "16-bit",
    )
    # The first match counts.
    return {"group_0": eight, "group_1": rest} if job.layers_8bit else {"group_0": rest}


def _scheme(
    targets: list[str],
    bits: int,
    group_size: int | None,
    *,
    symmetric: bool,
    recipe: LlmCompressorRecipe,
    dynamic: bool,
) -> QuantizationScheme:
    weights = QuantizationArgs(
        num_bits=bits,
        type=recipe.weight_type,
        symmetric=symmetric,
        strategy="channel" if group_size is None else "group",
        group_size=group_size,
        observer="memoryless_mse" if recipe.scale_search == "mse" else "memoryless_minmax",
    )
    activations = None
    if dynamic:
        activations = QuantizationArgs(
            num_bits=8, type=recipe.weight_type, symmetric=True, strategy="token", dynamic=True
        )
    return QuantizationScheme(targets=targets, weights=weights, input_activations=activations)


def _names(layers: tuple[str, ...]) -> list[str]:
    return [f"re:^{re.escape(name)}$" for name in layers]


def _progress(model: Any, losses: "Losses", reporter: Reporter) -> "Progress":
    progress = Progress()
    progress.begin(model.config.num_hidden_layers, losses, reporter)
    return progress


class Losses:
    """The rounding error of each layer, read from the library's log."""

    def __init__(self) -> None:
        self.by_layer: dict[str, float] = {}
        self._names: list[str] = []

    def read(self, message: Any) -> None:
        """Take one log message; the library logs a batch's names, then an error for each."""
        text = str(message)
        if named := _LAYERS.match(text):
            self._names = re.findall(r"'([^']+)'", named.group(1))
        elif (found := _LOSS.match(text)) and self._names:
            self.by_layer[self._names.pop()] = float(found.group(1))

    def total(self) -> float | None:
        """Return the sum over all layers so far; None if the library logged no loss."""
        return sum(self.by_layer.values()) if self.by_layer else None


class Progress(Modifier):  # type: ignore[misc]
    """Reports every finished decoder block; changes nothing in the model."""

    _total: int = PrivateAttr(default=0)
    _done: int = PrivateAttr(default=0)
    _before: float = PrivateAttr(default=0.0)
    _losses: Losses | None = PrivateAttr(default=None)
    _reporter: Reporter | None = PrivateAttr(default=None)

    def begin(self, total: int, losses: Losses, reporter: Reporter) -> None:
        """Set the number of blocks and the receiver of the reports."""
        self._total, self._losses, self._reporter = total, losses, reporter

    def on_initialize(self, state: State, **kwargs: Any) -> bool:
        """Return that there is nothing to prepare."""
        return True

    def on_sequential_epoch_end(
        self, state: State, event: Event, modules: list[torch.nn.Module], **kwargs: Any
    ) -> None:
        """Report the block. A call for the modules before the blocks is ignored."""
        assert self._reporter is not None
        assert self._losses is not None
        if not any(is_module_quantized(module) for module in modules):
            return
        self._done += 1
        total = self._losses.total()
        loss = None if total is None else total - self._before
        self._before = total or 0.0
        self._reporter.send(
            Layer(
                index=self._done,
                total=self._total,
                loss=loss,
                memory_bytes=self._reporter.memory_bytes(),
            )
        )


def _without_pinned_memory() -> None:
    # llm-compressor 0.14 pins AWQ's cached activations also where there is no accelerator to copy
    # them to, and torch raises "Cannot access accelerator device when none is available".
    IntermediatesCache.pin_memory = lambda self, batch_index, input_names=None: None
