"""Who sends a request: the API key becomes a caller before anything else is read."""

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.contracts.auth import Directory
from serving.contracts.errors import Forbidden, NarrowgateError, Unauthenticated
from serving.contracts.ledger import DEFAULT_TENANT, Caller
from serving.gateway.errors import error_response

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"})
"""For probes, scrapers and readers: what they show is no tenant's."""

_ADMIN = "/v1/admin"


class Authentication:
    """Puts the request's Caller into scope["state"]["caller"], or refuses it.

    Admin keys are for the paths under /v1/admin, and those paths for admin keys. Open paths get no
    caller. enforced: False takes everybody for the default tenant, and for an admin on admin paths.
    """

    def __init__(self, app: ASGIApp, directory: Directory, *, enforced: bool) -> None:
        self._app = app
        self._directory = directory
        self._enforced = enforced

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # The router's own reading: where another one differed, a path could pass for another.
        path = get_route_path(scope)
        if path not in OPEN_PATHS:
            try:
                caller = self._caller(path, Headers(scope=scope))
            except NarrowgateError as error:
                await refusal(error)(scope, receive, send)
                return
            scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)

    def _caller(self, path: str, headers: Headers) -> Caller:
        admin_path = path == _ADMIN or path.startswith(_ADMIN + "/")
        if not self._enforced:
            return Caller(DEFAULT_TENANT, admin=admin_path)
        caller = self._directory.find(presented_key(headers))
        if caller.admin and not admin_path:
            raise Forbidden(
                "an admin key is for /v1/admin alone: it has no tenant who would pay",
                fix="send a tenant's key; narrowgate key create --tenant NAME makes one",
            )
        if admin_path and not caller.admin:
            raise Forbidden(
                "this path needs an admin key", fix="narrowgate key create --admin makes one"
            )
        return caller


def presented_key(headers: Headers) -> str:
    """Return the key as OpenAI's SDKs send it, else as Anthropic's do. Raises Unauthenticated."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    key = key.strip() if scheme.lower() == "bearer" else ""
    key = key or headers.get("x-api-key", "").strip()
    if not key:
        raise Unauthenticated(
            "the request carries no API key",
            fix="send Authorization: Bearer KEY; narrowgate key create makes one",
        )
    return key


def refusal(error: NarrowgateError) -> Response:
    """Return the response to a request that goes no further than its headers."""
    response = error_response(error)
    if isinstance(error, Unauthenticated):
        response.headers["www-authenticate"] = "Bearer"
    return response
