"""`python -m benchmarks gateway`: what the gateway adds to a frontier call, and its goals."""

import argparse
import asyncio
import json
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.check import Ratios
from benchmarks.processes import instant_provider, reports_only
from benchmarks.texts import INSTRUCTION, NEW_INSTRUCTION, instructed, texts
from serving.commands.options import add_settings_options, settings_from
from serving.host.terminal import terminal_progress

if TYPE_CHECKING:
    import psutil

    from benchmarks.load import LoadResult
    from serving.contracts.settings import Settings

HELP = "measure what the gateway adds to an instant provider and to an empty handler; goals"
CLIENTS = (1, 16, 64)
# A model with a known price: calls of unpriced models are refused.
MODEL = "openai/gpt-6-luna"
EMPTY, ALONE, BY_NAME = "empty handler", "provider alone", "frontier model by name"
EMBEDDED, KNOWN, HIT = "auto, with embedding", "auto, known instruction", "exact cache hit"
ADDED_MS = {BY_NAME: 4.0, EMBEDDED: 8.0, KNOWN: 8.0, HIT: 2.0}
"""Goals: most that p50 may be above the empty handler's, with one client."""

PER_S = {BY_NAME: 600.0, EMBEDDED: 400.0, KNOWN: 400.0, HIT: 1000.0}
"""Goals: least requests a second with 16 clients."""

P99_TIMES_P50 = 3.0
MEMORY_MB = 400.0
_GOAL_CLIENTS = (1, 16)
_REQUESTS = {1: 300, 16: 960, 64: 960}
_BYPASS = {"x-narrowgate-cache": "bypass"}
_LOOKUP_S = 10.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_settings_options(parser)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of every measurement (3)")
    parser.add_argument("--clients", nargs="+", type=int, choices=CLIENTS, default=CLIENTS)
    parser.add_argument(
        "--postgres", nargs="?", const="", metavar="URL",
        help="keep the ledger in PostgreSQL: in this empty database, or in a server of the "
        "pgserver package",
    )  # fmt: skip


@dataclass(slots=True)
class Target:
    """One kind of request, and its rounds by number of clients.

    model: None for a GET. instruction: before each text, with the request's number in the place of
    `{number}`. repeated: one body for all.
    """

    name: str
    path: str
    model: str | None = None
    instruction: str = INSTRUCTION
    repeated: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)
    rounds: "dict[int, list[LoadResult]]" = field(default_factory=dict)
    cpu_s: dict[int, list[float]] = field(default_factory=dict)
    """Processor time of the gateway's process for a request, by clients, one a round."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A goal beside its figure.

    at_most: False where the figure must be at least the goal. values: the figure of each round.
    """

    what: str
    figure: float
    goal: float
    unit: str
    at_most: bool = True
    values: tuple[float, ...] = ()

    @property
    def is_met(self) -> bool:
        """Return whether the figure reaches the goal."""
        return self.figure <= self.goal if self.at_most else self.figure >= self.goal

    def as_json(self) -> dict[str, Any]:
        """Return the goal with the 95 % interval of its figure; null where one round was run."""
        low, high = Ratios([*self.values]).interval() if len(self.values) > 1 else (None, None)
        return {
            "what": self.what, "figure": self.figure, "low": low, "high": high, "goal": self.goal,
            "unit": self.unit, "at_most": self.at_most, "met": self.is_met,
        }  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Measure and report. Exit status 0; goals are reported, not judged."""
    document = measured(args)
    if document is None:
        return 1
    _print(document, as_json=args.json)
    return 0


def measured(args: argparse.Namespace) -> dict[str, Any] | None:
    """Start the stack, measure it and return the report; None where a signal ended it."""
    from benchmarks.temporary_ledger import temporary_ledger, without_keys
    from serving.commands.first_start import Origin
    from serving.commands.serve import Start, prepare
    from serving.lifecycle.signals import StopRequested, signals_raise
    from serving.lifecycle.stack import local_stack

    with instant_provider() as upstream, _database(args.postgres) as url:
        settings = measured_settings(without_keys(settings_from(args)), upstream, url)
        prepared = prepare(settings, Origin(args.config, settings.tasks_dir))
        with signals_raise():
            try:
                with (
                    reports_only(),
                    temporary_ledger(prepared) as checked,
                    local_stack(checked.settings) as stack,
                ):
                    Start(checked, stack).run()
                    process = _gateway_process()
                    targets = measure_targets(stack.url, upstream, process, args)
                    memory_mb = process.memory_info().rss / 1e6
            except StopRequested:
                return None
    return document_of(targets, args, memory_mb, url)


@contextmanager
def _database(named: str | None) -> Iterator[str | None]:
    """Yield the URL of the ledger's database; None for SQLite. named: as `--postgres`."""
    from benchmarks.ledger_databases import open_databases
    from serving.contracts.errors import InvalidArgument

    if named is None:
        yield None
        return
    with open_databases(named or None) as databases:
        if len(databases) == 1:
            raise InvalidArgument(
                "--postgres without a URL needs the package pgserver, which is not installed",
                fix="install pgserver, or give --postgres the URL of an empty database",
            )
        yield databases[1].url


