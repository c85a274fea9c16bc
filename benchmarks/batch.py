"""`python -m benchmarks batch`: what a batch costs interactive requests, its speed, and memory."""

import argparse
import asyncio
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.machine import machine
from benchmarks.processes import instant_provider
from serving.host.terminal import terminal_progress

if TYPE_CHECKING:
    from benchmarks.batch_load import Arm, Interactive

HELP = "measure interactive requests beside a batch, lines a second, and memory"
P99_TIMES = 1.2
"""Goal: most that p99 of interactive requests may grow while a batch runs."""

ADDED_MIB = 100.0
"""Goal: most memory that a file of 50,000 lines and 200 MB may add."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--rounds", type=int, default=5, help="windows of each kind (5)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of one window (6)")
    parser.add_argument(
        "--rates", nargs="+", type=float, default=[20.0, 0.7],
        help="interactive requests a second (20 0.7)",
    )  # fmt: skip
    parser.add_argument(
        "--provider-ms", type=float, default=50.0, help="what the provider takes for an answer (50)"
    )
    parser.add_argument("--lines", type=int, default=50_000, help="of the file for memory (50000)")
    parser.add_argument("--line-bytes", type=int, default=4000, help="of one of its lines (4000)")
    parser.add_argument("--only", choices=("latency", "memory"), help="measure only this")


def run(args: argparse.Namespace) -> int:
    """Measure and report. Exit status 0; goals are reported, not judged."""
    with terminal_progress() as progress:
        total = progress.add_task("measuring", total=2)
        document: dict[str, Any] = {"machine": machine(), "provider_ms": args.provider_ms}
        if args.only != "memory":
            document |= _latency(args)
        progress.advance(total)
        if args.only != "latency":
            document["memory"] = _memory(args)
        progress.advance(total)
    if args.json:
        print(json.dumps(document))
    else:
        print("\n".join(lines(document)))
    return 0


def _latency(args: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.batch_load import time_interactive, time_lines
    from benchmarks.gateway_processes import gateway

    with (
        tempfile.TemporaryDirectory(prefix="narrowgate-") as folder,
        instant_provider(args.provider_ms) as upstream,
        gateway(_settings(Path(folder), upstream)) as process,
    ):
        found = [
            asyncio.run(time_interactive(process.url, rate, args.rounds, args.seconds))
            for rate in args.rates
        ]
        speed = asyncio.run(time_lines(process.url))
    rows = [row for one in found for row in rows_of(one)]
    return {"interactive": rows, "lines_per_s_alone": speed}


def _memory(args: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.batch_load import chat_lines, time_memory
    from benchmarks.gateway_processes import gateway

    # Answers come at once: lines run as fast as the gateway can.
    with (
        tempfile.TemporaryDirectory(prefix="narrowgate-") as folder,
        instant_provider() as upstream,
        gateway(_settings(Path(folder), upstream)) as process,
    ):
        path = Path(folder) / "lines.jsonl"
        with path.open("wb") as file:
            for line in chat_lines(args.lines, args.line_bytes):
                file.write(line)
        found = asyncio.run(time_memory(process, args.lines, path))
        return {"lines": args.lines, "file_mb": path.stat().st_size / 1e6, **found}


def _settings(state: Path, upstream: str) -> Any:
    from benchmarks.gateway_processes import settings_of
    from serving.contracts.frontier_settings import ProviderSettings

    provider = ProviderSettings(
        api="openai", base_url=f"{upstream}/v1", keyless=True, max_concurrent=256
    )
    return settings_of(state, provider, cached=False)


def rows_of(found: "Interactive") -> list[dict[str, Any]]:
    """Return a row for each arm: percentiles, and how often the latency of `alone` they are.

    low, high: 95 % interval of the ratio, by resampling rounds.
    """
    from benchmarks.load import percentile

    alone = found.windows["alone"]
    rows = []
    for arm, windows in found.windows.items():
        every = [one for window in windows for one in window]
        row: dict[str, Any] = {
            "rate": found.rate, "arm": arm, "requests": len(every),
            "p50_ms": percentile(every, 0.5) * 1000, "p99_ms": percentile(every, 0.99) * 1000,
            "most_ms": max(every) * 1000, "lines_per_s": found.lines_per_s.get(arm),
        }  # fmt: skip
        for share, name in ((0.5, "p50"), (0.99, "p99")):
            row[f"{name}_times"], row[f"{name}_low"], row[f"{name}_high"] = ratio(
                windows, alone, share
            )
        rows.append(row)
    return rows


def ratio(
    some: Sequence[Sequence[float]], alone: Sequence[Sequence[float]], share: float
) -> tuple[float, float, float]:
    """Return the ratio of two arms' percentiles and its 95 % interval, by resampling rounds.

    Window n of both arms was measured in round n.
    """
    import numpy as np

    from benchmarks.load import percentile

    def of(windows: Sequence[Sequence[float]], chosen: Sequence[int]) -> float:
        return percentile([one for n in chosen for one in windows[n]], share)

    rng = np.random.default_rng(1)
    rounds = len(some)
    draws = [rng.integers(0, rounds, rounds).tolist() for _ in range(1000)]
    ratios = [of(some, chosen) / of(alone, chosen) for chosen in draws]
    whole = range(rounds)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return of(some, whole) / of(alone, whole), float(low), float(high)


_NAMES: Mapping["Arm", str] = {
    "alone": "no batch", "lines": "lines run", "checking": "a file is checked",
}  # fmt: skip


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the report for people."""
    about = document["machine"]
    yield (
        f"{about['cpu']}, {about['cores']} cores, {about['memory_gib']} GiB; load, gateway and "
        f"provider on the same cores; the provider takes {document['provider_ms']:g} ms"
    )
    for row in document.get("interactive", ()):
        speed = "" if row["lines_per_s"] is None else f"  {row['lines_per_s']:6.1f} lines/s"
        met = "" if row["arm"] == "alone" else f"  {_met(row['p99_times'] <= P99_TIMES)}"
        yield (
            f"{row['rate']:>5g}/s  {_NAMES[row['arm']]:<17} {row['requests']:>5} requests  "
            f"p50 {row['p50_ms']:6.1f} ms ({row['p50_times']:.2f}x, {row['p50_low']:.2f} to "
            f"{row['p50_high']:.2f})  p99 {row['p99_ms']:6.1f} ms ({row['p99_times']:.2f}x, "
            f"{row['p99_low']:.2f} to {row['p99_high']:.2f}){met}  most {row['most_ms']:6.1f} ms"
            f"{speed}"
        )
    if "lines_per_s_alone" in document:
        yield f"lines without interactive requests: {document['lines_per_s_alone']:.0f}/s"
    memory = document.get("memory")
    if memory is None:
        return
    before_mib = memory["before_mib"]
    yield f"{memory['lines']} lines, {memory['file_mb']:.0f} MB: {before_mib:.0f} MiB before"
    for phase in memory["phases"]:
        yield (
            f"  {phase['name']:<10} {phase['seconds']:6.1f} s  most {phase['most_mib']:.0f} MiB "
            f"(+{phase['most_mib'] - before_mib:.0f})"
        )
    added = max(phase["most_mib"] for phase in memory["phases"]) - before_mib
    yield f"  added in all: {added:.0f} MiB, goal {ADDED_MIB:g}  {_met(added <= ADDED_MIB)}"


def _met(is_met: bool) -> str:
    return "met" if is_met else "MISSED"
