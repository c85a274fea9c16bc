"""Work that a request leads and others may wait for: it outlives its request while they do."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from serving.cache.flight import Flight, Flights, Work
from serving.contracts.errors import NarrowgateError
from serving.pipeline.cache_access import CacheAccess
from serving.pipeline.exit_recorder import RequestRecord

logger = logging.getLogger(__name__)


def led_work(
    access: CacheAccess,
    flights: Sequence[Flight],
    record: RequestRecord,
    answer: Callable[[], Awaitable[None]],
) -> "asyncio.Task[None]":
    """Start to answer the flights that a request leads. record: detached, entered here.

    A flight that `answer` leaves without a result gets the error; no result where it was cancelled
    or failed for a defect.
    """
    work = Work(list(flights))
    for flight in flights:
        flight.work = work
    work.task = asyncio.create_task(_answered(access, flights, record, answer))
    work.task.add_done_callback(_log_defect)
    return work.task


async def _answered(
    access: CacheAccess,
    flights: Sequence[Flight],
    record: RequestRecord,
    answer: Callable[[], Awaitable[None]],
) -> None:
    shared: NarrowgateError | None = None
    try:
        async with record:
            await answer()
    except NarrowgateError as error:
        shared = error
        raise
    finally:
        for flight in flights:
            if not flight.result.done():
                access.fail(flight, shared)


async def leave(
    flights: Flights, joined: Sequence[Flight], work: Work | None, record: RequestRecord
) -> None:
    """End a request's part in its flights. work: that it leads, with that work's record.

    Work for which nobody waits any more is cancelled; it has ended when this returns, so that its
    rows are written before its request ends. Other work continues, and its rows say that the client
    left.
    """
    for flight in joined:
        flights.leave(flight)
    if work is None or work.task is None or work.task.done():
        return
    if work.task.cancelling():
        await asyncio.wait({work.task})
        # A task that was cancelled before its first step has not entered its record.
        record.close()
    elif any(not flight.result.done() for flight in work.flights):
        record.abandon()


def _log_defect(task: "asyncio.Task[None]") -> None:
    """Log the defect of work whose request was left; other errors were raised to the request."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, NarrowgateError):
        logger.error("cache.work_failed", exc_info=error)
