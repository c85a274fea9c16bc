"""`python -m benchmarks soak`: an hour of mixed traffic with faults; is anything lost or leaked?"""

import argparse
import asyncio
import json
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp

from benchmarks.gateway_processes import MODEL, GatewayProcess, gateway, settings_of
from benchmarks.machine import machine
from benchmarks.processes import listening
from benchmarks.soak_samples import Samples, Slope, ends, growth

if TYPE_CHECKING:
    from serving.contracts.settings import Settings

HELP = "load a gateway for an hour with faults; exit status 1: a leak, or a ledger that is wrong"
_CLIENTS = 16
_CALIBRATION_S = 10.0
_SHARE = 0.6
"""Of the throughput without pauses, at which the load runs."""

_SAMPLE_S = 5.0
_LOCK_EVERY_S, _LOCK_S = 60.0, 3.0
"""The ledger's database is locked by another process so often, for so long."""

_CACHED_ENTRIES, _KNOWN_INSTRUCTIONS = 2_000, 256
"""Limits of what the gateway keeps, so small that it is full before growth is judged."""

_FIRST_BYTE_S = 2.0
_PROVIDER_START_S = 30.0
_SETTLE_S = 5.0
_MIX = {"by name": 45, "streamed": 20, "auto": 15, "repeated": 18, "malformed": 2}
_ALLOWED = {200, 429, 502, 503, 504}
"""Statuses of a request under faults; 400 where it is malformed. Any other is a failure."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--rate", type=float, help="requests a second (60 %% of what is possible)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--stack", type=Path, metavar="STATE",
        help="load the tasks of `narrowgate serve` with this state folder's models instead, and "
        "kill its engine's replica (2 requests a second)",
    )  # fmt: skip
    parser.add_argument(
        "--kill-every", type=float, default=5.0, metavar="MINUTES", help="with --stack (5)"
    )
    parser.add_argument(
        "--back-s", type=float, default=180.0, metavar="SECONDS",
        help="with --stack: how long after a kill answers may be missing (180)",
    )  # fmt: skip


@dataclass(slots=True)
class Traffic:
    """What the clients saw. latencies_s: (second of the run, seconds) of whole answers by name."""

    statuses: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)
    latencies_s: list[tuple[float, float]] = field(default_factory=list)


def run(args: argparse.Namespace) -> int:
    """Run the load and judge. Exit status 1 for a leak, an unexpected answer or a wrong ledger."""
    import psutil

    if args.stack is not None:
        from benchmarks import soak_stack

        return soak_stack.run(args)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        document = _soaked(Path(name), args)
    left = [child.name() for child in psutil.Process().children(recursive=True)]
    document["processes_left"] = left
    if left:
        document["failures"].append(f"{len(left)} processes still run: {', '.join(left)}")
    if args.json:
        print(json.dumps(document))
    else:
        for line in lines(document):
            print(line)
    return 1 if document["failures"] else 0


def lines(document: dict[str, Any]) -> Iterator[str]:
    """Yield the report for people."""
    yield (
        f"{document['machine']['cpu']}, {document['machine']['cores']} cores, load "
        f"{document['load_average']:.1f}; {document['minutes']:g} minutes at "
        f"{document['rate']:.0f} requests/s, {document['requests']} requests"
    )
    yield f"statuses: {document['statuses']}"
    for name, unit in (("memory", "MiB"), ("files", "open files")):
        row = document[name]
        yield (
            f"{name}: {row['first']:.0f} to {row['last']:.0f} {unit}, {row['per_hour']:+.1f} an "
            f"hour ({row['low']:+.1f} to {row['high']:+.1f})"
        )
    yield (
        "p50, p99 of whole answers by name, ms, in each fifth of the time: "
        + "; ".join(f"{p50:.0f}, {p99:.0f}" for p50, p99 in document["latencies_ms"])
    )
    yield f"provider: {document['provider']}"
    yield f"ledger:   {document['ledger']}"
    yield "failures: " + ("; ".join(document["failures"]) or "none")


def _soaked(state: Path, args: argparse.Namespace) -> dict[str, Any]:
    from serving.contracts.frontier_settings import BreakerSettings, ProviderSettings

    with ExitStack() as running:
        upstream = running.enter_context(_provider(args.seed))
        provider = ProviderSettings(
            api="openai", base_url=f"{upstream}/v1", keyless=True, max_concurrent=256,
            first_byte_timeout_s=_FIRST_BYTE_S,
            # The breaker would keep most requests from the provider, and so from the ledger.
            breaker=BreakerSettings(failures=1000),
        )  # fmt: skip
        with gateway(_bounded(settings_of(state, provider, cached=True))) as server:
            load = _Load(server, state, args)
            asyncio.run(load.run())
        records = asyncio.run(_records(upstream))
    return _document(load, records, _ledger(state), args)


def _bounded(settings: "Settings") -> "Settings":
    """Return settings under which what the gateway keeps fills up soon. As shipped it takes hours,
    and a leak would not be told from a cache that fills up.
    """
    cache = settings.cache.model_copy(update={"max_entries": _CACHED_ENTRIES})
    routing = settings.routing.model_copy(update={"known_instructions": _KNOWN_INSTRUCTIONS})
    return settings.model_copy(update={"cache": cache, "routing": routing})


@contextmanager
def _provider(seed: int) -> Iterator[str]:
    from serving.lifecycle.ports import free_port

    port = free_port()
    command = [sys.executable, "-m", "benchmarks.soak_provider", str(port), str(seed)]
    with listening(command, port, _PROVIDER_START_S) as url:
        yield url


class _Load:
    """The clients, the samples and the locks of one run."""

    def __init__(self, server: GatewayProcess, state: Path, args: argparse.Namespace) -> None:
        self._server = server
        self._state = state
        self._rng = random.Random(args.seed)  # noqa: S311  # not for secrets
        self._sent = 0
        self._started_s = 0.0
        self.seconds = args.minutes * 60
        self.rate: float = args.rate or 0.0
        self.traffic = Traffic()
        self.samples = Samples()

    @property
    def requests(self) -> int:
        """Return how many were sent."""
        return self._sent

    async def run(self) -> None:
        """Measure what is possible, then load at a share of it for the time."""
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=120)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            self._started_s = time.monotonic()
            if not self.rate:
                await self._without_pauses(session, _CALIBRATION_S)
                self.rate = _SHARE * self._sent / _CALIBRATION_S
                self.traffic.latencies_s.clear()
            self._started_s = time.monotonic()
            beside = [asyncio.create_task(each) for each in (self._sample(), self._lock())]
            await self._at_rate(session)
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        # What was spilled while the database was locked is written again.
        await asyncio.sleep(_SETTLE_S)

    async def _without_pauses(self, session: aiohttp.ClientSession, seconds: float) -> None:
        until = time.monotonic() + seconds

        async def client() -> None:
            while time.monotonic() < until:
                await self._request(session)

        await asyncio.gather(*(client() for _ in range(_CLIENTS)))

    async def _at_rate(self, session: aiohttp.ClientSession) -> None:
        """Send at the rate whatever the answers take, so that a slow answer slows nothing else."""
        pending: set[asyncio.Task[None]] = set()
        first = self._started_s
        for number in range(int(self.rate * self.seconds)):
            due = first + number / self.rate
            if (wait_s := due - time.monotonic()) > 0:
                await asyncio.sleep(wait_s)
            task = asyncio.create_task(self._request(session))
            pending.add(task)
            task.add_done_callback(pending.discard)
        await asyncio.gather(*pending)

    async def _request(self, session: aiohttp.ClientSession) -> None:
        self._sent += 1
        (kind,) = self._rng.choices(list(_MIX), list(_MIX.values()))
        body: Any = {"model": MODEL, "messages": [{"role": "user", "content": self._text(kind)}]}
        if kind == "auto":
            body["model"] = "auto"
        elif kind == "streamed":
            body["stream"] = True
        elif kind == "malformed":
            body["messages"] = "no list"
        began = time.monotonic()
        try:
            url = f"{self._server.url}/v1/chat/completions"
            async with session.post(url, json=body) as response:
                await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError) as error:
            self.traffic.unexpected[f"{kind}: {type(error).__name__}"] += 1
            return
        ended = time.monotonic()
        self.traffic.statuses[f"{kind} {status}"] += 1
        if status not in ({400} if kind == "malformed" else _ALLOWED):
            self.traffic.unexpected[f"{kind}: HTTP {status}"] += 1
        if kind == "by name" and status == 200:
            self.traffic.latencies_s.append((ended - self._started_s, ended - began))

    def _text(self, kind: str) -> str:
        if kind == "repeated":
            return f"What is part {self._rng.randrange(20)} of a narrow gate?"
        return f"Question {self._sent}: how old is a gate of {self._rng.randrange(10**6)} parts?"

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(_SAMPLE_S)
            self.samples.take(time.monotonic() - self._started_s, self._server.process)

    async def _lock(self) -> None:
        while True:
            await asyncio.sleep(_LOCK_EVERY_S)
            await asyncio.to_thread(_locked, self._state / "ledger" / "ledger.db")


def _locked(path: Path) -> None:
    """Hold the database's only write lock for a while. Blocking."""
    connection = sqlite3.connect(path, timeout=10.0, isolation_level=None)
    with suppress(sqlite3.OperationalError):
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(_LOCK_S)
        connection.execute("ROLLBACK")
    connection.close()


