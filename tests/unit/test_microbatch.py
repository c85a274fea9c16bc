"""Micro-batches: no input waits without a limit, or fails with the cancellation of another."""

import asyncio
import contextvars
import gc
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.contracts.deadline import Deadline
from serving.contracts.engine import ScoreOutput, ScoreWork, ScoringPoint, TokenCounts
from serving.contracts.errors import (
    DeadlineExceeded,
    EngineFailure,
    ModelUnavailable,
    NarrowgateError,
)
from serving.local.microbatch import MicroBatcher

POINT = ScoringPoint((), (1, 2))
LATER = Deadline.after(3600)


def work(number: int) -> ScoreWork:
    return ScoreWork((number,), (POINT,))


def output(item: ScoreWork) -> ScoreOutput:
    return ScoreOutput(((float(item.prompt_token_ids[0]),),), TokenCounts(1, 0, 0))


class Engine:
    """Answers when told to; remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.cancelled = 0
        self.go = asyncio.Event()

    async def send(
        self, works: Sequence[ScoreWork], deadline: Deadline
    ) -> Sequence[ScoreOutput | NarrowgateError]:
        self.batches.append([item.prompt_token_ids[0] for item in works])
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [output(item) for item in works]

    def batcher(self, size: int = 4, concurrent: int = 1) -> MicroBatcher:
        return MicroBatcher(
            self.send,
            max_batch_size=size,
            concurrent_batches=concurrent,
            observe=lambda _: None,
        )


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_first_leaves_at_once_and_the_waiting_leave_together() -> None:
    engine = Engine()
    batcher = engine.batcher()
    tasks = [asyncio.create_task(batcher.submit(work(i), LATER)) for i in range(7)]
    await settle()
    assert engine.batches == [[0]]
    assert batcher.depth == 6
    engine.go.set()
    results = await asyncio.gather(*tasks)
    assert engine.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert [result.logprobs[0][0] for result in results] == [float(i) for i in range(7)]


async def test_as_many_batches_are_under_way_as_allowed() -> None:
    engine = Engine()
    batcher = engine.batcher(size=2, concurrent=2)
    tasks = [asyncio.create_task(batcher.submit(work(i), LATER)) for i in range(6)]
    await settle()
    assert len(engine.batches) == 2
    engine.go.set()
    await asyncio.gather(*tasks)


async def test_one_that_leaves_does_not_take_the_others_along() -> None:
    engine = Engine()
    batcher = engine.batcher()
    first = asyncio.create_task(batcher.submit(work(0), LATER))
    await settle()
    others = [asyncio.create_task(batcher.submit(work(i), LATER)) for i in (1, 2, 3)]
    await settle()
    others[1].cancel()
    await settle()
    engine.go.set()
    await first
    assert (await others[0]).logprobs == ((1.0,),)
    assert (await others[2]).logprobs == ((3.0,),)
    assert engine.batches == [[0], [1, 3]]


async def test_a_batch_that_nobody_waits_for_is_cancelled() -> None:
    engine = Engine()
    batcher = engine.batcher(size=2)
    tasks = [asyncio.create_task(batcher.submit(work(i), LATER)) for i in range(1)]
    await settle()
    tasks[0].cancel()
    await settle()
    assert engine.cancelled == 1
    engine.go.set()
    assert (await batcher.submit(work(9), LATER)).logprobs == ((9.0,),)


async def test_a_batch_does_not_run_in_the_context_of_a_request() -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    seen: list[str] = []

    async def send(
        works: Sequence[ScoreWork], deadline: Deadline
    ) -> Sequence[ScoreOutput | NarrowgateError]:
        seen.append(request.get())
        return [output(item) for item in works]

    batcher = MicroBatcher(send, max_batch_size=4, concurrent_batches=1, observe=lambda _: None)
    request.set("client A")
    await batcher.submit(work(1), LATER)
    assert seen == ["none"]


async def test_the_deadline_holds_in_the_queue() -> None:
    engine = Engine()
    batcher = engine.batcher()
    blocked = asyncio.create_task(batcher.submit(work(0), LATER))
    await settle()
    with pytest.raises(DeadlineExceeded):
        await batcher.submit(work(1), Deadline.after(0.01))
    engine.go.set()
    await blocked
    assert engine.batches == [[0]]


async def test_an_error_of_one_input_is_its_own_and_of_the_batch_everybodys() -> None:
    async def send(
        works: Sequence[ScoreWork], deadline: Deadline
    ) -> Sequence[ScoreOutput | NarrowgateError]:
        if any(item.prompt_token_ids[0] == 13 for item in works):
            raise ModelUnavailable("gone")
        return [
            EngineFailure("bad") if item.prompt_token_ids[0] == 7 else output(item)
            for item in works
        ]

    batcher = MicroBatcher(send, max_batch_size=8, concurrent_batches=1, observe=lambda _: None)
    with pytest.raises(EngineFailure):
        await batcher.submit(work(7), LATER)
    assert (await batcher.submit(work(8), LATER)).logprobs == ((8.0,),)
    with pytest.raises(ModelUnavailable):
        await batcher.submit(work(13), LATER)


async def test_a_bug_in_sending_leaves_nobody_waiting() -> None:
    async def send(
        works: Sequence[ScoreWork], deadline: Deadline
    ) -> Sequence[ScoreOutput | NarrowgateError]:
        return []

    loop = asyncio.get_running_loop()
    reported: list[object] = []
    loop.set_exception_handler(lambda _, context: reported.append(context["message"]))
    batcher = MicroBatcher(send, max_batch_size=8, concurrent_batches=1, observe=lambda _: None)
    with pytest.raises(EngineFailure, match="without an answer"):
        await batcher.submit(work(1), LATER)
    # The slot is free again, and the defect is reported.
    with pytest.raises(EngineFailure, match="without an answer"):
        await batcher.submit(work(2), LATER)
    # The second batch's task ends after its submitter has gone on.
    await asyncio.sleep(0.01)
    gc.collect()
    assert reported == ["Task exception was never retrieved"] * 2


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5), st.integers(1, 3))
def test_every_submitter_gets_its_own_result(pauses: list[int], size: int, concurrent: int) -> None:
    async def scenario() -> None:
        sizes: list[int] = []

        async def send(
            works: Sequence[ScoreWork], deadline: Deadline
        ) -> Sequence[ScoreOutput | NarrowgateError]:
            await asyncio.sleep(0)
            return [output(item) for item in works]

        batcher = MicroBatcher(
            send, max_batch_size=size, concurrent_batches=concurrent, observe=sizes.append
        )

        async def client(number: int, pause: int) -> None:
            for _ in range(pause):
                await asyncio.sleep(0)
            result = await batcher.submit(work(number), LATER)
            assert result.logprobs == ((float(number),),)

        await asyncio.gather(*(client(i, pause) for i, pause in enumerate(pauses)))
        assert sum(sizes) == len(pauses)
        assert max(sizes, default=0) <= size
        assert batcher.depth == 0

    asyncio.run(scenario())
