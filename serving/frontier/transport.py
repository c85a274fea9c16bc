"""The HTTP client under both SDKs: aiohttp's connections below httpx2's requests.

httpx2's own pool asks the operating system about every idle connection, twice a call: 13 % of the
gateway's processor time on frontier calls. aiohttp learns from the event loop that a connection has
ended.
"""

import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import aiohttp
import httpx2
from multidict import CIMultiDict
from yarl import URL

_KEEP_S = 5.0
"""How long an idle connection is kept: as in the SDKs' own clients."""

_MAX_ERROR_BYTES = 2**20
_PACKED_BYTES = 8 * 1024
_FIRST_ERROR = 400

_MAX_FIELD_BYTES = 64 * 1024
"""Of one line of a response's headers."""

_KEEPALIVE = (
    # A connection on which nothing is sent for minutes, while a model thinks, must not be dropped
    # silently by a router in between. The values are those of Anthropic's SDK.
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5),
)
_MEANT: tuple[tuple[type[Exception], type[httpx2.RequestError]], ...] = (
    # The first that fits. Only the first three say that nothing was sent: a call that may have
    # reached the provider may have been billed.
    (aiohttp.ClientConnectorError, httpx2.ConnectError),
    (aiohttp.ConnectionTimeoutError, httpx2.ConnectTimeout),
    (aiohttp.InvalidURL, httpx2.UnsupportedProtocol),
    (aiohttp.ServerTimeoutError, httpx2.ReadTimeout),
    (aiohttp.ServerDisconnectedError, httpx2.RemoteProtocolError),
    (aiohttp.ClientPayloadError, httpx2.RemoteProtocolError),
    (aiohttp.ClientResponseError, httpx2.RemoteProtocolError),
    (aiohttp.ClientError, httpx2.ReadError),
    (OSError, httpx2.ReadError),
)


class ProviderClient(httpx2.AsyncClient):
    """An httpx2 client that follows no redirect: one would send prompts to an unconfigured host.

    Requests through a proxy that the environment names take httpx2's own transport.
    """

    def __init__(
        self,
        url: str,
        timeout: httpx2.Timeout,
        headers: Mapping[str, str] | None = None,
        key_header: str | None = None,
    ) -> None:
        """url: of the provider. timeout: for each step of a call that states no other.

        headers: added to every request. key_header: carries the key in place of the SDK's header.
        """
        self._added = dict(headers or {})
        self._key_header = key_header
        self._is_encrypted = httpx2.URL(url).scheme != "http"
        super().__init__(base_url=url, timeout=timeout, follow_redirects=False)

    def build_request(self, *args: Any, **kwargs: Any) -> httpx2.Request:
        """Return a request of an SDK with the provider's own headers."""
        # Here and not in the SDKs' own options: both refuse a request without their key header.
        request = super().build_request(*args, **kwargs)
        request.headers.update(self._added)
        if self._key_header is not None:
            bearer = request.headers.pop("authorization", "").removeprefix("Bearer ")
            request.headers[self._key_header] = request.headers.pop("x-api-key", bearer)
        return request

    def _init_transport(self, *_: Any, **__: Any) -> httpx2.AsyncBaseTransport:
        # Plain HTTP needs no certificates, which take 18 ms to read.
        return AiohttpTransport(httpx2.create_ssl_context() if self._is_encrypted else None)


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """Sends httpx2's requests on aiohttp's connections. For one event loop.

    context: for TLS; None where no request is encrypted. Concurrent calls are not limited here.
    """

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self._context = context
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; return its response when the headers have arrived.

        Raises httpx2.RequestError.
        """
        timeout = request.extensions.get("timeout", {})
        try:
            data: Any = request.content or None
        except httpx2.RequestNotRead:
            # A file is read as it is sent.
            data = request.stream
        with _translated():
            response = await self._opened().request(
                request.method,
                URL(str(request.url), encoded=True),
                headers=CIMultiDict(request.headers.multi_items()),
                data=data,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    connect=timeout.get("pool"),
                    sock_connect=timeout.get("connect"),
                    sock_read=timeout.get("read"),
                ),
            )
        return httpx2.Response(
            response.status,
            headers=response.raw_headers,
            stream=_Body(response),
            request=request,
            extensions={
                "http_version": b"HTTP/1.1",
                "reason_phrase": (response.reason or "").encode("ascii", "replace"),
            },
        )

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        # Made at the first request: a session belongs to the loop that runs then.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,
                    keepalive_timeout=_KEEP_S,
                    socket_factory=_kept_alive,
                    ssl=self._context or False,
                ),
                # httpx2 keeps cookies and decodes contents.
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                max_line_size=_MAX_FIELD_BYTES,
                max_field_size=_MAX_FIELD_BYTES,
            )
        return self._session


class _Body(httpx2.AsyncByteStream):
    """The body of a response; closing it before its end closes the connection."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        is_packed = "content-encoding" in self._response.headers
        left = _MAX_ERROR_BYTES // 16 if is_packed else _MAX_ERROR_BYTES
        with _translated():
            async for part in self._response.content.iter_any():
                # A packed piece may unpack to a thousand times its length.
                size = _PACKED_BYTES if is_packed else max(1, len(part))
                for start in range(0, len(part), size):
                    yield part[start : start + size]
                left -= len(part)
                if self._response.status >= _FIRST_ERROR and left < 0:
                    # The SDK reads errors whole; what they say stands at their beginning.
                    return

    async def aclose(self) -> None:
        # After the last byte the connection is back in the pool, and this does nothing.
        self._response.close()


@contextmanager
def _translated() -> Iterator[None]:
    """Raise aiohttp's errors as httpx2's: the SDKs and http_errors know those."""
    try:
        yield
    except (aiohttp.ClientError, OSError) as error:
        meant = next(meant for kind, meant in _MEANT if isinstance(error, kind))
        raise meant(str(error)) from error


def _kept_alive(address: Any) -> socket.socket:
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    for option in _KEEPALIVE:
        made.setsockopt(*option)
    return made
