"""AdmissionQueue: bounded work, bounded queue, an honest Retry-After, and a drain that ends."""

import asyncio
import itertools
import tracemalloc
from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.contracts.deadline import Deadline
from serving.contracts.errors import DeadlineExceeded, QueueFull, ShuttingDown
from serving.pipeline.admission import AdmissionQueue

from .patience import GUARD_S

LATER = Deadline.after(3600)


async def hold(admission: AdmissionQueue, inputs: int, release: asyncio.Event) -> None:
    async with admission.admit(inputs, LATER):
        await release.wait()


async def test_beyond_the_queue_a_request_is_refused_at_once() -> None:
    admission, release = AdmissionQueue(2, 3), asyncio.Event()
    tasks = [asyncio.create_task(hold(admission, 1, release)) for _ in range(5)]
    await asyncio.sleep(0)
    assert (admission.active, admission.queued) == (2, 3)
    with pytest.raises(QueueFull) as caught:
        async with admission.admit(1, LATER):
            pass
    assert 1 <= (caught.value.retry_after_s or 0) <= 60
    release.set()
    await asyncio.gather(*tasks)
    assert (admission.active, admission.queued) == (0, 0)


async def test_a_deadline_passes_in_the_queue_and_the_place_is_free_again() -> None:
    admission, release = AdmissionQueue(1, 5), asyncio.Event()
    first = asyncio.create_task(hold(admission, 1, release))
    await asyncio.sleep(0)
    with pytest.raises(DeadlineExceeded):
        async with admission.admit(1, Deadline.after(0.01)):
            pass
    assert admission.queued == 0
    release.set()
    await first


async def test_a_large_request_is_not_overtaken_for_ever() -> None:
    admission, release = AdmissionQueue(4, 10), asyncio.Event()
    small = asyncio.create_task(hold(admission, 1, release))
    await asyncio.sleep(0)
    large = asyncio.create_task(hold(admission, 4, release))
    await asyncio.sleep(0)
    late = asyncio.create_task(hold(admission, 1, release))
    await asyncio.sleep(0)
    assert (admission.active, admission.queued) == (1, 5)
    release.set()
    await asyncio.gather(small, large, late)


async def test_draining_refuses_the_new_and_waits_for_the_old() -> None:
    admission, release = AdmissionQueue(2, 2), asyncio.Event()
    task = asyncio.create_task(hold(admission, 1, release))
    await asyncio.sleep(0)
    draining = asyncio.create_task(admission.drain(60))
    await asyncio.sleep(0)
    with pytest.raises(ShuttingDown):
        async with admission.admit(1, LATER):
            pass
    assert not draining.done()
    release.set()
    await asyncio.gather(task, draining)


async def test_draining_ends_with_its_time_and_when_nothing_runs() -> None:
    admission, release = AdmissionQueue(2, 2), asyncio.Event()
    await admission.drain(60)
    busy = AdmissionQueue(2, 2)
    task = asyncio.create_task(hold(busy, 1, release))
    await asyncio.sleep(0)
    await busy.drain(0.01)
    assert busy.active == 1
    release.set()
    await task


@pytest.mark.parametrize("steps", range(6))
async def test_a_drain_is_cancelled_also_when_the_last_input_has_just_left(steps: int) -> None:
    """asyncio.wait_for of Python 3.11 returned as if nothing had cancelled it."""
    admission, release = AdmissionQueue(1, 0), asyncio.Event()
    task = asyncio.create_task(hold(admission, 1, release))
    await asyncio.sleep(0)
    drain = asyncio.create_task(admission.drain(60.0))
    await asyncio.sleep(0)
    release.set()
    await task
    for _ in range(steps):
        await asyncio.sleep(0)
    was_asked = drain.cancel()
    with suppress(asyncio.CancelledError):
        await drain
    # A drain that had returned before cannot be cancelled.
    assert drain.cancelled() == was_asked


async def test_memory_does_not_grow_with_the_requests_that_finished(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    admission = AdmissionQueue(max_concurrent=8, max_queued=8)
    now_s = itertools.count(step=0.02)
    clock = SimpleNamespace(monotonic=lambda: next(now_s))
    monkeypatch.setattr("serving.pipeline.admission.time", clock)

    async def finish(count: int) -> int:
        for _ in range(count):
            async with admission.admit(1, LATER):
                pass
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = await finish(1_000)
        assert await finish(10_000) - before < 20_000
    finally:
        tracemalloc.stop()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 3), st.booleans()), max_size=25),
    st.integers(4, 8),
    st.integers(0, 10),
)
def test_the_bounds_hold_and_everything_is_given_back(
    requests: list[tuple[int, int, bool]], max_concurrent: int, max_queued: int
) -> None:
    async def scenario() -> None:
        admission = AdmissionQueue(max_concurrent, max_queued)

        async def request(inputs: int, rounds: int) -> None:
            try:
                async with admission.admit(inputs, LATER):
                    for _ in range(rounds):
                        assert admission.active <= max_concurrent
                        assert admission.queued <= max_queued
                        await asyncio.sleep(0)
            except QueueFull:
                return

        tasks = []
        for inputs, rounds, cancelled in requests:
            task = asyncio.create_task(request(inputs, rounds))
            tasks.append(task)
            await asyncio.sleep(0)
            if cancelled:
                task.cancel()
        await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), timeout=GUARD_S)
        assert (admission.active, admission.queued) == (0, 0)

    asyncio.run(scenario())
