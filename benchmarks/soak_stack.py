"""`soak --stack STATE`: the whole stack under load, its engine's replica killed again and again.

Requests for local tasks go over HTTP to `narrowgate serve`. After each kill the gateway must refuse
with a time to retry, and answer again once Ray Serve has started another replica.
"""

import argparse
import asyncio
import json
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.machine import machine
from benchmarks.served_stack import ServedStack, linked, replicas, runs, serving, shown
from benchmarks.soak_samples import Samples, Slope, ends, growth

ENGINE = "ray::ServeReplica:engine"
"""How the processes of engines' replicas are named; the model's id follows."""

_DEFAULT_RATE = 2.0
_SAMPLE_S = 5.0
_POLL_S = 1.0
_REQUEST_S = 180.0
_ORPHAN_S = 60.0
"""A killed replica's children, the engine core above all, must end within this time."""

_SETTLE_S = 5.0


@dataclass(frozen=True, slots=True)
class Kill:
    """One kill of an engine's replica.

    at_s: since the start of the load. back_s: until the first answer to a request that was sent
    after the kill; None where there was none. children_left: its children that outlived it.
    """

    at_s: float
    back_s: float | None
    children_left: tuple[str, ...] = ()


@dataclass(slots=True)
class StackTraffic:
    """What the clients saw. answered: (sent, ended) of each answer, seconds since the start."""

    answered: list[tuple[float, float]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)

    def note(self, status: int, retry_after: str | None, code: str) -> None:
        """Count a response: 200, or 503 with a Retry-After of a second or more, is expected."""
        self.statuses[str(status) if status == 200 else f"{status} {code}"] += 1
        if status == 200:
            return
        if status != 503:
            self.unexpected[f"HTTP {status} {code}"] += 1
        elif retry_after is None or not retry_after.isdigit() or int(retry_after) < 1:
            self.unexpected[f"HTTP 503 {code} with Retry-After {retry_after!r}"] += 1

    def back_after(self, at_s: float) -> float | None:
        """Return the seconds from a kill to the first answer to a later request; None without."""
        later = [ended - at_s for sent, ended in self.answered if sent > at_s]
        return min(later, default=None)


@dataclass(frozen=True, slots=True)
class LedgerRows:
    """What the ledger has. answered: request ids of local answers. open_rows: of inputs and calls.

    calls: local calls of those answers.
    """

    answered: Sequence[str]
    calls: int
    open_rows: int


def failures(
    traffic: StackTraffic,
    kills: Sequence[Kill],
    ledger: LedgerRows,
    slopes: tuple[Slope, Slope],
    back_s: float,
) -> list[str]:
    """Return what is wrong, in words; empty where nothing is. slopes: of memory, of open files."""
    found = [f"{count} x {what}" for what, count in traffic.unexpected.items()]
    if not traffic.answered:
        found.append("no request was answered")
    if not kills:
        found.append("no engine was killed: make the run longer or --kill-every shorter")
    for kill in kills:
        if kill.back_s is None:
            found.append(f"no answer after the kill at {kill.at_s:.0f} s")
        elif kill.back_s > back_s:
            found.append(
                f"answers came back {kill.back_s:.0f} s after the kill at {kill.at_s:.0f} s, and "
                f"{back_s:.0f} s are allowed"
            )
        if kill.children_left:
            found.append(
                f"processes of the replica killed at {kill.at_s:.0f} s still ran after "
                f"{_ORPHAN_S:.0f} s: {', '.join(kill.children_left)}"
            )
    found += _ledger_failures(Counter(traffic.ids), Counter(ledger.answered))
    if ledger.calls != len(ledger.answered):
        found.append(f"{len(ledger.answered)} local answers have {ledger.calls} calls")
    if ledger.open_rows:
        found.append(f"{ledger.open_rows} rows are still open in the ledger")
    return found + growth(*slopes)


def _ledger_failures(seen: Counter[str], kept: Counter[str]) -> Iterator[str]:
    if missing := (seen - kept).total():
        yield f"{missing} answers have no row in the ledger"
    if extra := (kept - seen).total():
        yield f"{extra} rows of local answers in the ledger were never answered"


def run(args: argparse.Namespace) -> int:
    """Run the stack, the load and the kills, and judge. Exit status 1 where anything is wrong."""
    with linked(args.stack) as state, serving(state) as stack:
        load = _Load(stack, args)
        asyncio.run(load.run())
        stack.stop()
        document = _document(load, ledger_rows(state), args)
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
        f"{document['rate']:g} requests/s for {', '.join(document['tasks'])}, "
        f"{document['requests']} requests"
    )
    yield f"statuses: {document['statuses']}"
    for kill in document["kills"]:
        back = "never" if kill["back_s"] is None else f"after {kill['back_s']:.1f} s"
        yield f"engine killed at {kill['at_s']:.0f} s; answers came back {back}"
    for name, unit in (("memory", "MiB"), ("files", "open files")):
        row = document[name]
        yield (
            f"gateway's {name}: {row['first']:.0f} to {row['last']:.0f} {unit}, "
            f"{row['per_hour']:+.1f} an hour ({row['low']:+.1f} to {row['high']:+.1f})"
        )
    p50, p99 = document["latency_ms"]
    yield f"answers: p50 {p50:.0f} ms, p99 {p99:.0f} ms"
    yield f"ledger: {document['ledger']}"
    yield "failures: " + ("; ".join(document["failures"]) or "none")


