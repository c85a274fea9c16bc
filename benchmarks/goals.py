"""`python -m benchmarks goals`: every goal for the stack's own cost, each beside its figure."""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import gateway
from benchmarks.gateway import P99_TIMES_P50, Goal
from benchmarks.machine import machine
from serving.commands.options import add_settings_options
from serving.host.numbers import refuse_outside, whole_number

if TYPE_CHECKING:
    from benchmarks.ledger_databases import LedgerDatabase
    from benchmarks.stack_report import Rounds

HELP = "print every goal for the stack's own cost as met or missed; --quick: in a minute"
LABEL_TASKS = ("sentiment", "topic")
LABEL_CLIENTS = (1, 16, 64)
ADDED_LOCAL_MS, LEAST_OF_BARE = 5.0, 0.95
_CLIENTS = (1, 16)
_QUICK_SHARE = 0.15
STACK = "HAProxy, Ray Serve, gateway and local model"
PROCESS = "one gateway process, without HAProxy, Ray Serve and local model"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_settings_options(parser)
    parser.add_argument("--rounds", type=whole_number, default=5, help="of every measurement (5)")
    parser.add_argument(
        "--quick", action="store_true",
        help="2 rounds with few requests, of one gateway process; local tasks are left out",
    )  # fmt: skip
    parser.add_argument(
        "--postgres-url", metavar="URL",
        help="of an empty database (the pgserver package's own server, where that is installed)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON document")


def run(args: argparse.Namespace) -> int:
    """Measure and print the table. Exit status 0; goals are reported, not judged."""
    refuse_outside("--rounds", args.rounds, least=1, most=50)
    load = os.getloadavg()[0]
    parts = _quick(args) if args.quick else _whole(args)
    if parts is None:
        return 1
    found = document(parts, args, load)
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if args.json:
        print(json.dumps(found))
        return 0
    for line in lines(found):
        print(line)
    return 0


def document(
    parts: Mapping[str, Any], args: argparse.Namespace, load_before: float
) -> dict[str, Any]:
    """Return the report. parts: the gateway's reports by database, None where not measured, and
    `local`, the goals of local tasks.
    """
    rows = []
    for database in ("SQLite", "PostgreSQL"):
        part = parts[database]
        goals = _absent_gateway() if part is None else part["goals"]
        for one in goals:
            rows.append({**one, "ledger": database, **_bound(one, part)})
    rows += [{**one, "ledger": "SQLite", "reason": None} for one in parts["local"]]
    return {
        "machine": {**machine(), "load_before": round(load_before, 1)},
        "measured": PROCESS if args.quick else STACK,
        "rounds": args.rounds,
        "goals": rows,
        "met": sum(one["met"] is True for one in rows),
        "missed": sum(one["met"] is False for one in rows),
        "not_measured": sum(one["met"] is None for one in rows),
    }


def _bound(one: Mapping[str, Any], part: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return why a throughput is missed: what one core's worth of the gateway's process allows."""
    if part is None or one["met"] or one["at_most"]:
        return {"reason": None}
    row = next(
        row
        for row in part["rows"]
        if one["what"] == f"{row['target']}, at 16 clients" and row["clients"] == _CLIENTS[-1]
    )
    cpu_ms = row["gateway_cpu_ms"]
    return {
        "reason": f"{row['target']}, {part['ledger']}: a request takes {cpu_ms:.2f} ms of the "
        f"gateway process's time, so at most {1000 / cpu_ms:.0f}/s on one core"
    }


def _absent_gateway() -> list[dict[str, Any]]:
    found = []
    for name in gateway.ADDED_MS:
        found += [
            _absent(f"{name}, added to p50 at 1 client", gateway.ADDED_MS[name], "ms"),
            _absent(f"{name}, at 16 clients", gateway.PER_S[name], "requests/s", at_most=False),
        ]
        found += [
            _absent(f"{name}, p99 at {clients}", P99_TIMES_P50, "times p50") for clients in _CLIENTS
        ]
    return [*found, _absent("memory of a gateway replica", gateway.MEMORY_MB, "MB")]


def _absent(what: str, goal: float, unit: str, *, at_most: bool = True) -> dict[str, Any]:
    return {
        "what": what, "figure": None, "low": None, "high": None, "goal": goal, "unit": unit,
        "at_most": at_most, "met": None,
    }  # fmt: skip


def _whole(args: argparse.Namespace) -> dict[str, Any] | None:
    """Measure the stack on each database, and beside bare vLLM; None where a signal ended it."""
    found: dict[str, Any] = {}
    for name, part in _PARTS.items():
        if (measured := _in_a_process(part, args)) is None:
            return None
        found[name] = measured
    return found


def _in_a_process(part: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    """Return what part(args) returns in a process of its own.

    A process that has closed a stack cannot start another one: Ray and vLLM keep state.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(part, args).result()


def _on_sqlite(args: argparse.Namespace) -> dict[str, Any] | None:
    return gateway.measured(_with(args, clients=_CLIENTS, postgres=None))


def _on_postgresql(args: argparse.Namespace) -> dict[str, Any] | None:
    return gateway.measured(_with(args, clients=_CLIENTS, postgres=args.postgres_url or ""))


def _beside_bare_vllm(args: argparse.Namespace) -> list[dict[str, Any]] | None:
    from benchmarks import stack

    here = _with(args, tasks=LABEL_TASKS, clients=LABEL_CLIENTS)
    rounds = stack.measured(stack.measured_settings(here), here)
    if rounds is None:
        return None
    return [one.as_json() for each in rounds for one in local_goals(each)]


_PARTS = {"SQLite": _on_sqlite, "PostgreSQL": _on_postgresql, "local": _beside_bare_vllm}


def _with(args: argparse.Namespace, **changed: Any) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(args), **changed})


