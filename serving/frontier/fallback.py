"""Calls targets one after the other or, with hedging, the second while the first sends nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from serving.contracts.deadline import Deadline
from serving.contracts.errors import BudgetExceeded, FrontierError
from serving.frontier.failures import may_fall_back

T = TypeVar("T")

Failure = FrontierError | BudgetExceeded
_FAILURES = (FrontierError, BudgetExceeded)


@dataclass(frozen=True, slots=True)
class TargetCalls(Generic[T]):
    """How targets are called.

    call: calls one target. fell_back: called with (from, to, reason). discard: ends an answer that
    arrived together with the one that is used. lost: called with a target whose call was cancelled.
    after_timeout: a target that timed out is followed by the next, and both may be billed.
    """

    call: Callable[[str], Awaitable[T]]
    fell_back: Callable[[str, str, str], None]
    discard: Callable[[T], Awaitable[None]]
    lost: Callable[[str], None]
    after_timeout: bool = False

    def may_fall_back(self, error: "Failure") -> bool:
        """Return whether the next target may be called after an error."""
        return may_fall_back(error, after_timeout=self.after_timeout)


async def in_order(targets: Sequence[str], calls: TargetCalls[T], deadline: Deadline) -> T:
    """Return the first answer; call a target only when the one before it failed.

    Raises the error of the last target called, or at once one after which none may be called.
    """
    for target, following in zip(targets, [*targets[1:], None], strict=True):
        try:
            return await calls.call(target)
        except _FAILURES as error:
            if following is None or not calls.may_fall_back(error) or not deadline.remaining_s():
                raise
            calls.fell_back(target, following, error.code)
    raise AssertionError("at least one target")


async def hedged(
    targets: Sequence[str], calls: TargetCalls[T], deadline: Deadline, after_s: float
) -> T:
    """As `in_order`, but call the next target also when the first is silent for after_s seconds.

    At most two calls are in progress. The first answer is used and the other call is cancelled;
    both may be billed.
    """
    waiting = list(targets)
    running: dict[asyncio.Task[T], str] = {}
    last: Failure | None = None
    try:
        while running or _go_on(last, waiting, deadline):
            if not running:
                _start(waiting, calls, running)
            may_hedge = bool(waiting) and len(running) == 1
            done, _ = await asyncio.wait(
                running,
                timeout=after_s if may_hedge else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not done:
                calls.fell_back(next(iter(running.values())), waiting[0], "hedge")
                _start(waiting, calls, running)
            for task in sorted(done, key=lambda task: task.exception() is not None):
                target = running.pop(task)
                try:
                    return task.result()
                except _FAILURES as error:
                    last = error
                    if not calls.may_fall_back(error):
                        waiting.clear()
                    if not running and _go_on(last, waiting, deadline):
                        calls.fell_back(target, waiting[0], error.code)
    finally:
        await _end(running, calls)
    assert last is not None
    raise last


def _go_on(last: Failure | None, waiting: Sequence[str], deadline: Deadline) -> bool:
    return bool(waiting) and (last is None or bool(deadline.remaining_s()))


def _start(waiting: list[str], calls: TargetCalls[T], running: dict[asyncio.Task[T], str]) -> None:
    target = waiting.pop(0)
    running[asyncio.ensure_future(calls.call(target))] = target


async def _end(running: dict[asyncio.Task[T], str], calls: TargetCalls[T]) -> None:
    """Cancel running calls and wait for them; end answers that are not used."""
    for task in running:
        task.cancel()
    results = await asyncio.gather(*running, return_exceptions=True)
    for target, result in zip(running.values(), results, strict=True):
        if isinstance(result, asyncio.CancelledError):
            calls.lost(target)
        elif not isinstance(result, BaseException):
            await calls.discard(result)
