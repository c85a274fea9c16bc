"""The HTTP client under the SDKs: what aiohttp raises, and what it sends, as httpx2 has it."""

import asyncio
import inspect
import io
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp
import httpx2
import pytest
from aiohttp import web

from serving.contracts.errors import FrontierInvalidResponse
from serving.frontier.http_errors import translate_transport
from serving.frontier.sdk_api import read_document
from serving.frontier.transport import AiohttpTransport, ProviderClient, _translated

TIMEOUT = httpx2.Timeout(2.0, connect=2.0, pool=None)
NOTHING_SENT = {
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.InvalidURL,
}


@asynccontextmanager
async def served(handle: object) -> AsyncIterator[str]:
    """Yield the URL of a server with one handler for every request."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)  # type: ignore[arg-type]
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    (port,) = {item.getsockname()[1] for item in site._server.sockets}  # type: ignore[attr-defined]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


def test_an_error_says_that_nothing_was_sent_only_where_no_connection_was_made() -> None:
    classes = [
        kind
        for _, kind in inspect.getmembers(aiohttp, inspect.isclass)
        if issubclass(kind, aiohttp.ClientError)
    ]
    assert len(classes) > 20
    for kind in [*classes, ConnectionResetError, BrokenPipeError]:
        # Their texts need arguments that differ from class to class.
        error = type(kind.__name__, (kind,), {"__str__": lambda _: "a reason"})
        with pytest.raises(httpx2.RequestError) as caught, _translated():
            raise error.__new__(error)
        found = translate_transport(caught.value, "openai")
        was_reached = "may have been billed" in found.message
        assert was_reached != any(issubclass(kind, item) for item in NOTHING_SENT), kind


async def test_a_redirect_is_not_followed_and_cookies_are_sent_once() -> None:
    seen: list[web.BaseRequest] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        seen.append(request)
        headers = {"location": "http://127.0.0.1:1/", "set-cookie": "a=1"}
        return web.Response(status=307, headers=headers)

    async with served(handle) as url, ProviderClient(url, TIMEOUT) as client:
        first = await client.post("/v1", json={"a": "ü"})
        await client.post("/v1", json={})
    assert first.status_code == 307
    assert len(seen) == 2
    assert seen[1].headers.getall("cookie") == ["a=1"]
    for name in ("content-length", "content-type", "user-agent", "host", "accept-encoding"):
        assert len(seen[0].headers.getall(name)) == 1


async def test_a_body_that_breaks_off_is_an_error_and_never_a_whole_answer() -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-length": "100"})
        await response.prepare(request)
        await response.write(b"half")
        assert request.transport is not None
        request.transport.abort()
        return response

    async with served(handle) as url, ProviderClient(url, TIMEOUT) as client:
        with pytest.raises(httpx2.RemoteProtocolError):
            await client.post("/v1", json={})


async def test_an_answer_that_is_left_closes_its_connection() -> None:
    closed = asyncio.Event()

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 1000)
                await asyncio.sleep(0.01)
        except ConnectionError:
            closed.set()
            raise

    async with served(handle) as url, ProviderClient(url, TIMEOUT) as client:
        async with client.stream("POST", "/v1") as response:
            await anext(response.aiter_raw())
        await asyncio.wait_for(closed.wait(), 5.0)


async def test_a_connection_is_used_again_after_a_whole_answer() -> None:
    ports: set[object] = set()

    async def handle(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        ports.add(request.transport.get_extra_info("peername"))
        return web.Response(body=b"x" * 200_000)

    async with served(handle) as url, ProviderClient(url, TIMEOUT) as client:
        for _ in range(5):
            assert len((await client.post("/v1", json={})).content) == 200_000
    assert len(ports) == 1


async def test_a_file_is_uploaded_as_it_is_read() -> None:
    found: list[tuple[str | None, bytes]] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        found.append((request.headers.get("content-length"), await request.read()))
        return web.Response(text="{}")

    file = io.BytesIO(b"line\n" * 100_000)
    async with served(handle) as url, ProviderClient(url, TIMEOUT) as client:
        await client.post("/v1/files", files={"file": file}, data={"purpose": "batch"})
    ((length, body),) = found
    assert length == str(len(body))
    assert file.getvalue() in body


async def test_silence_is_a_read_timeout_and_no_server_a_connect_error() -> None:
    async def handle(_: web.BaseRequest) -> web.Response:
        await asyncio.sleep(10.0)
        raise AssertionError("nobody waits")

    timeout = httpx2.Timeout(0.2, pool=None)
    async with served(handle) as url, ProviderClient(url, timeout) as client:
        with pytest.raises(httpx2.ReadTimeout):
            await client.post("/v1", json={})
    async with ProviderClient("http://127.0.0.1:1", TIMEOUT) as client:
        with pytest.raises(httpx2.ConnectError):
            await client.post("/v1", json={})


async def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    async def handle(request: web.BaseRequest) -> web.Response:
        seen.append(str(request.url))
        return web.Response(text="{}")

    async with served(handle) as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with ProviderClient("http://provider.invalid", TIMEOUT) as client:
            assert (await client.post("/v1/x", json={})).status_code == 200
    assert seen == ["http://provider.invalid/v1/x"]


def test_without_a_proxy_requests_take_aiohttp() -> None:
    client = ProviderClient("https://api.example.org", TIMEOUT)
    assert isinstance(client._transport, AiohttpTransport)


@pytest.mark.parametrize("is_packed", [False, True])
async def test_an_answer_without_end_is_not_read_to_its_end(*, is_packed: bool) -> None:
    packer = zlib.compressobj(9, wbits=31)
    sent: list[int] = []

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        headers = {"content-encoding": "gzip"} if is_packed else {}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        piece = b" " * 2**20
        with suppress(ConnectionError):
            while len(sent) < 1000:
                sent.append(1)
                data = packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)
                await response.write(data if is_packed else piece)
                # Packed pieces never fill the socket: a write alone lets nobody else run.
                await asyncio.sleep(0)
        return response

    async with served(handle) as url, ProviderClient(url, TIMEOUT) as client:
        tracemalloc.start()
        try:
            async with client.stream("POST", "/v1") as response:
                with pytest.raises(FrontierInvalidResponse, match="longer than"):
                    await read_document(response.aiter_bytes(), "house", ())
            assert tracemalloc.get_traced_memory()[1] < 150 * 2**20
        finally:
            tracemalloc.stop()
    assert is_packed or len(sent) < 1000


async def test_of_an_error_without_end_the_beginning_is_read() -> None:
    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(status=500)
        await response.prepare(request)
        with suppress(ConnectionError):
            for _ in range(1000):
                await response.write(b"no! " * 2**18)
        return response

    async with served(handle) as url, ProviderClient(url, TIMEOUT) as client:
        answer = await client.post("/v1", json={})
    assert answer.status_code == 500
    assert 2**20 <= len(answer.content) < 4 * 2**20


async def test_an_error_of_usual_length_is_read_whole() -> None:
    async def handle(request: web.BaseRequest) -> web.Response:
        return web.Response(status=429, body=b"x" * 500_000)

    async with served(handle) as url, ProviderClient(url, TIMEOUT) as client:
        assert len((await client.post("/v1", json={})).content) == 500_000
