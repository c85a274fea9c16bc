"""Engine health: starting, ready, lost, back; waiters learn of a loss at once."""

import asyncio
from collections.abc import Callable

import pytest

from serving.contracts.engine import EngineInfo
from serving.contracts.errors import ModelStarting, ModelUnavailable
from serving.local import health as health_module
from serving.local.health import EngineHealth

INFO = EngineInfo("m", "vllm", "0.29.0", 2048, None, "bfloat16")


class Replica:
    """Answers pings, raises, or keeps silent."""

    def __init__(self) -> None:
        self.mood = "silent"

    async def ping(self, timeout_s: float) -> EngineInfo:
        if self.mood == "silent":
            await asyncio.sleep(timeout_s)
            raise TimeoutError
        if self.mood == "dead":
            raise ModelUnavailable("gone")
        return INFO


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Replica:
    for name in ("_READY_PERIOD_S", "_PING_TIMEOUT_S", "_CONFIRM_TIMEOUT_S"):
        monkeypatch.setattr(health_module, name, 0.01)
    return Replica()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # the state has no event
            await asyncio.sleep(0.005)


async def test_from_starting_to_ready_to_lost_and_back(replica: Replica) -> None:
    health = EngineHealth("m", replica.ping)
    with pytest.raises(ModelStarting) as caught:
        health.require_ready()
    assert caught.value.retry_after_s
    watching = asyncio.create_task(health.watch())
    await asyncio.sleep(0.05)
    assert health.state == "starting"
    replica.mood = "well"
    await until(lambda: health.state == "ready")
    assert health.require_ready() == INFO
    replica.mood = "silent"
    await until(lambda: health.state == "unavailable")
    with pytest.raises(ModelUnavailable):
        health.require_ready()
    replica.mood = "well"
    await until(lambda: health.state == "ready")
    watching.cancel()


async def test_one_late_answer_is_not_a_loss(replica: Replica) -> None:
    health = EngineHealth("m", replica.ping)
    replica.mood = "well"
    await health.confirm()
    replica.mood = "silent"
    watching = asyncio.create_task(health.watch())
    await asyncio.sleep(0.015)
    replica.mood = "well"
    await asyncio.sleep(0.03)
    assert health.state == "ready"
    watching.cancel()


async def test_a_loss_wakes_whoever_waits_for_a_call(replica: Replica) -> None:
    health = EngineHealth("m", replica.ping)
    replica.mood = "well"
    await health.confirm()
    with health.until_lost() as lost:
        assert not lost.done()
        replica.mood = "dead"
        with pytest.raises(ModelUnavailable):
            await health.confirm()
        assert lost.done()
