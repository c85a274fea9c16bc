"""Middleware of every HTTP request: its id, one log line, HEAD, and the limit on its body."""

import asyncio
import logging
import re
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import parse_qsl

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.contracts.errors import InvalidRequest
from serving.gateway.errors import error_response, internal_error, too_large

logger = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
ROUTE = "x-narrowgate-route"
REASON = "x-narrowgate-reason"
MODEL = "x-narrowgate-model"
ATTESTATION = "x-narrowgate-attestation"
COST = "x-narrowgate-cost-usd"
GUARANTEE = "x-narrowgate-guarantee"
DEVELOPMENT = "x-narrowgate-development"

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
"""Printable ASCII: the id goes into logs, headers and the ledger."""

_DISCARD_S = 2.0
_DISCARDED_BODIES = 16
"""Of a body that is refused, how much is still read, in multiples of the largest one allowed."""

Finished = Callable[[str, str, int, float], None]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request's id, and the time at which its headers had been read, on both clocks."""

    request_id: str
    at: datetime
    monotonic_s: float


class RequestScope:
    """Gives each request an id and its arrival, and reports it when it has ended.

    finished: gets the path template, method, status and seconds. A client that disconnected before
    the response began has status 499. development: every response states that attestations are not
    enforced.
    """

    def __init__(self, app: ASGIApp, finished: Finished, *, development: bool = False) -> None:
        self._app = app
        self._finished = finished
        self._development = development

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Ray Serve takes the id from the request or makes one, and puts it on the response.
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        arrival = Arrival(request_id, datetime.now(UTC), time.monotonic())
        scope.setdefault("state", {})["arrival"] = arrival
        status, method = 499, scope["method"]

        async def send_with_route(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers.setdefault(ROUTE, "none")
                if self._development:
                    headers[DEVELOPMENT] = "attestation not enforced"
            await send(message)

        try:
            await self._app(scope, receive, send_with_route)
        finally:
            elapsed_s = time.monotonic() - arrival.monotonic_s
            route = scope.get("route")
            endpoint = getattr(route, "path", "unmatched")
            self._finished(endpoint, method, status, elapsed_s)
            logger.info(
                "request_finished id=%s endpoint=%s method=%s status=%d seconds=%.4f",
                request_id,
                endpoint,
                method,
                status,
                elapsed_s,
            )


class InternalErrors:
    """Answers a defect: 500, and a line of the log with the traceback.

    The framework's own answer would be made outside of RequestScope: the log and the metrics would
    say 499, that the client disconnected.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_begun = False

        async def send_noted(message: Message) -> None:
            nonlocal is_begun
            is_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_noted)
        except Exception as error:
            if is_begun:
                # The server breaks the connection off: the client must not take it for whole.
                raise
            # Without the error's message, which may hold the client's text.
            logger.error(  # noqa: TRY400
                "request_failed id=%s error=%s at\n%s",
                scope["state"]["arrival"].request_id,
                type(error).__name__,
                "".join(traceback.format_tb(error.__traceback__)),
            )
            await internal_error()(scope, receive, send)


class HeadAsGet:
    """Answers HEAD as GET without a body, as monitors and load balancers require."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        scope["method"] = "GET"
        await self._app(scope, receive, send_without_body)


class PlainAddress:
    """Refuses the character NUL in a path or a query: PostgreSQL can store no text with it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        field = _field_with_nul(scope) if scope["type"] == "http" else None
        if field is None:
            await self._app(scope, receive, send)
            return
        error = InvalidRequest(
            f"{field!r} of the URL holds the character NUL", field=field, fix="remove %00"
        )
        await error_response(error)(scope, receive, send)


def _field_with_nul(scope: Scope) -> str | None:
    """Return the parameter of a query that holds the character, or `path`; None without it."""
    if "\0" in scope["path"]:
        return "path"
    query = scope["query_string"].decode("latin-1")
    if "%00" not in query and "\0" not in query:
        return None
    pairs = parse_qsl(query, keep_blank_values=True)
    names = (name for name, value in pairs if "\0" in value and "\0" not in name)
    return next(names, "query")


class BodyLimit:
    """Refuses a body over the limit, by its declared length or as it arrives, or one that is late.

    timeout_s: for the whole body, from the end of the headers. A proxy in front only limits
    silence, which a client avoids by sending single bytes. others: limits of single paths, bytes
    and seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_body_bytes: int,
        timeout_s: float,
        others: Mapping[str, tuple[int, float]] | None = None,
    ) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s
        self._message = f"the body exceeds {max_body_bytes} bytes"
        self._others = {path: BodyLimit(app, *limits) for path, limits in (others or {}).items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await self._others.get(scope["path"], self).limited(scope, receive, send)

    async def limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one HTTP request within these limits."""
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self._max_body_bytes:
            send = self._reading_on(Headers(scope=scope), receive, send)
            await too_large(self._message)(scope, receive, send)
            return
        received, is_whole, send_to_client = 0, False, send
        deadline = time.monotonic() + self._timeout_s

        async def receive_bounded() -> Message:
            nonlocal received, is_whole, send_to_client
            if is_whole:
                # The next message is the client's disconnect, which may come at any time.
                return await receive()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body took over {self._timeout_s} s") from None
            if message["type"] == "http.request":
                is_whole = not message.get("more_body", False)
                received += len(message.get("body", b""))
                if received > self._max_body_bytes:
                    if not is_whole:
                        send_to_client = self._reading_on(Headers(scope=scope), receive, send)
                    # The only error class that FastAPI passes on while it reads a body.
                    raise HTTPException(413, self._message)
            return message

        async def send_response(message: Message) -> None:
            await send_to_client(message)

        await self._app(scope, receive_bounded, send_response)

    def _reading_on(self, headers: Headers, receive: Receive, send: Send) -> Send:
        """Return a `send` that reads more of the body before it ends the response.

        A connection that is closed with unread data is reset, and a client that is still sending
        then never sees the response.
        """

        async def send_and_read(message: Message) -> None:
            is_last = message["type"] == "http.response.body" and not message.get("more_body")
            # A client that expects a 100 sends no body after a refusal.
            if is_last and "expect" not in headers:
                await send({**message, "more_body": True})
                await _discard(receive, _DISCARDED_BODIES * self._max_body_bytes)
                message = {"type": "http.response.body"}
            await send(message)

        return send_and_read


async def _discard(receive: Receive, max_bytes: int) -> None:
    """Read the rest of a body, at most so much and for at most _DISCARD_S."""
    left = max_bytes
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
