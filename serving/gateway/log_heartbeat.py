"""A line a minute, and a metric that shows whether the replica's log file received it.

A library that reconfigures logging can close our handlers; then nothing is logged.
"""

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from logging.handlers import MemoryHandler

logger = logging.getLogger(__name__)

_TAIL_BYTES = 65_536


class LogHeartbeat:
    """Writes the line `log.heartbeat` and looks for it in the log's files.

    written: receives the Unix time of each line that every file received.
    """

    def __init__(self, written: Callable[[float], None], every_s: float = 60.0) -> None:
        self._written = written
        self._every_s = every_s

    async def watch(self) -> None:
        """Write lines until cancelled."""
        while True:
            await asyncio.to_thread(self.beat)
            await asyncio.sleep(self._every_s)

    def beat(self) -> bool:
        """Write one line and return whether the log received it. Blocking: reads the files' ends.

        False where no handler would write it. A handler without a file counts where its stream is
        open.
        """
        mark, began_s = uuid.uuid4().hex, time.time()
        logger.info("log.heartbeat mark=%s", mark)
        handlers = list(_handlers(logger)) if logger.isEnabledFor(logging.INFO) else []
        received = bool(handlers) and all(_has(handler, mark) for handler in handlers)
        if received:
            self._written(began_s)
        return received


def _handlers(of: logging.Logger) -> Iterator[logging.Handler]:
    """Return the handlers that a logger's lines reach, those behind buffers in their place."""
    current: logging.Logger | None = of
    while current is not None:
        for handler in current.handlers:
            handler.flush()
            target = handler.target if isinstance(handler, MemoryHandler) else None
            yield target or handler
        current = current.parent if current.propagate else None


def _has(handler: logging.Handler, mark: str) -> bool:
    if isinstance(handler, MemoryHandler):
        # It was closed: lines that it takes are lost.
        return False
    path = getattr(handler, "baseFilename", None)
    if path is None:
        return not getattr(getattr(handler, "stream", None), "closed", False)
    try:
        with open(path, "rb") as file:  # noqa: PTH123  # a path of the logging module
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            return mark.encode() in file.read()
    except OSError:
        return False
