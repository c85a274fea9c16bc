"""Recipes carried out by GPTQModel, the maintained successor of AutoGPTQ, in AutoGPTQ's format."""

import os
from typing import Any

from quantize.job import Job, Layer, Stage
from quantize.recipe import GptqModelRecipe
from quantize.worker.reporter import Reporter


def run(job: Job, reporter: Reporter) -> dict[str, float]:
    """Quantize, save under job.out and return each layer's loss."""
    recipe = job.recipe
    assert isinstance(recipe, GptqModelRecipe)
    # Read at import. The default is a worker for every core of the machine, each with threads.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", str(job.threads))
    from gptqmodel import GPTQModel, QuantizeConfig

    config = QuantizeConfig(
        bits=recipe.weight_bits,
        group_size=job.group_size,
        sym=recipe.symmetric,
        desc_act=recipe.act_order == "full",
        act_group_aware=recipe.act_order == "group",
        damp_percent=recipe.dampening,
        mse=recipe.scale_search_norm,
        device=job.device,
        offload_to_disk=False,
    )
    model = GPTQModel.load(str(job.base), config)
    reporter.send(Stage(name="quantize"))
    calibration = [
        {"input_ids": list(ids), "attention_mask": [1] * len(ids)} for ids in job.sequences
    ]
    model.layer_callback = _Watch(model.model.config.num_hidden_layers, reporter)
    log = model.quantize(calibration, batch_size=1, calibration_sort=None)
    reporter.send(Stage(name="save"))
    model.save(str(job.out))
    return _losses(log)


class _Watch:
    """Reports finished decoder blocks; the library calls `layer_complete`, maybe more than once."""

    def __init__(self, total: int, reporter: Reporter) -> None:
        self._total = total
        self._reporter = reporter
        self._seen: set[int] = set()

    def layer_complete(self, *, layer_idx: int, submodule_finalized: bool) -> None:
        """Report a block that has not been reported."""
        if layer_idx in self._seen:
            return
        self._seen.add(layer_idx)
        self._reporter.send(
            Layer(
                index=len(self._seen),
                total=self._total,
                memory_bytes=self._reporter.memory_bytes(),
            )
        )


def _losses(log: Any) -> dict[str, float]:
    found: dict[str, float] = {}
    for rows in log.values():
        for row in rows:
            try:
                found[f"model.layers.{row['layer']}.{row['module']}"] = float(row["loss"])
            except (KeyError, TypeError, ValueError):
                continue
    return found
