"""Recipes carried out by bitsandbytes through transformers, without calibration."""

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from quantize.job import Job, Stage
from quantize.recipe import BitsAndBytesRecipe
from quantize.worker.reporter import Reporter


def run(job: Job, reporter: Reporter) -> dict[str, float]:
    """Quantize while loading and save under job.out; there are no losses to report."""
    recipe = job.recipe
    assert isinstance(recipe, BitsAndBytesRecipe)
    skipped = ["lm_head", *job.layers_16bit]
    if recipe.format == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_use_double_quant=recipe.double_quantization,
            llm_int8_skip_modules=skipped,
        )
    reporter.send(Stage(name="quantize"))
    model = AutoModelForCausalLM.from_pretrained(
        job.base,
        quantization_config=config,
        dtype="auto",
        device_map={"": job.device},
        local_files_only=True,
    )
    reporter.send(Stage(name="save"))
    # Before any forward pass: on a processor the first one repacks NF4 weights in place, and what
    # is saved then loads without an error and computes nonsense.
    model.save_pretrained(job.out)
    return {}
