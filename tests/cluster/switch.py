"""The part of a Service: passes connections to the pod that its selector names."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_CHUNK = 65536


class Switch:
    """A TCP forwarder whose target can be changed. Open connections stay where they are."""

    def __init__(self) -> None:
        self._target: tuple[str, int] | None = None
        self._stopped = asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None] | None] = set()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.port = 0

    def select(self, host: str, port: int = 8000) -> None:
        """Send connections that begin from now on to this pod."""
        self._target = (host, port)

    async def serve(self, started: threading.Event) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.loop, self.port = asyncio.get_running_loop(), server.sockets[0].getsockname()[1]
        started.set()
        async with server:
            await self._stopped.wait()
            server.close()
            for writer in self._open:
                writer.close()
            await asyncio.gather(*filter(None, self._connections))

    def stop(self) -> None:
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self._stopped.set)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._target is not None
        self._connections.add(asyncio.current_task())
        try:
            there, back = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        self._open |= {writer, back}
        await asyncio.gather(_copy(reader, back), _copy(there, writer))
        self._open -= {writer, back}
        self._connections.discard(asyncio.current_task())


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    with suppress(OSError):
        writer.close()


@contextmanager
def switch() -> Iterator[Switch]:
    """Yield a switch that forwards, in a thread of its own."""
    made = Switch()
    started = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(made.serve(started)))
    thread.start()
    assert started.wait(30)
    try:
        yield made
    finally:
        made.stop()
        thread.join(30)
