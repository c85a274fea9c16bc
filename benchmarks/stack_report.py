"""Cells, figures and text of the stack benchmark."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.load import LoadResult, percentile

TASKS = ("sentiment", "topic", "ner", "translation")
SCORED_TASKS = ("sentiment", "topic")
CLIENTS = (1, 16, 64)

# Requests in a round, by number of clients.
_SCORED = {1: 40, 16: 128, 64: 256}
_GENERATED = {1: 6, 16: 32, 64: 128}


@dataclass(frozen=True, slots=True)
class Cell:
    """One task at one number of clients. requests: in one round."""

    task: str
    clients: int
    requests: int


def cells(tasks: Sequence[str], clients: Sequence[int], *, quick: bool) -> list[Cell]:
    """Return the cells of a run; `quick` halves the requests."""
    share = 2 if quick else 1
    return [
        Cell(task, count, (_SCORED if task in SCORED_TASKS else _GENERATED)[count] // share)
        for task in tasks
        for count in clients
    ]


@dataclass(slots=True)
class Rounds:
    """The measurements of one cell, one item per round.

    bare_s: seconds bare vLLM took for the round's requests (at one client: one value a request).
    constrained_s: seconds for generating the labels under a grammar; scored tasks only.
    """

    cell: Cell
    stack: list[LoadResult] = field(default_factory=list)
    empty: list[LoadResult] = field(default_factory=list)
    bare_s: list[list[float]] = field(default_factory=list)
    constrained_s: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Row:
    """One cell's figures; throughput in requests/s, latency in ms, ratios of medians."""

    task: str
    clients: int
    requests: int
    stack_rps: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    bare_rps: float
    stack_over_bare: float
    empty_p50_ms: float
    added_ms: float | None
    scoring_over_constrained: float | None


def row(rounds: Rounds) -> Row:
    """Return the figures of a cell.

    stack_over_bare is the median over rounds of the ratio within a round.
    added_ms, at one client only: p50 of the stack less p50 of bare vLLM less p50 of the handler.
    """
    cell = rounds.cell
    latencies = [latency for result in rounds.stack for latency in result.latencies_s]
    bare_rps = [cell.requests / sum(seconds) for seconds in rounds.bare_s]
    ratios = [
        result.requests_per_s / bare for result, bare in zip(rounds.stack, bare_rps, strict=True)
    ]
    empty_p50_s = statistics.median([s for result in rounds.empty for s in result.latencies_s])
    p50_s = statistics.median(latencies)
    added_ms = None
    if cell.clients == 1:
        bare_p50_s = statistics.median([s for seconds in rounds.bare_s for s in seconds])
        added_ms = (p50_s - bare_p50_s - empty_p50_s) * 1000
    constrained = None
    if rounds.constrained_s:
        constrained = statistics.median(
            sum(slow) / sum(fast)
            for slow, fast in zip(rounds.constrained_s, rounds.bare_s, strict=True)
        )
    return Row(
        task=cell.task,
        clients=cell.clients,
        requests=len(latencies),
        stack_rps=statistics.median(result.requests_per_s for result in rounds.stack),
        p50_ms=p50_s * 1000,
        p95_ms=percentile(latencies, 0.95) * 1000,
        p99_ms=percentile(latencies, 0.99) * 1000,
        bare_rps=statistics.median(bare_rps),
        stack_over_bare=statistics.median(ratios),
        empty_p50_ms=empty_p50_s * 1000,
        added_ms=added_ms,
        scoring_over_constrained=constrained,
    )


def as_json(
    rows: Sequence[Row], machine: dict[str, Any], workload: dict[str, Any]
) -> dict[str, Any]:
    """Return the whole report as one document."""
    return {"machine": machine, "workload": workload, "rows": [asdict(item) for item in rows]}


def print_table(rows: Sequence[Row], machine: dict[str, Any], workload: dict[str, Any]) -> None:
    """Print the report for people."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="stack beside bare vLLM and an empty handler, interleaved")
    for name in ("task", "clients", "n", "req/s", "p50 ms", "p95 ms", "p99 ms", "bare req/s",
                 "stack/bare", "empty p50 ms", "added ms", "scoring/constrained"):  # fmt: skip
        table.add_column(name, justify="left" if name == "task" else "right")
    for item in rows:
        table.add_row(
            item.task,
            str(item.clients),
            str(item.requests),
            f"{item.stack_rps:.1f}",
            f"{item.p50_ms:.1f}",
            f"{item.p95_ms:.1f}",
            f"{item.p99_ms:.1f}",
            f"{item.bare_rps:.1f}",
            f"{item.stack_over_bare:.2f}",
            f"{item.empty_p50_ms:.1f}",
            "" if item.added_ms is None else f"{item.added_ms:.1f}",
            "" if item.scoring_over_constrained is None else f"{item.scoring_over_constrained:.2f}",
        )
    console = Console(width=150)
    console.print(table)
    console.print("machine:", ", ".join(f"{key} {value}" for key, value in machine.items()))
    console.print("workload:", ", ".join(f"{key} {value}" for key, value in workload.items()))
