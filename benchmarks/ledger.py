"""`python -m benchmarks ledger`: latency that the ledger adds to a request, and rows per second."""

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.processes import instant_provider, listening
from serving.commands.progress import step
from serving.host.terminal import terminal_progress

if TYPE_CHECKING:
    from benchmarks.ledger_capacity import Route
    from benchmarks.ledger_databases import LedgerDatabase
    from benchmarks.ledger_figures import Measured, Round

HELP = "compare the gateway with a ledger to the same gateway without one"
CLIENTS = (1, 16, 64)
PATHS: "tuple[Route, ...]" = ("frontier", "local")
# A model with a known price: calls of unpriced models are refused.
MODEL = "openai/gpt-6-luna"
_REQUESTS = {1: 150, 16: 480, 64: 960}
_CAPACITY_REQUESTS = 5000
_START_S = 120.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--rounds", type=int, default=5, help="rounds of every measurement (5)")
    parser.add_argument("--clients", nargs="+", type=int, choices=CLIENTS, default=CLIENTS)
    parser.add_argument(
        "--postgres-url", metavar="URL",
        help="of an empty database (the pgserver package's own server, where that is installed)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Measure and report. Exit status 0; figures are reported, not judged."""
    from benchmarks import ledger_figures as figures
    from benchmarks.ledger_capacity import rows_per_s
    from benchmarks.ledger_databases import open_databases, versions

    with open_databases(args.postgres_url) as databases:
        if len(databases) == 1:
            print(
                "PostgreSQL is not measured: set --postgres-url, or install pgserver",
                file=sys.stderr,
            )
        with _gateways(databases) as urls:
            measured = _measure(urls, databases, args)
        with step("measuring only the writer"):
            capacity = {
                database.name: {
                    path: rows_per_s(database, path, MODEL, _CAPACITY_REQUESTS) for path in PATHS
                }
                for database in databases
            }
        about = _about(args, [versions(database) for database in databases])
    document = figures.as_json(measured, capacity, about)
    if args.json:
        print(json.dumps(document))
        return 0
    for line in figures.lines(document):
        print(line)
    return 0


@contextmanager
def _gateways(databases: "Sequence[LedgerDatabase]") -> Iterator[dict[str, str]]:
    """Yield the URL of a gateway for each ledger, and of one without."""
    from benchmarks.ledger_figures import WITHOUT

    with ExitStack() as running:
        with step("starting the gateways"):
            upstream = running.enter_context(instant_provider())
            urls = {WITHOUT: running.enter_context(ledger_gateway(upstream, None))}
            for database in databases:
                urls[database.name] = running.enter_context(ledger_gateway(upstream, database))
        yield urls


@contextmanager
def ledger_gateway(upstream: str, database: "LedgerDatabase | None") -> Iterator[str]:
    """Start a gateway with this ledger (None: with none), yield its URL, stop it at the end."""
    from benchmarks.ledger_server import Plan
    from serving.lifecycle.ports import free_port

    port = free_port()
    state, url = (None, None) if database is None else (str(database.state), database.url)
    plan = Plan(port, upstream, MODEL, state, url)
    command = [sys.executable, "-m", "benchmarks.ledger_server"]
    # On standard input: the URL may hold a password, and every user can read a process's arguments.
    with listening(command, port, _START_S, stdin=json.dumps(asdict(plan)) + "\n") as address:
        yield address


def _measure(
    urls: dict[str, str], databases: "Sequence[LedgerDatabase]", args: argparse.Namespace
) -> "Measured":
    from benchmarks.ledger_figures import Cell, Measured

    measured = Measured()
    by_name = {database.name: database for database in databases}
    with terminal_progress() as progress:
        total = progress.add_task(
            "measuring",
            total=(args.rounds + 1) * len(args.clients) * len(PATHS) * len(urls),
        )
        # Round 0 warms connections and caches and is not counted.
        for number in range(args.rounds + 1):
            for clients in args.clients:
                for path in PATHS:
                    bodies = chat_bodies(path, _REQUESTS[clients], seed=1000 * number + clients)
                    for name in _rotate(list(urls), number):
                        found = _round(urls[name], bodies, clients, by_name.get(name))
                        if number:
                            measured.add(Cell(path, clients, name), found)
                        progress.advance(total)
    return measured


def _rotate(names: list[str], number: int) -> list[str]:
    """Rotate the order each round, because the first gateway finds an idle machine."""
    start = number % len(names)
    return names[start:] + names[:start]


def _round(
    url: str, bodies: "Sequence[dict[str, Any]]", clients: int, database: "LedgerDatabase | None"
) -> "Round":
    from benchmarks.ledger_databases import rows_in
    from benchmarks.ledger_figures import Round
    from benchmarks.load import run_load

    before = rows_in(database) if database else 0
    load = asyncio.run(run_load(f"{url}/v1/chat/completions", bodies, clients))
    return Round(load, rows_in(database) - before if database else 0)


def chat_bodies(path: "Route", requests: int, seed: int) -> list[dict[str, Any]]:
    """Return that many chats, all different, for the frontier or the local model."""
    from benchmarks.ledger_databases import LOCAL_MODEL
    from benchmarks.texts import texts

    model = MODEL if path == "frontier" else LOCAL_MODEL
    return [
        {"model": model, "messages": [{"role": "user", "content": text}]}
        for text in texts(requests, seed)
    ]


def _about(args: argparse.Namespace, versions: Sequence[str]) -> dict[str, Any]:
    from importlib.metadata import version

    import psutil

    from benchmarks.machine import machine

    folder = Path(tempfile.gettempdir()).resolve()
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    disk = next(mounts[at] for at in (folder, *folder.parents) if at in mounts)
    return {
        "machine": {**machine(), "file_system": disk},
        "versions": {
            "databases": ", ".join(versions),
            "sqlalchemy": version("sqlalchemy"),
            "psycopg": version("psycopg"),
        },
        "workload": {
            "rounds": args.rounds,
            "requests": "chats of 20 to 35 words, all different",
            "gateway": "one process a ledger; load, gateways, databases and the instant provider "
            "on the same cores",
            "durability": "every commit is flushed to disk",
        },
    }
