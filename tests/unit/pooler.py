"""A transaction pooler in front of a real PostgreSQL server, as PgBouncer is one.

Each transaction of a client runs in one of a few sessions that all clients share. `options` of a
client are ignored or, as PgBouncer does unless told otherwise, refused.
"""

import queue
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import parse_qs, urlsplit

_PROTOCOL, _SSL_REQUEST = 196608, 80877103
_STARTUP = ("server_version", "server_encoding", "client_encoding", "integer_datetimes",
            "standard_conforming_strings", "DateStyle", "TimeZone")  # fmt: skip


def _exactly(stream: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        part = stream.recv(count - len(found))
        if not part:
            raise ConnectionError
        found += part
    return found


def _message(stream: socket.socket) -> tuple[bytes, bytes]:
    """Return a message's type and the whole of it."""
    head = _exactly(stream, 5)
    return head[:1], head + _exactly(stream, struct.unpack("!i", head[1:])[0] - 4)


def _packed(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


class _Pooler:
    def __init__(self, url: str, sessions: int, *, ignores_options: bool) -> None:
        parts = urlsplit(url)
        self._socket = parse_qs(parts.query)["host"][0] + "/.s.PGSQL.5432"
        self._user, self._database = parts.username or "postgres", parts.path[1:]
        self._ignores_options = ignores_options
        self._parameters: dict[bytes, bytes] = {}
        self._free: queue.LifoQueue[socket.socket] = queue.LifoQueue()
        self.sessions = [self._session() for _ in range(sessions)]
        for one in self.sessions:
            self._free.put(one)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.clients: list[socket.socket] = []
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def _session(self) -> socket.socket:
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(self._socket)
        names = f"user\0{self._user}\0database\0{self._database}\0client_encoding\0utf8\0\0"
        body = struct.pack("!i", _PROTOCOL) + names.encode()
        stream.sendall(struct.pack("!i", len(body) + 4) + body)
        kind = b""
        while kind != b"Z":
            kind, whole = _message(stream)
            assert kind != b"E", whole
            if kind == b"S":
                name, value, _ = whole[5:].split(b"\0")
                self._parameters[name] = value
        return stream

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.clients.append(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(ConnectionError, OSError):
            if not self._greet(client):
                return
            while True:
                first = _message(client)
                if first[0] == b"X":
                    return
                session = self._free.get()
                try:
                    self._transaction(client, session, first)
                except (ConnectionError, OSError):
                    # What is left of a transaction ends with its session.
                    session.close()
                    session = self._session()
                    self.sessions.append(session)
                    raise
                finally:
                    self._free.put(session)

    def _greet(self, client: socket.socket) -> bool:
        while True:
            body = _exactly(client, struct.unpack("!i", _exactly(client, 4))[0] - 4)
            if struct.unpack("!i", body[:4])[0] != _SSL_REQUEST:
                break
            client.sendall(b"N")
        if b"\0options\0" in body and not self._ignores_options:
            text = b"SFATAL\0C08P01\0Munsupported startup parameter: options\0\0"
            client.sendall(_packed(b"E", text))
            return False
        client.sendall(_packed(b"R", struct.pack("!i", 0)))
        for name in _STARTUP:
            value = self._parameters[name.encode()]
            client.sendall(_packed(b"S", name.encode() + b"\0" + value + b"\0"))
        client.sendall(_packed(b"K", struct.pack("!ii", 77, 77)) + _packed(b"Z", b"I"))
        return True

    def _transaction(
        self, client: socket.socket, session: socket.socket, first: tuple[bytes, bytes]
    ) -> None:
        """Pass messages on until the server is idle outside a transaction."""
        awaited, state = 0, b""
        pending: list[tuple[bytes, bytes]] = [first]
        while awaited or pending or state != b"I":
            for kind, whole in pending:
                session.sendall(whole)
                awaited += kind in (b"Q", b"S")
            pending = []
            for stream in select.select([client, session], [], [])[0]:
                if stream is client:
                    pending.append(_message(client))
                    continue
                kind, whole = _message(session)
                client.sendall(whole)
                if kind == b"Z":
                    awaited, state = awaited - 1, whole[5:]


@contextmanager
def pooled(url: str, sessions: int = 4, *, ignores_options: bool = True) -> Iterator[str]:
    """Yield the URL of a pooler with some sessions in front of a database."""
    pooler = _Pooler(url, sessions, ignores_options=ignores_options)
    port = pooler.listener.getsockname()[1]
    parts = urlsplit(url)
    try:
        yield f"postgresql://{parts.username or 'postgres'}@127.0.0.1:{port}{parts.path}"
    finally:
        # Only this ends a thread that waits in one of them.
        pooler.listener.shutdown(socket.SHUT_RDWR)
        pooler.listener.close()
        pooler.thread.join()
        for stream in [*pooler.clients, *pooler.sessions]:
            with suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
            stream.close()
