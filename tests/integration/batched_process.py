"""A gateway process that can kill itself at any await of the batch lane.

KILL_AT in the environment is `before POINT N` or `after POINT N`: the process gets SIGKILL from
itself when the lane comes to that point for the Nth time, once the file ARMED exists. Points are
the calls that the lane awaits: of the database, by the name of the method, and those of AWAITED.
POINTS is a file to which each point is written that is reached while ARMED exists.
"""

import inspect
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from serving.batch import openai_batches
from serving.batch.batch_calls import VendorCalls
from serving.batch.batched_frontier import BatchedFrontier
from serving.batch.openai_batches import OpenAIBatches
from serving.batch.runner import LineRunner
from serving.batch.scheduler import Scheduler
from serving.frontier.provider import Provider
from serving.ledger.ledger import DatabaseEntry

from . import gateway_process

AWAITED: tuple[tuple[type, str], ...] = (
    (OpenAIBatches, "submit"), (OpenAIBatches, "find"), (OpenAIBatches, "state"),
    (OpenAIBatches, "results"), (OpenAIBatches, "forget"), (VendorCalls, "document"),
    (BatchedFrontier, "complete"), (Provider, "whole"), (LineRunner, "run"),
    (DatabaseEntry, "open_call"), (DatabaseEntry, "written"),
)  # fmt: skip
"""Awaited methods besides those of the database."""

_reached: Counter[str] = Counter()


def _point(when: str, name: str) -> None:
    """Note that a point was reached, and kill the process where it is the one."""
    if not Path(os.environ["ARMED"]).exists():
        return
    point = f"{when} {name}"
    _reached[point] += 1
    with Path(os.environ["POINTS"]).open("a") as file:
        file.write(f"{point}\n")
    if os.environ.get("KILL_AT") == f"{point} {_reached[point]}":
        os.kill(os.getpid(), signal.SIGKILL)


def _noted(owner: type, name: str) -> None:
    """Note each call of a method, before and after it."""
    method, point = getattr(owner, name), f"{owner.__name__}.{name}"

    async def awaited(*arguments: Any, **more: Any) -> Any:
        _point("before", point)
        found = await method(*arguments, **more)
        _point("after", point)
        return found

    async def yielded(*arguments: Any, **more: Any) -> Any:
        _point("before", point)
        async for found in method(*arguments, **more):
            yield found
            _point("after", point)

    setattr(owner, name, yielded if inspect.isasyncgenfunction(method) else awaited)


def _name(function: Callable[..., Any]) -> str:
    while isinstance(function, partial):
        function = function.func
    return function.__qualname__


def main() -> None:
    """Serve until killed."""
    run: Callable[..., Awaitable[Any]] = Scheduler._run

    async def noted(scheduler: Scheduler, function: Callable[..., Any], *arguments: Any) -> Any:
        _point("before", _name(function))
        found = await run(scheduler, function, *arguments)
        _point("after", _name(function))
        return found

    Scheduler._run = noted  # type: ignore[method-assign, assignment]
    for owner, name in AWAITED:
        _noted(owner, name)
    # The fake provider's list shows a batch at once: what a kill left is searched for at once.
    openai_batches.LIST_LAG = timedelta(seconds=1)
    gateway_process.main()


if __name__ == "__main__":
    main()
