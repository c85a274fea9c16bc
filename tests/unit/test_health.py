"""Engine health: starting, ready, lost, back; waiters learn of a loss at once."""

import asyncio

import pytest

from serving.contracts.engine import EngineInfo
from serving.contracts.errors import ModelStarting, ModelUnavailable
from serving.local import health as health_module
from serving.local.health import EngineHealth

from .patience import until

INFO = EngineInfo("m", "vllm", "0.29.0", 2048, None, "bfloat16")


class Replica:
    """Answers pings, raises, or keeps silent."""

    def __init__(self) -> None:
        self.mood = "silent"
        self.answered = 0
        self.missed = 0

    async def ping(self, timeout_s: float) -> EngineInfo:
        if self.mood == "silent":
            await asyncio.sleep(timeout_s)
            self.missed += 1
            raise TimeoutError
        if self.mood == "dead":
            raise ModelUnavailable("gone")
        self.answered += 1
        return INFO


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Replica:
    for name in ("_READY_PERIOD_S", "_PING_TIMEOUT_S", "_CONFIRM_TIMEOUT_S"):
        monkeypatch.setattr(health_module, name, 0.01)
    return Replica()


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
    states = []
    for allowed in range(1, health_module._MISSED_PINGS_ALLOWED):
        replica.mood, replica.missed, replica.answered = "silent", 0, 0
        watching = asyncio.create_task(health.watch())
        await until(lambda: replica.missed >= allowed)  # noqa: B023  # awaited at once
        replica.mood = "well"
        states.append(health.state)
        await until(lambda: replica.answered > 0)
        states.append(health.state)
        watching.cancel()
    assert states == ["ready"] * 4
    # One more in a row than is allowed is a loss.
    replica.mood, replica.missed = "silent", 0
    watching = asyncio.create_task(health.watch())
    await until(lambda: health.state == "unavailable")
    assert replica.missed == health_module._MISSED_PINGS_ALLOWED
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