async def _records(upstream: str) -> dict[str, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"{upstream}/records") as response:
        return dict(await response.json())


def _ledger(state: Path) -> dict[str, Any]:
    """Return what the ledger holds of the calls, after its gateway has stopped. Blocking."""
    connection = sqlite3.connect(state / "ledger" / "ledger.db")
    known = connection.execute(
        "SELECT count(*), coalesce(sum(uncached_input_tokens), 0), coalesce(sum(output_tokens), 0)"
        " FROM calls WHERE kind = 'frontier' AND usage_source = 'reported' AND outcome = 'ok'"
    ).fetchone()
    states = connection.execute(
        "SELECT state, count(*) FROM calls WHERE kind = 'frontier' GROUP BY state"
    ).fetchall()
    open_exits = connection.execute("SELECT count(*) FROM exits WHERE state = 'open'").fetchone()
    connection.close()
    return {
        "answered": known[0],
        "input_tokens": known[1],
        "output_tokens": known[2],
        "states": dict(states),
        "open_exits": open_exits[0],
    }


def _document(
    load: _Load, records: dict[str, Any], ledger: dict[str, Any], args: argparse.Namespace
) -> dict[str, Any]:
    import os

    samples, traffic = load.samples, load.traffic
    memory, files = samples.slope(samples.memory_mib), samples.slope(samples.files)
    return {
        "machine": machine(),
        "load_average": os.getloadavg()[0],
        "minutes": args.minutes,
        "rate": load.rate,
        "requests": load.requests,
        "statuses": dict(sorted(traffic.statuses.items())),
        "memory": {**asdict(memory), **ends(samples.memory_mib)},
        "files": {**asdict(files), **ends(samples.files)},
        "latencies_ms": _fifths(traffic, load.seconds),
        "provider": records,
        "ledger": ledger,
        "failures": failures(traffic, memory, files, records, ledger),
    }


