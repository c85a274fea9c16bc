"""A gateway that is killed at any await leaves a ledger that accounts for every call it made."""

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pydantic import SecretStr

from serving.ledger.ledger import DatabaseLedger
from serving.ledger.reports.reconcile import reconcile
from serving.ledger.schema import calls, exits, instances

from .ledger_kit import (
    MODEL,
    WORST,
    Noted,
    Reader,
    ended,
    entry_of,
    in_time,
    left,
    left_locally,
    new_ledger,
    running,
    set_aside,
)
from .patience import until

T = TypeVar("T")
REQUESTS = 3
SURVIVED, KILLED = 0, -signal.SIGKILL


class Bomb:
    """Kills the process at the n-th time that one of its tasks starts or ends an await."""

    def __init__(self, fuse: int) -> None:
        self._fuse = fuse

    def tick(self) -> None:
        self._fuse -= 1
        if self._fuse == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, work: Coroutine[Any, Any, T]) -> "Ticking[T]":
        return Ticking(work, self)


class Ticking(Awaitable[T]):
    """Drives a coroutine by hand, and ticks at the start and the end of every await."""

    def __init__(self, work: Coroutine[Any, Any, T], bomb: Bomb) -> None:
        self._work = work
        self._bomb = bomb

    def __await__(self) -> Generator[Any, Any, T]:
        step: Callable[[Any], Any] = self._work.send
        sent: Any = None
        while True:
            try:
                waits_for = step(sent)
            except StopIteration as stop:
                found: T = stop.value
                return found
            self._bomb.tick()
            try:
                sent, step = (yield waits_for), self._work.send
            except BaseException as error:  # noqa: BLE001  # handed on
                sent, step = error, self._work.throw
            self._bomb.tick()


class Provider(ThreadingHTTPServer):
    """Answers every call, and remembers which calls reached it."""

    daemon_threads = True

    def __init__(self) -> None:
        self.reached: list[str] = []
        super().__init__(("127.0.0.1", 0), Answering)

    def handle_error(self, *_: object) -> None:
        """Callers are killed while they are answered."""


class Answering(BaseHTTPRequestHandler):
    server: Provider

    def do_POST(self) -> None:  # the base class's name
        self.server.reached.append(self.path.removeprefix("/"))
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as found:
        thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


async def ask_provider(port: int, call_id: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"POST /{call_id} HTTP/1.0\r\ncontent-length: 0\r\n\r\n".encode())
    await writer.drain()
    await reader.read()
    writer.close()


async def request(ledger: DatabaseLedger, number: int, port: int) -> None:
    """Answer one request: a local one, one call with usage, and one without."""
    entry = entry_of(ledger, request_id=f"r{number}")
    if number == 0:
        entry.close(left_locally())
        return await entry.written()
    call = await entry.open_call(MODEL, WORST, in_time())
    await ask_provider(port, call._call["id"])
    call.close(ended() if number == 1 else ended(None, "unknown", "frontier_timeout"))
    entry.close(left(attempts=(set_aside(),)))
    return await entry.written()


def serve_until_killed(url: SecretStr | None, state: Path, port: int, fuse: int) -> None:
    """Run a gateway's ledger in a process of its own."""

    async def run() -> None:
        ledger = new_ledger(url, state, Noted())
        await ledger.start()
        bomb = Bomb(fuse)
        await asyncio.gather(*(bomb(request(ledger, number, port)) for number in range(REQUESTS)))
        await bomb(ledger.aclose())

    asyncio.run(run())


def run_killed(url: SecretStr | None, state: Path, port: int, fuse: int) -> int:
    """Return the status of a process that was to be killed at its n-th step."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process: ForkServerProcess = context.Process(
        target=serve_until_killed, args=(url, state, port, fuse)
    )
    process.start()
    process.join(60)
    assert process.exitcode is not None
    code = process.exitcode
    process.close()
    return code


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 10])
async def test_killed_at_any_await_it_accounts_for_every_call(
    ledger_url: SecretStr | None, state: Path, provider: Provider, every: int
) -> None:
    """every: kill at every n-th step only; all steps take a minute."""
    reader = Reader(ledger_url, state)
    port = provider.server_address[1]
    fuse, code = 1 - every, KILLED
    while code == KILLED:
        fuse += every
        code = await asyncio.to_thread(run_killed, ledger_url, state, port, fuse)
        assert code in {KILLED, SURVIVED}
        async with running(ledger_url, state):
            pass
        verify(reader, provider)
    assert fuse > 10
    assert {row["outcome"] for row in reader.rows(exits)} == {"answered", "gateway_lost"}
    assert {row["outcome"] for row in reader.rows(calls) if row["state"] == "unknown"} == {
        "frontier_timeout",
        "gateway_lost",
    }
    reader.close()


def verify(reader: Reader, provider: Provider) -> None:
    """Compare the ledger with the provider's record, and with itself."""
    recorded = reader.rows(calls)
    frontier = {row["id"]: row for row in recorded if row["kind"] == "frontier"}
    assert len(provider.reached) == len(set(provider.reached))
    assert set(provider.reached) <= set(frontier)
    for row in frontier.values():
        assert (row["state"], row["held_usd"], row["cost_usd"] is None) in {
            ("closed", Decimal(0), False),
            ("unknown", WORST, True),
        }
    assert {row["state"] for row in reader.rows(exits)} <= {"closed", "unknown"}
    assert all(row["ended_at"] is not None for row in reader.rows(instances))
    reader.check()
    assert reconcile(reader.database) == []


def close_while_unreachable(
    url: SecretStr, state: Path, acknowledged: "multiprocessing.Queue[int]"
) -> None:
    """Close inputs without a database until killed; acknowledge each that is on disk."""

    async def run() -> None:
        ledger = new_ledger(url, state, Noted(), commit_wait_s=10.0)
        await ledger.start()
        for number in range(10**6):
            entry = entry_of(ledger)
            entry.close(left_locally())
            await entry.written()
            acknowledged.put(number)

    asyncio.run(run())


async def test_killed_while_the_database_is_unreachable_it_loses_no_row_that_was_on_disk(
    state: Path,
) -> None:
    absent = SecretStr(f"postgresql:///x?host={state}")
    context = multiprocessing.get_context("forkserver")
    acknowledged: multiprocessing.Queue[int] = context.Queue()
    process = context.Process(target=close_while_unreachable, args=(absent, state, acknowledged))
    process.start()
    last = 0
    while last < 30:
        last = await asyncio.to_thread(acknowledged.get, True, 60)
    process.kill()
    process.join()
    while not acknowledged.empty():
        last = acknowledged.get()
    folder = state / "ledger" / "spill"
    async with running(None, state):
        await until(lambda: list(folder.glob("*.jsonl")) == [])
    reader = Reader(None, state)
    assert len(reader.rows(exits)) in {last + 1, last + 2, last + 3}
    reader.check()
    reader.close()
