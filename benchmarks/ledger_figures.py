"""Computes and formats the latency that a ledger adds and its rows per second."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.load import LoadResult, percentile

WITHOUT = "no ledger"
GOAL_ADDED_P50_MS = 1.0
GOAL_ROWS_PER_S = 1000.0


@dataclass(frozen=True, slots=True)
class Round:
    """One round of load on one gateway. rows: committed by its end; 0 without a ledger."""

    load: LoadResult
    rows: int = 0


@dataclass(frozen=True, slots=True)
class Cell:
    """One measured combination. ledger: its database, or WITHOUT. path: frontier or local."""

    path: str
    clients: int
    ledger: str


@dataclass(frozen=True, slots=True)
class Row:
    """One cell's figures; latency in ms.

    added: of p50 and p95 over the gateway without a ledger, in the middle one of the rounds.
    """

    path: str
    clients: int
    ledger: str
    requests: int
    p50_ms: float
    p95_ms: float
    added_p50_ms: float
    added_p95_ms: float
    requests_per_s: float
    rows_per_s: float


@dataclass(slots=True)
class Measured:
    """Every counted round by cell; within a cell in order."""

    rounds: dict[Cell, list[Round]] = field(default_factory=dict)

    def add(self, cell: Cell, found: Round) -> None:
        """Count a round."""
        self.rounds.setdefault(cell, []).append(found)


def rows_of(measured: Measured) -> list[Row]:
    """Return the figures of every cell, compared with the same rounds without a ledger."""
    return [
        _row(cell, found, measured.rounds[Cell(cell.path, cell.clients, WITHOUT)])
        for cell, found in measured.rounds.items()
    ]


def _row(cell: Cell, found: Sequence[Round], without: Sequence[Round]) -> Row:
    latencies = [s for item in found for s in item.load.latencies_s]
    return Row(
        path=cell.path,
        clients=cell.clients,
        ledger=cell.ledger,
        requests=len(latencies),
        p50_ms=percentile(latencies, 0.5) * 1000,
        p95_ms=percentile(latencies, 0.95) * 1000,
        added_p50_ms=_added_ms(found, without, 0.5),
        added_p95_ms=_added_ms(found, without, 0.95),
        requests_per_s=statistics.median(item.load.requests_per_s for item in found),
        rows_per_s=statistics.median(item.rows / item.load.elapsed_s for item in found),
    )


def _added_ms(found: Sequence[Round], without: Sequence[Round], share: float) -> float:
    # Within a round: between rounds the machine may have grown slower.
    return 1000 * statistics.median(
        percentile(ours.load.latencies_s, share) - percentile(bare.load.latencies_s, share)
        for ours, bare in zip(found, without, strict=True)
    )


def as_json(
    measured: Measured, capacity: Mapping[str, Mapping[Any, float]], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the whole report as one document. capacity: rows a second by database and path."""
    return {
        **about,
        "goals": {"added_p50_ms": GOAL_ADDED_P50_MS, "rows_per_s": GOAL_ROWS_PER_S},
        "rows": [asdict(row) for row in rows_of(measured)],
        "capacity_rows_per_s": {name: dict(paths) for name, paths in capacity.items()},
    }


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Return the report for people."""
    for name in ("machine", "versions", "workload"):
        about = document[name].items()
        yield f"{name}: " + ", ".join(f"{key} {value}" for key, value in about)
    for row in document["rows"]:
        yield (
            f"{row['path']:<8} {row['clients']:>3} clients  {row['ledger']:<10}  "
            f"p50 {row['p50_ms']:>7.2f} ms ({row['added_p50_ms']:>+6.2f})  "
            f"p95 {row['p95_ms']:>7.2f} ms ({row['added_p95_ms']:>+6.2f})  "
            f"{row['requests_per_s']:>6.0f} requests/s  {row['rows_per_s']:>6.0f} rows/s"
        )
    for name, paths in document["capacity_rows_per_s"].items():
        rates = ", ".join(f"{path} {rate:.0f}" for path, rate in paths.items())
        yield f"writer alone, {name}: {rates} rows/s"
    yield (
        f"goals: at most {GOAL_ADDED_P50_MS:g} ms added to p50 with one client, at least "
        f"{GOAL_ROWS_PER_S:g} rows/s"
    )
