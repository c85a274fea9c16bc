"""Two kinds of engine work never overlap, and every waiter is admitted."""

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from serving.local.step_separation import StepSeparation

from .patience import GUARD_S


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 4), st.booleans()), max_size=20))
def test_kinds_never_overlap_whoever_is_cancelled(steps: list[tuple[str, int, bool]]) -> None:
    async def scenario() -> None:
        kinds = StepSeparation()
        inside: list[str] = []
        finished = 0

        async def holder(kind: str, rounds: int) -> None:
            nonlocal finished
            async with kinds.hold(kind):
                inside.append(kind)
                try:
                    for _ in range(rounds):
                        assert set(inside) == {kind}
                        await asyncio.sleep(0)
                finally:
                    inside.remove(kind)
            finished += 1

        tasks = []
        for kind, rounds, cancelled in steps:
            task = asyncio.create_task(holder(kind, rounds))
            tasks.append((task, cancelled))
            await asyncio.sleep(0)
            if cancelled:
                task.cancel()
        results = await asyncio.wait_for(
            asyncio.gather(*(task for task, _ in tasks), return_exceptions=True), timeout=GUARD_S
        )
        assert all(
            result is None or isinstance(result, asyncio.CancelledError) for result in results
        )
        assert finished >= sum(not cancelled for _, cancelled in tasks)

    asyncio.run(scenario())


async def test_a_waiter_of_the_other_kind_is_not_overtaken() -> None:
    kinds = StepSeparation()
    order: list[str] = []
    release = asyncio.Event()

    async def hold(kind: str, name: str) -> None:
        async with kinds.hold(kind):
            order.append(name)
            await release.wait()

    tasks = []
    for kind, name in (("a", "a1"), ("b", "b1"), ("a", "a2")):
        tasks.append(asyncio.create_task(hold(kind, name)))
        await asyncio.sleep(0)
    assert order == ["a1"]
    release.set()
    await asyncio.gather(*tasks)
    assert order == ["a1", "b1", "a2"]
