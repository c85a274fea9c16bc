"""Formats a plan as a table and as a JSON document."""

from collections import Counter
from dataclasses import asdict
from typing import Any

from quantize.plan import Plan
from quantize.run import Prepared

_MIB = 2**20


def as_document(prepared: Prepared) -> dict[str, Any]:
    """Return the plan with every layer. Sizes in bytes, times in seconds."""
    plan = prepared.plan
    return {
        "model": prepared.request.source.id,
        "recipe": prepared.request.recipe.name,
        "target": prepared.target.name,
        "device": "cuda" if prepared.gpu else "cpu",
        "group_size": plan.group_size,
        "layers": [
            {
                "name": item.layer.name,
                "shape": [item.layer.out_features, item.layer.in_features],
                "bits": item.bits,
                "group_size": item.group_size,
                "bytes": item.size_bytes,
            }
            for item in plan.layers
        ],
        "size_before_bytes": plan.size_before,
        "size_after_bytes": plan.size_after,
        "peak_memory_bytes": plan.peak_memory,
        "peak_accelerator_bytes": plan.peak_accelerator_memory,
        "seconds": round(plan.seconds),
        "rate": asdict(plan.rate),
        "calibration_samples": plan.samples,
        "calibration_tokens": plan.tokens,
    }


def print_plan(prepared: Prepared) -> None:
    """Print the plan on standard output, layers of one kind in one line."""
    from rich.console import Console
    from rich.table import Table

    plan = prepared.plan
    console = Console(soft_wrap=True)
    table = Table(title=f"{prepared.request.source.id}, {prepared.request.recipe.name}")
    for name in ("layers", "number", "out x in", "bits", "group", "MiB before", "MiB after"):
        table.add_column(name, justify="left" if name == "layers" else "right")
    for (kind, shape, bits, group), (number, before, after) in _kinds(plan).items():
        table.add_row(
            kind, str(number), f"{shape[0]} x {shape[1]}", str(bits), str(group or "channel"),
            f"{before / _MIB:.1f}", f"{after / _MIB:.1f}",
        )  # fmt: skip
    other = plan.size_after - sum(item.size_bytes for item in plan.layers)
    table.add_row(
        "embeddings, norms, head", "", "", "16", "", f"{other / _MIB:.1f}", f"{other / _MIB:.1f}"
    )
    console.print(table)
    minutes, seconds = divmod(round(plan.seconds), 60)
    console.print(
        f"weights      {plan.size_before / _MIB:.1f} MiB -> {plan.size_after / _MIB:.1f} MiB\n"
        f"calibration  {plan.samples} sequences, {plan.tokens} tokens\n"
        f"memory       {plan.peak_memory / 2**30:.1f} GiB"
        + (f", on the GPU {plan.peak_accelerator_memory / 2**30:.1f} GiB" if prepared.gpu else "")
        + f"\ntime         about {minutes} min {seconds:02d} s (rate: {plan.rate.measured})\n"
        f"served on    {prepared.target.name}"
    )


def _kinds(
    plan: Plan,
) -> dict[tuple[str, tuple[int, int], int, int | None], tuple[int, int, int]]:
    numbers: Counter[Any] = Counter()
    before: Counter[Any] = Counter()
    after: Counter[Any] = Counter()
    for item in plan.layers:
        kind = item.layer.name.rpartition(".")[2]
        shape = (item.layer.out_features, item.layer.in_features)
        key = (kind, shape, item.bits, item.group_size)
        numbers[key] += 1
        before[key] += 2 * item.layer.weights
        after[key] += item.size_bytes
    return {key: (numbers[key], before[key], after[key]) for key in numbers}
