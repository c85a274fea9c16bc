"""Work that a request leads and others may wait for: it outlives its request while they do."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from serving.cache.flight import Flight, Flights, Work
from serving.contracts.batch import deferred
from serving.contracts.deadline import Deadline, deadline_exceeded
from serving.contracts.errors import DeadlineExceeded, NarrowgateError
from serving.pipeline.cache_access import CacheAccess
from serving.pipeline.exit_recorder import RequestRecord

logger = logging.getLogger(__name__)


def lead(
    flights: Sequence[Flight], record: RequestRecord, work: Coroutine[Any, Any, None]
) -> "asyncio.Task[None]":
    """Start the work that answers the flights that a request leads; see `leading`.

    record: as that of `leading`. A request that joins one of the flights extends its deadline.
    """
    led = Work(record.context.deadline, list(flights))
    for flight in flights:
        flight.work = led
    led.task = asyncio.create_task(work)
    led.task.add_done_callback(_log_defect)
    return led.task


async def own_wait(
    futures: Iterable["asyncio.Future[Any]"], record: RequestRecord, own: Deadline
) -> None:
    """Return once one of the futures of led work is done.

    record: of the work. own: the deadline of the request that leads it. Raises DeadlineExceeded
    then where the work goes on for others; other work ends itself at that deadline.
    """
    either = set(futures)
    while True:
        with suppress(TimeoutError):
            async with own.timeout():
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if any(future.done() for future in either):
            return
        if not own.remaining_s():
            break
    if record.context.deadline.is_extended:
        record.abandon(DeadlineExceeded.code)
        raise deadline_exceeded()
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)


@asynccontextmanager
async def leading(
    access: CacheAccess, flights: Sequence[Flight], record: RequestRecord
) -> AsyncIterator[None]:
    """Answer flights in the body, which is work that was started with `lead`.

    record: of the flights' inputs, detached; its lifetime is the body's. A flight that the body
    leaves without a result gets its error; no result where it was cancelled or failed for a defect.
    """
    shared: NarrowgateError | None = None
    try:
        async with record.lifetime():
            yield
    except NarrowgateError as error:
        shared = error
        raise
    finally:
        for flight in flights:
            if not flight.result.done():
                access.fail(flight, shared)


@asynccontextmanager
async def taking_part(
    flights: Flights, joined: Sequence[Flight], led: Sequence[Flight], record: RequestRecord
) -> AsyncIterator[None]:
    """End a request's part in its flights after the body.

    led: those of them that it leads. record: of the inputs that it leads.
    Work for which nobody waits any more is cancelled; it has ended when this returns, so that its
    rows are written before its request ends. Other work continues, and its rows say that the client
    left, or that its request's deadline passed.
    """
    try:
        yield
    finally:
        for flight in joined:
            flights.leave(flight)
        work = led[0].work if led else None
        if work is not None and work.task is not None and not work.task.done():
            await _left(work, work.task, record)


async def _left(work: Work, task: "asyncio.Task[None]", record: RequestRecord) -> None:
    if task.cancelling():
        await asyncio.wait({task})
        # A task that was cancelled before its first step has not entered its record.
        record.close()
    elif any(not flight.result.done() for flight in work.flights):
        record.abandon()


def _log_defect(task: "asyncio.Task[None]") -> None:
    """Log the defect of work whose request was left; other errors were raised to the request."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, NarrowgateError) and deferred(error) is None:
        logger.error("cache.work_failed", exc_info=error)