class _Load:
    """The clients, the kills and the samples of one run."""

    def __init__(self, stack: ServedStack, args: argparse.Namespace) -> None:
        self.stack = stack
        self.rate: float = args.rate or _DEFAULT_RATE
        self.seconds: float = args.minutes * 60
        self.requests = int(self.rate * self.seconds)
        self.traffic = StackTraffic()
        self.samples = Samples()
        self.kills: list[Kill] = []
        self._every_s: float = args.kill_every * 60
        self._back_s: float = args.back_s
        self._seed: int = args.seed
        self._started_s = 0.0

    def _now_s(self) -> float:
        return time.monotonic() - self._started_s

    async def run(self) -> None:
        """Load at the rate for the time, with kills and samples beside it."""
        timeout = aiohttp.ClientTimeout(total=_REQUEST_S)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            self._started_s = time.monotonic()
            sampling = asyncio.create_task(self._sample())
            killing = asyncio.create_task(self._kill_again_and_again())
            await self._at_rate(session)
            await killing
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)
        # Rows of the last answers are written.
        await asyncio.sleep(_SETTLE_S)

    async def _at_rate(self, session: aiohttp.ClientSession) -> None:
        from benchmarks.texts import texts

        async with asyncio.TaskGroup() as group:
            for number, text in enumerate(texts(self.requests, self._seed)):
                if (wait_s := number / self.rate - self._now_s()) > 0:
                    await asyncio.sleep(wait_s)
                task = self.stack.tasks[number % len(self.stack.tasks)]
                group.create_task(self._request(session, task, text))

    async def _request(self, session: aiohttp.ClientSession, task: str, text: str) -> None:
        sent_s = self._now_s()
        body = {"input": text, "route": "local_only"}
        try:
            async with session.post(f"{self.stack.url}/v1/tasks/{task}", json=body) as response:
                document = await response.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            self.traffic.unexpected[type(error).__name__] += 1
            return
        code = str(document.get("error", {}).get("code", ""))
        self.traffic.note(response.status, response.headers.get("retry-after"), code)
        if response.status == 200:
            self.traffic.answered.append((sent_s, self._now_s()))
            self.traffic.ids.append(document["request_id"])

    async def _kill_again_and_again(self) -> None:
        """Kill a replica at every due time that leaves it the allowed time to come back."""
        number = 1
        while number * self._every_s + self._back_s <= self.seconds:
            await asyncio.sleep(max(0.0, number * self._every_s - self._now_s()))
            self.kills.append(await self._kill())
            number = max(number + 1, int(self._now_s() // self._every_s) + 1)

    async def _kill(self) -> Kill:
        found = await asyncio.to_thread(replicas, self.stack.process.pid, ENGINE)
        if not found:
            return Kill(self._now_s(), None)
        await asyncio.to_thread(self.stack.look)
        children = await asyncio.to_thread(found[0].children, recursive=True)
        at_s = self._now_s()
        found[0].send_signal(signal.SIGKILL)
        await self._until(
            lambda: self.traffic.back_after(at_s) is not None, at_s + 2 * self._back_s
        )
        await self._until(lambda: not any(map(runs, children)), at_s + _ORPHAN_S)
        left = tuple(shown(child) for child in children if runs(child))
        return Kill(at_s, self.traffic.back_after(at_s), left)

    async def _until(self, holds: Callable[[], bool], latest_s: float) -> None:
        while not holds() and self._now_s() < latest_s:  # noqa: ASYNC110  # of other processes
            await asyncio.sleep(_POLL_S)

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(_SAMPLE_S)
            await asyncio.to_thread(self.stack.look)
            self.samples.take(self._now_s(), self.stack.gateway)


def ledger_rows(state: Path) -> LedgerRows:
    """Return what the ledger has, after the stack has stopped. Blocking."""
    connection = sqlite3.connect(state / "ledger" / "ledger.db")
    answered = connection.execute(
        "SELECT request_id FROM exits WHERE state = 'closed' AND route = 'local'"
        " AND outcome = 'answered'"
    ).fetchall()
    (calls,) = connection.execute(
        "SELECT count(*) FROM calls JOIN exits ON exits.id = calls.exit_id WHERE"
        " calls.kind = 'local' AND calls.outcome = 'ok' AND exits.outcome = 'answered'"
    ).fetchone()
    (open_exits,) = connection.execute("SELECT count(*) FROM exits WHERE state = 'open'").fetchone()
    (open_calls,) = connection.execute("SELECT count(*) FROM calls WHERE state = 'open'").fetchone()
    connection.close()
    return LedgerRows([row[0] for row in answered], calls, open_exits + open_calls)


def _document(load: _Load, ledger: LedgerRows, args: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.load import percentile

    samples, traffic = load.samples, load.traffic
    memory, files = samples.slope(samples.memory_mib), samples.slope(samples.files)
    found = failures(traffic, load.kills, ledger, (memory, files), args.back_s)
    if left := load.stack.left():
        found.append(f"{len(left)} processes still run: {', '.join(left)}")
    taken_ms = [1000 * (ended - sent) for sent, ended in traffic.answered] or [0.0]
    return {
        "machine": machine(),
        "load_average": os.getloadavg()[0],
        "minutes": args.minutes,
        "rate": load.rate,
        "tasks": load.stack.tasks,
        "requests": load.requests,
        "statuses": dict(sorted(traffic.statuses.items())),
        "kills": [asdict(kill) for kill in load.kills],
        "memory": {**asdict(memory), **ends(samples.memory_mib)},
        "files": {**asdict(files), **ends(samples.files)},
        "latency_ms": [percentile(taken_ms, 0.5), percentile(taken_ms, 0.99)],
        "ledger": {"answered": len(ledger.answered), "calls": ledger.calls,
                   "open_rows": ledger.open_rows},
        "failures": found,
    }  # fmt: skip
