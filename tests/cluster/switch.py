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
        self._loop = asyncio.new_event_loop()
        self.port = 0

    def select(self, host: str, port: int = 8000) -> None:
        """Send connections that begin from now on to this pod."""
        self._target = (host, port)

    async def serve(self, started: threading.Event) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        async with server:
            with suppress(asyncio.CancelledError):
                await server.serve_forever()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._target is not None
        try:
            there, back = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, back), _copy(there, writer))


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

    def run() -> None:
        asyncio.set_event_loop(made._loop)
        with suppress(asyncio.CancelledError):
            made._loop.run_until_complete(made.serve(started))

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(30)
    try:
        yield made
    finally:
        for task in asyncio.all_tasks(made._loop):
            made._loop.call_soon_threadsafe(task.cancel)
        thread.join(30)
