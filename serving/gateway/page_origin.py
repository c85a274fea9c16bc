"""Refuses pages of other sites where no key is required: a browser would send their requests."""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.contracts.errors import Forbidden
from serving.gateway.auth import refusal


class OwnPages:
    """Answers 403 to a request of another site's page, for `auth.mode: off`.

    A form needs no preflight, and a name that its owner points at 127.0.0.1 makes any page one of
    the same origin. Programs send no Origin. origins: that may call, `*` for all; their hosts too.
    """

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        self._app = app
        self._origins = frozenset(origins)
        self._hosts = {urlsplit(origin).hostname for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        foreign = self._foreign(Headers(scope=scope)) if scope["type"] == "http" else None
        if foreign is None:
            await self._app(scope, receive, send)
            return
        error = Forbidden(
            f"{foreign}, and without API keys only this machine's own pages and programs may call",
            fix="list it in gateway.cors_origins, or require keys: auth.mode: keys",
        )
        await refusal(error)(scope, receive, send)

    def _foreign(self, headers: Headers) -> str | None:
        if "*" in self._origins:
            return None
        host, origin = headers.get("host", ""), headers.get("origin")
        name = _host_name(host)
        if name not in self._hosts and _is_public(name):
            return f"the request is for host {host[:80]!r}"
        if origin is None or origin in self._origins or origin.partition("//")[2] == host.lower():
            return None
        return f"the request is of a page of {origin[:80]!r}"


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return host


def _is_public(name: str) -> bool:
    """Return whether a name may be one of the internet, which its owner points anywhere."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." in name.rstrip(".") and not name.endswith(".localhost")
    return False
