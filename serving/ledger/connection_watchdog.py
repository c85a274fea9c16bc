"""The line to the database's server, which another thread may cut where the server fell silent."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import event

from serving.ledger.database import Database

SILENCE_S = 5.0
"""A stopped server's machine still acknowledges bytes, so no time-out of the network's ends it."""


class ConnectionWatchdog:
    """Watches one thread's transactions with a PostgreSQL server; of SQLite there is no line.

    The database must be that thread's alone.
    """

    def __init__(self, database: Database, silence_s: float = SILENCE_S) -> None:
        self._silence_s = silence_s
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._busy_since: float | None = None
        if not database.is_sqlite:
            # First of all listeners: the ones after it already talk to the server.
            event.listen(database.engine, "connect", self._connected, insert=True)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch what is done within."""
        self._busy_since = time.monotonic()
        try:
            yield
        finally:
            self._busy_since = None

    def cut_if_silent(self) -> bool:
        """End the connection where what is watched takes too long; any thread may call it.

        Returns whether there was one to end. What waited for the server fails at once.
        """
        since = self._busy_since
        if since is None or time.monotonic() - since < self._silence_s:
            return False
        with self._lock:
            if self._socket is None:
                return False
            with suppress(OSError):  # the server has ended it
                self._socket.shutdown(socket.SHUT_RDWR)
            self._forget()
        return True

    def close(self) -> None:
        """Let go of the connection."""
        with self._lock:
            self._forget()

    def _connected(self, connection: Any, _: object) -> None:
        with self._lock:
            self._forget()
            # A duplicate: the connection's own number may be closed and given to another file.
            self._socket = socket.fromfd(connection.fileno(), socket.AF_UNSPEC, socket.SOCK_STREAM)

    def _forget(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
