"""How many rows a second a ledger's writer takes when nothing else is done."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from benchmarks.ledger_databases import LOCAL_MODEL, Kept, open_ledger, rows_in
from serving.contracts.answer import Usage
from serving.contracts.deadline import Deadline
from serving.contracts.exits import Exit
from serving.contracts.ledger import DEFAULT_TENANT, CallEnd, Caller

if TYPE_CHECKING:
    from serving.ledger.ledger import DatabaseEntry, DatabaseLedger

Way = Literal["frontier", "local"]

IN_FLIGHT = 256
"""Requests that wait for their rows at once: as many as a transaction takes."""

_WAIT_S = 10.0
_USAGE = Usage(uncached_input_tokens=20, output_tokens=3)


def rows_per_s(kept: Kept, path: Way, model: str, requests: int) -> float:
    """Write the pages of so many requests, all different, and return rows a second; blocking.

    Each page is done when its rows are on disk. model: `provider/model` of frontier calls.
    """
    return asyncio.run(_pushed(kept, path, model, requests))


async def _pushed(kept: Kept, path: Way, model: str, requests: int) -> float:
    ledger = open_ledger(kept.url, kept.state, commit_wait_s=_WAIT_S)
    await ledger.start()
    try:
        page: Callable[[DatabaseEntry, str], Awaitable[None]] = (
            _frontier_page if path == "frontier" else _local_page
        )
        numbers = iter(range(requests))
        before = await asyncio.to_thread(rows_in, kept)
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(IN_FLIGHT):
                group.create_task(_client(ledger, page, numbers, model))
        elapsed_s = time.perf_counter() - started
        return (await asyncio.to_thread(rows_in, kept) - before) / elapsed_s
    finally:
        await ledger.aclose()


async def _client(
    ledger: "DatabaseLedger",
    page: "Callable[[DatabaseEntry, str], Awaitable[None]]",
    numbers: Iterator[int],
    model: str,
) -> None:
    for number in numbers:
        entry = ledger.entry(Caller(DEFAULT_TENANT), f"bench-{number}", "chat", None, 0)
        await page(entry, model)
        await entry.written()


async def _frontier_page(entry: "DatabaseEntry", model: str) -> None:
    call = await entry.open_call(model, Decimal("0.001"), Deadline.after(_WAIT_S))
    call.close(CallEnd("ok", _USAGE, "reported", 0.001))
    entry.close(Exit("bench", "chat", None, "frontier", "requested", model, _USAGE, 0.001))


async def _local_page(entry: "DatabaseEntry", model: str) -> None:
    exit_ = Exit(
        "bench", "chat", None, "local", "requested", LOCAL_MODEL, _USAGE, 0.001, replica_s=0.001
    )
    entry.close(exit_)
