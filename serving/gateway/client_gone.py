"""Ends work for which nobody waits any more: its client has hung up."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

T = TypeVar("T")

CLIENT_GONE = 499
"""Status of a request whose client hung up, for logs and metrics; nobody receives it."""


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """Return what work returns; None where the client hung up first, and the work was cancelled.

    Call it once the request's body has been read.
    """
    working, gone = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        # Also where this request itself is cancelled, as Ray Serve does for a client that is gone.
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