def local_goals(rounds: "Rounds") -> list[Goal]:
    """Return the goals of a local task at one number of clients. Figures: medians over rounds."""
    from benchmarks.load import percentile

    cell, found = rounds.cell, []
    if cell.clients == 1:
        added = tuple(
            1000 * (statistics.median(load.latencies_s) - statistics.median(bare))
            for load, bare in zip(rounds.stack, rounds.bare_s, strict=True)
        )
        what = f"local {cell.task}, over bare vLLM's p50 at 1 client"
        found.append(Goal(what, statistics.median(added), ADDED_LOCAL_MS, "ms", True, added))
    else:
        ratios = tuple(
            load.requests_per_s * sum(bare) / cell.requests
            for load, bare in zip(rounds.stack, rounds.bare_s, strict=True)
        )
        what = f"local {cell.task}, rate over bare vLLM's at {cell.clients} clients"
        found.append(Goal(what, statistics.median(ratios), LEAST_OF_BARE, "", False, ratios))
    tails = tuple(
        percentile(load.latencies_s, 0.99) / statistics.median(load.latencies_s)
        for load in rounds.stack
    )
    what = f"local {cell.task}, p99 at {cell.clients}"
    return [*found, Goal(what, statistics.median(tails), P99_TIMES_P50, "times p50", True, tails)]


def _absent_local() -> list[dict[str, Any]]:
    found = []
    for task in LABEL_TASKS:
        for clients in LABEL_CLIENTS:
            if clients == 1:
                what = f"local {task}, over bare vLLM's p50 at 1 client"
                found.append(_absent(what, ADDED_LOCAL_MS, "ms"))
            else:
                what = f"local {task}, rate over bare vLLM's at {clients} clients"
                found.append(_absent(what, LEAST_OF_BARE, "", at_most=False))
            found.append(_absent(f"local {task}, p99 at {clients}", P99_TIMES_P50, "times p50"))
    return found


def _quick(args: argparse.Namespace) -> dict[str, Any]:
    """Measure one gateway process on each database, with few requests."""
    from benchmarks.ledger_databases import open_databases
    from benchmarks.processes import instant_provider

    args.rounds = min(args.rounds, 2)
    found: dict[str, Any] = {"SQLite": None, "PostgreSQL": None, "local": _absent_local()}
    names = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
    with open_databases(args.postgres_url) as databases, instant_provider() as upstream:
        for database in databases:
            found[names[database.name]] = _one_process(database, upstream, args)
    return found


def _one_process(
    database: "LedgerDatabase", upstream: str, args: argparse.Namespace
) -> dict[str, Any]:
    from benchmarks.gateway_processes import gateway as gateway_process
    from benchmarks.gateway_processes import settings_of
    from serving.contracts.frontier_settings import ProviderSettings

    provider = ProviderSettings(
        api="openai", base_url=f"{upstream}/v1", keyless=True, max_concurrent=256
    )
    here = _with(args, clients=_CLIENTS)
    with tempfile.TemporaryDirectory(prefix="goals-") as name:
        settings = settings_of(Path(name), provider, cached=True, url=database.url)
        with gateway_process(settings) as server:
            targets = gateway.measure_targets(
                server.url, upstream, server.process, here, _QUICK_SHARE
            )
            memory_mb = server.process.memory_info().rss / 1e6
    return gateway.document_of(targets, here, memory_mb, database.url)


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the table, which docs/bench.md can take as it is."""
    about = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    yield f"{found['measured']}; {about}; {found['rounds']} rounds"
    yield ""
    yield "| goal | ledger | at most, at least | figure (95 % interval over rounds) | |"
    yield "| --- | --- | ---: | ---: | --- |"
    for one in found["goals"]:
        sign = "<=" if one["at_most"] else ">="
        yield (
            f"| {one['what']} | {one['ledger']} | {sign} {one['goal']:g} {one['unit']} "
            f"| {_figure(one)} | {verdict(one)} |"
        )
    reasons = [one["reason"] for one in found["goals"] if one["reason"]]
    if reasons:
        yield ""
        yield from (f"- {reason}" for reason in dict.fromkeys(reasons))
    yield ""
    yield (f"{found['met']} met, {found['missed']} missed, {found['not_measured']} not measured")


def _figure(one: Mapping[str, Any]) -> str:
    if one["figure"] is None:
        return ""
    digits = 0 if one["figure"] >= 100 else 2
    spread = "" if one["low"] is None else f" ({one['low']:.{digits}f} to {one['high']:.{digits}f})"
    return f"{one['figure']:.{digits}f}{spread} {one['unit']}".rstrip()


def verdict(one: Mapping[str, Any]) -> str:
    """Return `met` or `MISSED`, and whether the interval leaves it open."""
    if one["met"] is None:
        return "not measured"
    word = "met" if one["met"] else "MISSED"
    is_open = one["low"] is not None and one["low"] < one["goal"] < one["high"]
    return f"{word}, within the interval" if is_open else word
