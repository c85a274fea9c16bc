"""Which target is asked when, without any network."""

import asyncio
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.contracts.deadline import Deadline
from serving.contracts.errors import (
    FrontierError,
    FrontierInvalidResponse,
    FrontierRejected,
    FrontierUnavailable,
)
from serving.frontier.failures import may_fall_back
from serving.frontier.frontier import TargetCalls, hedged, in_order

TARGETS = ("a/1", "b/2", "c/3")
OUTCOMES = st.sampled_from([None, FrontierUnavailable, FrontierRejected, FrontierInvalidResponse])


class World:
    """Targets that answer or fail after some ticks of the event loop; None answers."""

    def __init__(
        self,
        outcomes: Mapping[str, type[FrontierError] | None],
        ticks: Mapping[str, int] | None = None,
    ) -> None:
        self.outcomes = outcomes
        self.ticks = ticks or {}
        self.called: list[str] = []
        self.discarded: list[str] = []
        self.lost: list[str] = []
        self.running = 0
        self.most_running = 0

    async def ask(self, target: str) -> str:
        self.called.append(target)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            for _ in range(self.ticks.get(target, 0)):
                await asyncio.sleep(0)
        finally:
            self.running -= 1
        error = self.outcomes[target]
        if error is not None:
            raise error(target)
        return target

    async def discard(self, target: str) -> None:
        self.discarded.append(target)

    def way(self) -> TargetCalls[str]:
        return TargetCalls(self.ask, lambda *_: None, self.discard, self.lost.append)


@settings(deadline=None)
@given(st.tuples(OUTCOMES, OUTCOMES, OUTCOMES))
def test_in_order_and_patient_hedging_do_the_same(
    outcomes: tuple[type[FrontierError] | None, ...],
) -> None:
    by_target = dict(zip(TARGETS, outcomes, strict=True))

    async def run(hedge: bool) -> tuple[object, list[str]]:
        world = World(by_target)
        deadline = Deadline.after(60)
        try:
            if hedge:
                found: object = await hedged(TARGETS, world.way(), deadline, 60.0)
            else:
                found = await in_order(TARGETS, world.way(), deadline)
        except FrontierError as error:
            found = (type(error), error.message)
        return found, world.called

    plain = asyncio.run(run(False))
    assert asyncio.run(run(True)) == plain
    found, called = plain
    ends = [n for n, o in enumerate(outcomes) if o is None or not may_fall_back(o("x"))]
    assert called == list(TARGETS[: ends[0] + 1 if ends else 3])
    assert (found in TARGETS) == (bool(ends) and outcomes[ends[0]] is None)


@settings(deadline=None)
@given(
    st.tuples(OUTCOMES, OUTCOMES, OUTCOMES),
    st.tuples(*[st.integers(0, 6)] * 3),
)
def test_hedging_ends_every_call_and_loses_no_answer(
    outcomes: tuple[type[FrontierError] | None, ...], ticks: tuple[int, ...]
) -> None:
    world = World(dict(zip(TARGETS, outcomes, strict=True)), dict(zip(TARGETS, ticks, strict=True)))

    async def run() -> str | None:
        try:
            return await hedged(TARGETS, world.way(), Deadline.after(60), 0.0)
        except FrontierError:
            return None

    found = asyncio.run(run())
    assert world.running == 0
    assert world.most_running <= 2
    assert len(world.called) == len(set(world.called))
    assert found not in world.discarded
    if found is None:
        assert not [target for target in world.called if world.outcomes[target] is None]


async def test_an_answer_is_preferred_to_an_error_of_the_same_moment() -> None:
    world = World({"a/1": FrontierRejected, "b/2": None, "c/3": None}, {"a/1": 4, "b/2": 3})
    assert await hedged(TARGETS, world.way(), Deadline.after(60), 0.0) == "b/2"


async def test_a_caller_that_leaves_cancels_both() -> None:
    world = World(dict.fromkeys(TARGETS), {"a/1": 10**6, "b/2": 10**6})
    task = asyncio.create_task(hedged(TARGETS, world.way(), Deadline.after(60), 0.0))
    while world.running < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.running == 0
    assert world.lost == ["a/1", "b/2"]


async def test_past_the_deadline_no_further_target_is_asked() -> None:
    for hedge in (False, True):
        world = World({"a/1": FrontierUnavailable, "b/2": None, "c/3": None})
        past = Deadline.after(0)
        way = world.way()
        called = hedged(TARGETS, way, past, 60.0) if hedge else in_order(TARGETS, way, past)
        with pytest.raises(FrontierUnavailable):
            await called
        assert world.called == ["a/1"]
