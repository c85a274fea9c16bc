"""Formats a comparison as a table and as a JSON document."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from quantize.compare.measure import (
    DECODE_CONCURRENCY,
    DECODE_TOKENS,
    PROMPT_TOKENS,
    PROMPTS,
    Materials,
    Measured,
)


def as_document(measured: Sequence[Measured], materials: Materials) -> dict[str, Any]:
    """Return all measurements as JSON values, the baseline first."""
    return {
        "machine": {
            "cpu": materials.machine.cpu,
            "cores": materials.machine.cores,
            "gpu": materials.machine.gpu.name if materials.machine.gpu else None,
        },
        "workload": {
            "passages": materials.passages.source,
            "passage_tokens": materials.passages.tokens,
            "inputs": materials.inputs.source if materials.inputs else None,
            "prompts": PROMPTS,
            "prompt_tokens": PROMPT_TOKENS,
            "decode_tokens": DECODE_TOKENS,
            "decode_concurrency": DECODE_CONCURRENCY,
            "rounds": materials.rounds,
        },
        "models": [_row(item, measured[0], materials) for item in measured],
    }


def _row(item: Measured, baseline: Measured, materials: Materials) -> dict[str, Any]:
    return {
        "name": item.name,
        "size_bytes": item.size_bytes,
        "load_s": round(item.load_s, 2),
        "kernels": item.kernels,
        **asdict(item.divergence),
        "prompts_per_s": _median(item, "prompts_per_s"),
        "prompts_per_s_ratio": _ratio(item, baseline, "prompts_per_s"),
        "decoded_tokens_per_s": _median(item, "decoded_tokens_per_s"),
        "decoded_tokens_per_s_ratio": _ratio(item, baseline, "decoded_tokens_per_s"),
        "labels_kept": labels_kept(item.labels, baseline.labels),
        "accuracy": _accuracy(item, materials),
    }


def labels_kept(labels: Sequence[str], baseline: Sequence[str]) -> float | None:
    """Return the share of inputs that still get the baseline's label; None without inputs."""
    if not baseline:
        return None
    return sum(a == b for a, b in zip(labels, baseline, strict=True)) / len(baseline)


def _accuracy(item: Measured, materials: Materials) -> float | None:
    answers = materials.inputs.answers if materials.inputs else ()
    known = [(mine, right) for mine, right in zip(item.labels, answers, strict=True) if right]
    return sum(mine == right for mine, right in known) / len(known) if known else None


def _median(item: Measured, figure: str) -> float | None:
    values = [getattr(speed, figure) for speed in item.rounds]
    return statistics.median(values) if values else None


def _ratio(item: Measured, baseline: Measured, figure: str) -> float | None:
    """Return the median over rounds of the ratio within a round."""
    pairs = zip(item.rounds, baseline.rounds, strict=True)
    values = [getattr(mine, figure) / getattr(theirs, figure) for mine, theirs in pairs]
    return statistics.median(values) if values else None


def print_table(measured: Sequence[Measured], materials: Materials) -> None:
    """Print one line a model on standard output."""
    from rich.console import Console
    from rich.table import Table

    document = as_document(measured, materials)
    rows, workload = document["models"], document["workload"]
    table = Table(title="beside the 16-bit baseline")
    columns: list[tuple[str, str, str]] = [
        ("MiB", "size_bytes", "mib"),
        ("load s", "load_s", ".1f"),
        ("prompts/s", "prompts_per_s", ".1f"),
        ("x", "prompts_per_s_ratio", ".2f"),
        ("decode tok/s", "decoded_tokens_per_s", ".0f"),
        ("x", "decoded_tokens_per_s_ratio", ".2f"),
        ("perplexity", "perplexity", ".2f"),
        ("KL mean", "kl_mean", ".4f"),
        ("KL p99", "kl_p99", ".3f"),
        ("top-1", "agreement", ".3f"),
    ]
    if materials.inputs is not None:
        columns += [("labels kept", "labels_kept", ".3f"), ("accuracy", "accuracy", ".3f")]
    table.add_column("model", overflow="fold")
    for title, _, _ in columns:
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(row["name"], *(_cell(row[key], style) for _, key, style in columns))
    console = Console(width=None if Console().is_terminal else 160)
    console.print(table)
    for row in rows:
        console.print(
            f"{row['name']}: " + ", ".join(f"{k} x {n}" for k, n in row["kernels"].items())
        )
    console.print(
        f"passages: {workload['passages']}, {workload['passage_tokens']} tokens; KL in nats\n"
        f"speed: {materials.rounds} interleaved rounds of {PROMPTS} prompts of {PROMPT_TOKENS} "
        f"tokens, then {DECODE_CONCURRENCY} x {DECODE_TOKENS} tokens decoded; on "
        f"{materials.machine.gpu.name if materials.machine.gpu else materials.machine.cpu}, "
        f"{materials.machine.cores} cores"
    )


def _cell(value: float | None, style: str) -> str:
    if value is None:
        return "-"
    return f"{value / 2**20:.1f}" if style == "mib" else format(value, style)
