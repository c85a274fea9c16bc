"""The detector of blocked event loops, on loops that are blocked and on one that is not."""

import asyncio
import time

from .blocked_loop import LoopWatch


def compute(seconds: float) -> None:
    end_s = time.thread_time() + seconds
    while time.thread_time() < end_s:
        pass


async def computes() -> None:
    compute(0.05)


async def sleeps() -> None:
    time.sleep(0.001)  # noqa: ASYNC251  # what the detector is to find


async def yields() -> None:
    for _ in range(20):
        compute(0.005)
        await asyncio.sleep(0)
    await asyncio.to_thread(compute, 0.05)
    await asyncio.to_thread(time.sleep, 0.001)


def test_a_callback_that_computes_for_long_is_found() -> None:
    with LoopWatch(bound_s=0.02) as watch:
        asyncio.run(computes())
    assert len(watch.blocked) == 1
    assert "computes" in watch.blocked[0]


def test_a_sleep_on_the_loop_is_found(loop_watch: LoopWatch) -> None:
    with LoopWatch() as watch:
        asyncio.run(sleeps())
    loop_watch.blocked.clear()
    assert watch.blocked == ["time.sleep(0.001) on the event loop"]


def test_work_in_pieces_and_in_threads_is_allowed() -> None:
    with LoopWatch(bound_s=0.04) as watch:
        asyncio.run(yields())
    assert watch.blocked == []
