"""Sends waiting inputs to the engine in batches.

There is no timer: a batch leaves as soon as fewer than `concurrent_batches` are in progress, with
all inputs that wait at that moment. A single client never waits; many clients fill the batches.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from serving.contracts.deadline import Deadline, deadline_exceeded
from serving.contracts.engine import ScoreOutput, ScoreWork
from serving.contracts.errors import EngineFailure, NarrowgateError

Send = Callable[[Sequence[ScoreWork], Deadline], Awaitable[Sequence[ScoreOutput | NarrowgateError]]]


@dataclass(frozen=True, slots=True)
class _Waiting:
    work: ScoreWork
    deadline: Deadline
    result: asyncio.Future[ScoreOutput]


class MicroBatcher:
    """Sends works in batches and returns each submitter its own result.

    send: delivers a batch and returns outputs in its order.
    max_batch_size: works in one batch. concurrent_batches: batches in progress at
    once.
    observe: called with the size of each batch that is sent.
    """

    def __init__(
        self,
        send: Send,
        *,
        max_batch_size: int,
        concurrent_batches: int,
        observe: Callable[[int], None],
    ) -> None:
        self._send = send
        self._max_batch_size = max_batch_size
        self._free_slots = concurrent_batches
        self._observe = observe
        self._waiting: deque[_Waiting] = deque()
        self._in_progress: set[asyncio.Task[None]] = set()

    @property
    def depth(self) -> int:
        """Return how many works wait for a batch."""
        return len(self._waiting)

    async def submit(self, work: ScoreWork, deadline: Deadline) -> ScoreOutput:
        """Return the output of a work.

        Cancelling the caller removes the work from the queue. A batch is cancelled when all its
        submitters are. Raises DeadlineExceeded, EngineFailure, and the engine's errors.
        """
        result: asyncio.Future[ScoreOutput] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(work, deadline, result))
        self._dispatch()
        try:
            async with deadline.timeout():
                return await result
        except TimeoutError as error:
            raise deadline_exceeded() from error

    def _dispatch(self) -> None:
        while self._free_slots > 0 and (batch := self._next_batch()):
            self._free_slots -= 1
            # An empty context: Ray Serve cancels the calls made in the context of an HTTP request
            # when its client disconnects, and this batch belongs to other clients as well.
            task = asyncio.get_running_loop().create_task(
                self._deliver(batch), context=contextvars.Context()
            )
            self._in_progress.add(task)
            task.add_done_callback(self._delivered)

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        while self._waiting and len(batch) < self._max_batch_size:
            waiting = self._waiting.popleft()
            if not waiting.result.done():
                batch.append(waiting)
        return batch

    def _delivered(self, task: asyncio.Task[None]) -> None:
        self._in_progress.discard(task)
        self._free_slots += 1
        self._dispatch()

    async def _deliver(self, batch: list[_Waiting]) -> None:
        self._observe(len(batch))
        latest = Deadline.latest(waiting.deadline for waiting in batch)
        sending = asyncio.ensure_future(self._send([w.work for w in batch], latest))
        left = len(batch)

        def on_done(_: asyncio.Future[ScoreOutput]) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                sending.cancel()

        for waiting in batch:
            waiting.result.add_done_callback(on_done)
        try:
            for waiting, output in zip(batch, await sending, strict=True):
                _finish(waiting.result, output)
        except NarrowgateError as error:
            for waiting in batch:
                _finish(waiting.result, error)
        finally:
            # Also after a defect above: every submitter gets a result.
            for waiting in batch:
                _finish(waiting.result, EngineFailure("the batch ended without an answer"))


def _finish(result: asyncio.Future[ScoreOutput], output: ScoreOutput | NarrowgateError) -> None:
    if result.done():
        return
    if isinstance(output, NarrowgateError):
        result.set_exception(output)
    else:
        result.set_result(output)
