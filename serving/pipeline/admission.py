"""The limit on concurrent work of a gateway replica, and the runner that applies it."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Generic

from serving.contracts.deadline import Deadline, deadline_exceeded
from serving.contracts.errors import QueueFull, ShuttingDown
from serving.contracts.ledger import Lane
from serving.contracts.requests import Request
from serving.pipeline.exit_recorder import Outcome, OutcomeStream, RequestRecord
from serving.pipeline.runner import P, R, Runner

_RATE_WINDOW_S = 10.0
_LONGEST_RETRY_AFTER_S = 60.0


def _shutting_down() -> ShuttingDown:
    return ShuttingDown(
        "this server is shutting down", fix="retry on another replica", retry_after_s=5
    )


class AdmissionQueue:
    """Admits inputs in the order of their arrival; refuses what exceeds the queue at once.

    Inputs of the lane `batch` are admitted only while no other input waits. They are never refused
    for the queue's length: the scheduler starts few of them. max_concurrent, max_queued: inputs
    that are processed and that wait.
    """

    def __init__(self, max_concurrent: int, max_queued: int) -> None:
        self._max_concurrent = max_concurrent
        self._max_queued = max_queued
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._deferred: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._longest_wait_s = 0.0
        self._interactive = 0
        self._interactive_at_s = -math.inf
        self._finished: deque[tuple[float, int]] = deque()
        self._idle = asyncio.Event()
        self.active = 0
        self.queued = 0
        self.draining = False

    @asynccontextmanager
    async def admit(
        self, inputs: int, deadline: Deadline, lane: Lane = "interactive"
    ) -> AsyncIterator[None]:
        """Hold a place for a request of that many inputs.

        Raises ShuttingDown, QueueFull with the time to wait, or DeadlineExceeded in the queue.
        """
        if self.draining:
            raise _shutting_down()
        if lane == "batch":
            await self._defer(inputs, deadline)
        else:
            await self._enter_first(inputs, deadline)
        try:
            yield
        finally:
            if lane != "batch":
                self._interactive -= inputs
                self._interactive_at_s = time.monotonic()
            self.active -= inputs
            self._finish(inputs)
            self._wake()
            self._note_idle()

    def idle_s(self) -> float:
        """Return the seconds since an interactive input was here; 0 while one is."""
        return 0.0 if self._interactive else time.monotonic() - self._interactive_at_s

    def take_longest_wait_s(self) -> float:
        """Return the longest wait of an interactive input since the last call, seconds."""
        found, self._longest_wait_s = self._longest_wait_s, 0.0
        return found

    async def drain(self, timeout_s: float) -> None:
        """Refuse new inputs; return when no input is left or the time is up."""
        self.draining = True
        while self._deferred:
            _, turn = self._deferred.popleft()
            if not turn.done():
                turn.set_exception(_shutting_down())
        self._note_idle()
        with suppress(TimeoutError):
            # Not wait_for, which in Python 3.11 can swallow a cancellation.
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()

    async def _enter_first(self, inputs: int, deadline: Deadline) -> None:
        """Enter as an interactive input, which the lane `batch` makes way for."""
        self._interactive += inputs
        begun_s = time.monotonic()
        try:
            await self._enter(inputs, deadline)
        except BaseException:  # cancellation too: it is no longer here
            self._interactive -= inputs
            self._interactive_at_s = time.monotonic()
            raise
        finally:
            waited_s = time.monotonic() - begun_s
            self._longest_wait_s = max(self._longest_wait_s, waited_s)

    async def _defer(self, inputs: int, deadline: Deadline) -> None:
        """Enter once no interactive input waits and there is a place."""
        if not self._waiting and not self._deferred and self._fits(inputs):
            self.active += inputs
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._deferred.append((inputs, turn))
        try:
            async with deadline.timeout():
                await turn
        except BaseException as error:  # cancellation too: the place must be released
            self._deferred = deque(item for item in self._deferred if item[1] is not turn)
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.active -= inputs
            self._wake()
            self._note_idle()
            if isinstance(error, TimeoutError):
                raise deadline_exceeded() from error
            raise

    def _fits(self, inputs: int) -> bool:
        # A request larger than the limit runs alone.
        return self.active + inputs <= self._max_concurrent or not self.active

    async def _enter(self, inputs: int, deadline: Deadline) -> None:
        if not self._waiting and self.active + inputs <= self._max_concurrent:
            self.active += inputs
            return
        if self.queued + inputs > self._max_queued:
            raise QueueFull(
                f"the queue holds {self.queued} inputs, and {self._max_queued} is the most",
                fix="retry after the time in Retry-After",
                retry_after_s=self._retry_after_s(),
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((inputs, turn))
        self.queued += inputs
        try:
            # Not wait_for, which in Python 3.11 can swallow a cancellation.
            async with deadline.timeout():
                await turn
        except BaseException as error:  # cancellation too: the place must be released
            if turn.cancelled():
                self._forget(turn)
            else:
                # Admitted while it was cancelled: release the place.
                self.active -= inputs
            self._wake()
            self._note_idle()
            if isinstance(error, TimeoutError):
                raise deadline_exceeded() from error
            raise

    def _forget(self, turn: asyncio.Future[None]) -> None:
        for item in self._waiting:
            if item[1] is turn:
                self._waiting.remove(item)
                self.queued -= item[0]
                return

    def _note_idle(self) -> None:
        if self.draining and not self.active and not self.queued:
            self._idle.set()

    def _wake(self) -> None:
        while self._waiting:
            inputs, turn = self._waiting[0]
            if not turn.cancelled():
                if self.active + inputs > self._max_concurrent:
                    return
                self.active += inputs
                turn.set_result(None)
            self._waiting.popleft()
            self.queued -= inputs
        while self._deferred and self._fits(self._deferred[0][0]):
            inputs, turn = self._deferred.popleft()
            if not turn.done():
                self.active += inputs
                turn.set_result(None)

    def _finish(self, inputs: int) -> None:
        self._finished.append((time.monotonic(), inputs))
        self._drop_finished()

    def _drop_finished(self) -> None:
        """Drop what finished before the window of the rate."""
        first_s = time.monotonic() - _RATE_WINDOW_S
        while self._finished and self._finished[0][0] < first_s:
            self._finished.popleft()

    def _retry_after_s(self) -> float:
        self._drop_finished()
        rate = sum(inputs for _, inputs in self._finished) / _RATE_WINDOW_S
        if rate == 0.0:
            return _RATE_WINDOW_S
        return min(_LONGEST_RETRY_AFTER_S, max(1.0, self.queued / rate))


class Admitted(Generic[R, P]):
    """Runs another runner within an admission limit. units: admission units of a request."""

    def __init__(
        self, runner: Runner[R, P], limit: AdmissionQueue, units: Callable[[R], int]
    ) -> None:
        self._runner = runner
        self._limit = limit
        self._units = units

    async def whole(self, request: R, plan: P, record: RequestRecord) -> list[Outcome]:
        """Run the other runner once there is a place; release it with the outcomes."""
        lane = record.context.caller.lane
        async with self._limit.admit(self._units(request), plan.deadline, lane):
            return await self._runner.whole(request, plan, record)

    async def stream(self, request: R, plan: P, record: RequestRecord) -> Outcome | OutcomeStream:
        """Run the other runner once there is a place; release it when the reply is sent."""
        lane = record.context.caller.lane
        await record.resources.enter_async_context(
            self._limit.admit(self._units(request), plan.deadline, lane)
        )
        return await self._runner.stream(request, plan, record)


def every_unit(request: Request) -> int:
    """Return the units of a request: choices, prompts or inputs."""
    return request.units


def one_call(request: Request) -> int:
    """Return 1: every call of a provider counts once."""
    return 1
