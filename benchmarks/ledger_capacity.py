"""Rows per second of the ledger's writer alone, without HTTP requests."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from benchmarks.ledger_databases import LOCAL_MODEL, LedgerDatabase, open_ledger, rows_in
from serving.contracts.answer import Usage
from serving.contracts.deadline import Deadline
from serving.contracts.exits import Exit
from serving.contracts.ledger import DEFAULT_TENANT, CallEnd, Caller

if TYPE_CHECKING:
    from serving.ledger.ledger import DatabaseEntry, DatabaseLedger

Route = Literal["frontier", "local"]

IN_FLIGHT = 256
"""Requests that wait for their rows at the same time: the batch size of a transaction."""

_WAIT_S = 10.0
_USAGE = Usage(uncached_input_tokens=20, output_tokens=3)


@dataclass(frozen=True, slots=True)
class Written:
    """What writing took. cpu_s: this process's; database_cpu_s: the database's processes'."""

    requests: int
    rows: int
    elapsed_s: float
    cpu_s: float
    database_cpu_s: float


def rows_per_s(database: LedgerDatabase, path: Route, model: str, requests: int) -> float:
    """Write the rows of that many requests and return rows per second; blocking.

    A request is done when its rows are on disk. model: `provider/model` of frontier calls.
    """
    found = write(database, path, model, requests)
    return found.rows / found.elapsed_s


def write(
    database: LedgerDatabase,
    path: Route,
    model: str,
    requests: int,
    in_flight: int = IN_FLIGHT,
    database_cpu_s: Callable[[], float] = float,
) -> Written:
    """Write the rows of that many requests; blocking.

    in_flight: requests that wait for their rows at the same time. database_cpu_s: returns the
    processor time that the database's processes have used.
    """
    return asyncio.run(_written(database, path, model, requests, in_flight, database_cpu_s))


async def _written(
    database: LedgerDatabase,
    path: Route,
    model: str,
    requests: int,
    in_flight: int,
    database_cpu_s: Callable[[], float],
) -> Written:
    ledger = open_ledger(database.url, database.state, commit_wait_s=_WAIT_S)
    await ledger.start()
    try:
        write_rows: Callable[[DatabaseEntry, str], Awaitable[None]] = (
            _frontier_rows if path == "frontier" else _local_rows
        )
        numbers = iter(range(requests))
        before = await asyncio.to_thread(rows_in, database)
        started = time.perf_counter(), time.process_time(), database_cpu_s()
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(_client(ledger, write_rows, numbers, model))
        ended = time.perf_counter(), time.process_time(), database_cpu_s()
        rows = await asyncio.to_thread(rows_in, database) - before
        took = [end - start for start, end in zip(started, ended, strict=True)]
        return Written(requests, rows, *took)
    finally:
        await ledger.aclose()


async def _client(
    ledger: "DatabaseLedger",
    write_rows: "Callable[[DatabaseEntry, str], Awaitable[None]]",
    numbers: Iterator[int],
    model: str,
) -> None:
    for number in numbers:
        entry = ledger.entry(Caller(DEFAULT_TENANT), f"bench-{number}", "chat", None, 0)
        await write_rows(entry, model)
        await entry.written()


async def _frontier_rows(entry: "DatabaseEntry", model: str) -> None:
    call = await entry.open_call(model, Decimal("0.001"), Deadline.after(_WAIT_S))
    call.close(CallEnd("ok", _USAGE, "reported", 0.001))
    entry.close(Exit("bench", "chat", None, "frontier", "requested", model, _USAGE, 0.001))


async def _local_rows(entry: "DatabaseEntry", model: str) -> None:
    exit_ = Exit(
        "bench", "chat", None, "local", "requested", LOCAL_MODEL, _USAGE, 0.001, replica_s=0.001
    )
    entry.close(exit_)