def failures(
    traffic: Traffic, memory: Slope, files: Slope, records: dict[str, Any], ledger: dict[str, Any]
) -> list[str]:
    """Return what is wrong, in words; empty where nothing is.

    A growth counts where its whole interval is above the limit.
    """
    found = [f"{count} x {what}" for what, count in traffic.unexpected.items()]
    found += growth(memory, files)
    kinds = records["kinds"]
    billed = {
        "answered": kinds.get("answered", 0) + kinds.get("slow", 0),
        "input_tokens": records["input_tokens"],
        "output_tokens": records["output_tokens"],
    }
    found += [
        f"{name}: the provider billed {billed[name]}, the ledger has {ledger[name]}"
        for name in billed
        if billed[name] != ledger[name]
    ]
    doubtful = kinds.get("silent", 0) + kinds.get("broken", 0)
    if ledger["states"].get("unknown", 0) != doubtful:
        found.append(
            f"{doubtful} calls broke off, and {ledger['states'].get('unknown', 0)} are unknown in "
            "the ledger"
        )
    if ledger["states"].get("open", 0) or ledger["open_exits"]:
        found.append("calls or exits are still open in the ledger")
    return found


def _fifths(traffic: Traffic, seconds: float) -> list[tuple[float, float]]:
    from benchmarks.load import percentile

    parts: list[list[float]] = [[] for _ in range(5)]
    for at_s, latency_s in traffic.latencies_s:
        parts[min(4, int(5 * at_s / seconds))].append(latency_s * 1000)
    return [(statistics.median(part), percentile(part, 0.99)) for part in parts if part]
