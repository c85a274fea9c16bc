"""How tests wait for what comes by itself."""

import asyncio
from collections.abc import Callable

GUARD_S = 60.0
"""Longest wait for what is sure to come, on a busy machine too; no test passes because of it.

Much less than pytest gives a test (pyproject.toml), so that a failure names the wait.
"""


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; fail where it does not come to hold."""
    try:
        async with asyncio.timeout(GUARD_S):
            while not condition():  # noqa: ASYNC110  # what is watched has no event
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError("the condition did not come to hold") from None
