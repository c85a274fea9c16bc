"""The tasks that a gateway replica runs beside its requests."""

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager

from serving.contracts.errors import EngineFailure

logger = logging.getLogger(__name__)


class BackgroundTasks:
    """Runs tasks until they are cancelled. One that ends by itself makes the replica unhealthy.

    Without such a task the replica would go on with models, keys or claims that no longer change.
    """

    def __init__(self) -> None:
        self._failure: str | None = None

    @asynccontextmanager
    async def running(
        self, tasks: Mapping[str, Coroutine[None, None, None]]
    ) -> AsyncIterator[None]:
        """Run tasks beside the body, which goes on when one fails. tasks: by name, for the log."""
        running = [asyncio.create_task(task, name=name) for name, task in tasks.items()]
        for task in running:
            task.add_done_callback(self._ended)
        try:
            yield
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def check(self) -> None:
        """Raise EngineFailure where a task has failed; Ray Serve then replaces the replica."""
        if self._failure is not None:
            raise EngineFailure(
                f"the background task {self._failure!r} of this gateway replica has failed",
                fix="its log has the event background_task_failed with the error",
            )

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        name, error = task.get_name(), task.exception()
        logger.error("background_task_failed task=%s error=%r", name, error, exc_info=error)
        self._failure = name