def measured_settings(settings: "Settings", upstream: str, url: str | None) -> "Settings":
    """Return the settings with the instant provider as the only one, and with the cache.

    url: of the ledger's database; None for SQLite.
    """
    from pydantic import SecretStr

    from serving.contracts.cache_settings import CacheSettings
    from serving.contracts.frontier_settings import FrontierSettings, ProviderSettings
    from serving.contracts.routing import TIERS

    provider = ProviderSettings(
        api="openai", base_url=f"{upstream}/v1", keyless=True, max_concurrent=256
    )
    frontier = FrontierSettings(
        providers={"openai": provider}, tiers=dict.fromkeys(TIERS, (MODEL,))
    )
    secret = None if url is None else SecretStr(url)
    return settings.model_copy(
        update={
            "frontier": frontier,
            "cache": CacheSettings(lookup_timeout_s=_LOOKUP_S),
            "ledger": settings.ledger.model_copy(update={"url": secret}),
        }
    )


def targets_of(url: str, upstream: str) -> list[Target]:
    """Return what is measured. url: of the stack."""
    chats = "/v1/chat/completions"
    return [
        Target(EMPTY, f"{url}/healthz"),
        Target(ALONE, f"{upstream}{chats}", MODEL),
        Target(BY_NAME, f"{url}{chats}", MODEL, headers=_BYPASS),
        Target(EMBEDDED, f"{url}{chats}", "auto", NEW_INSTRUCTION, headers=_BYPASS),
        Target(KNOWN, f"{url}{chats}", "auto", headers=_BYPASS),
        Target(HIT, f"{url}{chats}", MODEL, repeated=True),
    ]


def measure_targets(
    url: str, upstream: str, process: "psutil.Process", args: argparse.Namespace, share: float = 1.0
) -> list[Target]:
    """Load every target in turn. process: the gateway's. share: of the requests of a round."""
    targets = targets_of(url, upstream)
    with terminal_progress() as progress:
        total = progress.add_task(
            "measuring", total=(args.rounds + 1) * len(args.clients) * len(targets)
        )
        # Round 0 warms connections and caches and is not counted.
        for number in range(args.rounds + 1):
            for clients in args.clients:
                for target in targets:
                    before_s = _cpu_s(process)
                    found = _load(target, clients, number, share)
                    took_s = (_cpu_s(process) - before_s) / len(found.latencies_s)
                    if number:
                        target.rounds.setdefault(clients, []).append(found)
                        target.cpu_s.setdefault(clients, []).append(took_s)
                    progress.advance(total)
    return targets


def _cpu_s(process: "psutil.Process") -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _load(target: Target, clients: int, number: int, share: float) -> "LoadResult":
    from benchmarks.load import run_load

    bodies = bodies_of(target, clients, number, share)
    return asyncio.run(run_load(target.path, bodies, clients, target.headers))


def bodies_of(
    target: Target, clients: int, number: int, share: float = 1.0
) -> list[dict[str, Any] | None]:
    """Return the bodies of one round. number: of the round. share: of its requests."""
    count, seed = max(2 * clients, int(share * _REQUESTS[clients])), 1000 * number + clients
    if target.model is None:
        return [None] * count
    found = ["one text"] * count if target.repeated else texts(count, seed)
    # No number comes twice.
    return [*instructed(target.model, target.instruction, found, seed * 10_000)]


def _gateway_process() -> "psutil.Process":
    """Return the largest gateway replica that this process started."""
    import psutil

    from serving.app import GATEWAY_DEPLOYMENT

    found = [
        process
        for process in psutil.Process().children(recursive=True)
        if f":{GATEWAY_DEPLOYMENT}" in "".join(process.cmdline()[:1])
    ]
    return max(found, key=lambda process: process.memory_info().rss)


