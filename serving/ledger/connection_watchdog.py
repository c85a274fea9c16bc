"""Cuts the connection to a PostgreSQL server that has stopped answering."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import event

from serving.ledger.database import DEFAULT_TIMEOUTS, Database, Timeouts


class ConnectionWatchdog:
    """Watches the transactions of one thread with a PostgreSQL server; SQLite needs no watching.

    No other thread may use the database. A frozen server's machine still acknowledges bytes, so no
    time-out of the network stack ends such a transaction.
    """

    def __init__(self, database: Database, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> None:
        self._silence_s = timeouts.silence_s
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._busy_since: float | None = None
        self.has_cut = False
        """Whether it ended the connection of the last watched block."""
        if not database.is_sqlite:
            # Before all other listeners, because those already talk to the server.
            event.listen(database.engine, "connect", self._connected, insert=True)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch the block."""
        self.has_cut = False
        self._busy_since = time.monotonic()
        try:
            yield
        finally:
            self._busy_since = None

    def cut_if_unresponsive(self) -> bool:
        """End the connection if the watched block takes longer than silence_s.

        Any thread may call it. Returns whether a connection was ended; the watched block then fails
        at once.
        """
        since = self._busy_since
        if since is None or time.monotonic() - since < self._silence_s:
            return False
        with self._lock:
            if self._socket is None:
                return False
            self.has_cut = True
            with suppress(OSError):  # the server has closed it
                self._socket.shutdown(socket.SHUT_RDWR)
            self._forget()
        return True

    def close(self) -> None:
        """Forget the connection."""
        with self._lock:
            self._forget()

    def _connected(self, connection: Any, _: object) -> None:
        with self._lock:
            self._forget()
            # A duplicate, because the connection's own descriptor may be closed and reused.
            self._socket = socket.fromfd(connection.fileno(), socket.AF_UNSPEC, socket.SOCK_STREAM)

    def _forget(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
