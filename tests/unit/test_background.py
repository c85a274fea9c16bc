"""Background tasks of a gateway replica: a failure is logged and makes the replica unhealthy."""

import asyncio
import logging

import pytest

from serving.contracts.errors import EngineFailure, NarrowgateError
from serving.contracts.task_spec import TaskSpec
from serving.gateway.context import BackgroundTasks
from serving.gateway.http import build_http

from .scripted import ScriptedFrontier, Server, assert_error


async def _forever() -> None:
    await asyncio.Event().wait()


async def _broken() -> None:
    raise RuntimeError("no event loop")


async def _ended() -> None:
    return


async def test_cancelled_tasks_leave_the_replica_healthy() -> None:
    background = BackgroundTasks()
    async with background.running({"models": _forever()}):
        await asyncio.sleep(0)
    background.check()


@pytest.mark.parametrize("task", [_broken, _ended])
async def test_a_task_that_ends_by_itself_makes_the_replica_unhealthy(
    task: object, caplog: pytest.LogCaptureFixture
) -> None:
    background = BackgroundTasks()
    other = asyncio.Event()

    async def waits() -> None:
        await asyncio.sleep(0.01)
        other.set()
        await asyncio.Event().wait()

    assert callable(task)
    async with background.running({"models": task(), "access": waits()}):
        await other.wait()
        with pytest.raises(EngineFailure, match="'models'"):
            background.check()
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "background_task_failed task=models" in record.getMessage()


async def test_healthz_fails_when_a_background_task_has_failed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await server.client.get("/healthz")).status_code == 200
    async with server.context.background.running({"models": _broken()}):
        await asyncio.sleep(0.01)
        assert_error(await server.client.get("/healthz"), 500, "engine_failure")
    with pytest.raises(NarrowgateError):
        server.context.background.check()


class _FailingFrontier(ScriptedFrontier):
    """Its connections cannot be closed."""

    async def aclose(self) -> None:
        raise RuntimeError("the connections are gone")


async def test_the_end_flushes_ledger_and_decisions_whatever_else_fails(
    specs: dict[str, TaskSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(specs, frontier=_FailingFrontier())
    flushed: list[str] = []

    async def close_ledger() -> None:
        flushed.append("ledger")

    monkeypatch.setattr(server.ledger, "aclose", close_ledger)
    monkeypatch.setattr(server.decisions, "close", lambda: flushed.append("decisions"))
    app = build_http(server.context)
    with pytest.raises(RuntimeError, match="the connections are gone"):
        async with app.router.lifespan_context(app):
            assert flushed == []
    assert flushed == ["ledger", "decisions"]