def document_of(
    targets: Sequence[Target], args: argparse.Namespace, memory_mb: float, url: str | None
) -> dict[str, Any]:
    """Return the report. targets: the empty handler first."""
    from serving.host.processor import processor_name

    rows = [_row(target, targets[0], clients) for clients in args.clients for target in targets]
    return {
        "machine": processor_name(),
        "cores": os.cpu_count(),
        "rounds": args.rounds,
        "ledger": "SQLite" if url is None else "PostgreSQL",
        "workload": "chats of 25 to 40 words, all different; load, gateway, proxy and provider "
        "on the same cores",
        "rows": rows,
        "gateway_memory_mb": memory_mb,
        "goals": [one.as_json() for one in goals_of(rows, memory_mb)],
    }


def _row(target: Target, empty: Target, clients: int) -> dict[str, Any]:
    from benchmarks.load import percentile

    found, empties = target.rounds[clients], empty.rounds[clients]
    p50_ms, empty_ms = _p50_ms(found), _p50_ms(empties)
    each = [
        {
            "over_empty_ms": _p50_ms([item]) - _p50_ms([beside]),
            "p99_over_p50": percentile(item.latencies_s, 0.99) * 1000 / _p50_ms([item]),
            "requests_per_s": item.requests_per_s,
        }
        for item, beside in zip(found, empties, strict=True)
    ]
    cpu_s = target.cpu_s.get(clients)
    return {
        "target": target.name,
        "clients": clients,
        "requests": sum(len(item.latencies_s) for item in found),
        "p50_ms": p50_ms,
        # The middle round's: a pause of the machine is in one.
        "p99_ms": statistics.median(percentile(item.latencies_s, 0.99) for item in found) * 1000,
        "over_empty_ms": p50_ms - empty_ms,
        "over_empty": p50_ms / empty_ms,
        "requests_per_s": statistics.median(item.requests_per_s for item in found),
        "gateway_cpu_ms": None if cpu_s is None else statistics.median(cpu_s) * 1000,
        "rounds": each,
    }


def goals_of(rows: Sequence[Mapping[str, Any]], memory_mb: float) -> list[Goal]:
    """Return every goal that the rows have a figure for. Figures: medians over rounds."""
    found = []
    for row in rows:
        name, clients = row["target"], row["clients"]
        if name not in ADDED_MS or clients not in _GOAL_CLIENTS:
            continue
        if clients == 1:
            what = f"{name}, added to p50 at 1 client"
            values = _rounds(row, "over_empty_ms")
            goal = Goal(what, statistics.median(values), ADDED_MS[name], "ms", True, values)
        else:
            what = f"{name}, at 16 clients"
            values = _rounds(row, "requests_per_s")
            rate = statistics.median(values)
            goal = Goal(what, rate, PER_S[name], "requests/s", False, values)
        tails = _rounds(row, "p99_over_p50")
        tail = statistics.median(tails)
        found += [
            goal,
            Goal(f"{name}, p99 at {clients}", tail, P99_TIMES_P50, "times p50", True, tails),
        ]
    return [*found, Goal("memory of a gateway replica", memory_mb, MEMORY_MB, "MB")]


def _rounds(row: Mapping[str, Any], name: str) -> tuple[float, ...]:
    return tuple(each[name] for each in row["rounds"])


def _p50_ms(found: "Sequence[LoadResult]") -> float:
    return statistics.median(s for item in found for s in item.latencies_s) * 1000


def _print(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(document))
        return
    for line in lines(document):
        print(line)


def lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the report for people."""
    yield (
        f"{document['machine']}, {document['cores']} cores, {document['rounds']} rounds; "
        f"ledger in {document['ledger']}; {document['workload']}"
    )
    for row in document["rows"]:
        yield (
            f"{row['clients']:>3} clients  {row['target']:<24} p50 {row['p50_ms']:>7.2f} ms  "
            f"p99 {row['p99_ms']:>7.2f} ms  "
            f"over empty {row['over_empty_ms']:>+7.2f} ms ({row['over_empty']:.2f}x)  "
            f"{row['requests_per_s']:>7.1f} requests/s"
            + (
                ""
                if row["gateway_cpu_ms"] is None
                else f"  gateway {row['gateway_cpu_ms']:.2f} ms of processor time"
            )
        )
    for one in document["goals"]:
        sign = "<=" if one["at_most"] else ">="
        spread = "" if one["low"] is None else f"({one['low']:.2f} to {one['high']:.2f})"
        yield (
            f"goal {one['what']:<50} {one['figure']:>8.2f} {spread:<22} {one['unit']:<10} "
            f"{sign} {one['goal']:g}  {'met' if one['met'] else 'MISSED'}"
        )
