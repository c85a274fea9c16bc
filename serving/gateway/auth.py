"""Authenticates a request: its API key becomes a caller before its body is read."""

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.contracts.auth import Directory
from serving.contracts.errors import (
    Forbidden,
    InvalidRequest,
    NarrowgateError,
    Unauthenticated,
)
from serving.contracts.ledger import DEFAULT_TENANT, Caller
from serving.gateway.errors import error_response

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"})
"""Paths that need no key: probes, metrics and documentation, without any tenant's data."""

KEY_HEADERS = ("authorization", "x-api-key", "api-key")
"""Headers with a key, in order: OpenAI's SDKs, Anthropic's, Azure's."""

_ADMIN = "/v1/admin"
_NO_KEY_FIX = "send Authorization: Bearer KEY; narrowgate key create makes one"


class Authentication:
    """Puts the request's Caller into scope["state"]["caller"], or refuses the request.

    Admin keys are for the paths under /v1/admin, and those paths for admin keys. Open paths get no
    caller. enforced: False makes every caller the default tenant, and an admin on admin paths.
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
        path = plain_path(scope)
        # The router reads the same path, so that no path can be authenticated as another one.
        scope["path"], scope["root_path"] = path, ""
        if path not in OPEN_PATHS:
            try:
                caller = self._caller(path, Headers(scope=scope))
            except NarrowgateError as error:
                await refusal(error)(scope, receive, send)
                return
            scope.setdefault("state", {})["caller"] = caller
        await self._app(scope, receive, send)

    def _known(self, keys: tuple[str, ...]) -> Caller:
        """Return the caller of the first known key; some SDKs send a made-up key in one header."""
        *others, last = keys
        for key in others:
            try:
                return self._directory.find(key)
            except Unauthenticated:
                continue
        return self._directory.find(last)

    def _caller(self, path: str, headers: Headers) -> Caller:
        admin_path = path == _ADMIN or path.startswith(_ADMIN + "/")
        if not self._enforced:
            return Caller(DEFAULT_TENANT, admin=admin_path)
        caller = self._known(presented_keys(headers))
        if caller.admin and not admin_path:
            raise Forbidden(
                "an admin key is for paths under /v1/admin only: it belongs to no tenant",
                fix="send a tenant's key; narrowgate key create --tenant NAME makes one",
            )
        if admin_path and not caller.admin:
            raise Forbidden(
                "this path needs an admin key", fix="narrowgate key create --admin makes one"
            )
        return caller


def plain_path(scope: Scope) -> str:
    """Return the path below the application's root, without a slash at its end."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :]
    return path.rstrip("/") or "/"


def presented_keys(headers: Headers) -> tuple[str, ...]:
    """Return the keys that a request carries, in the order of KEY_HEADERS.

    Raises InvalidRequest for a repeated header, Unauthenticated where there is no key.
    """
    given = ((name, single_header(headers, name)) for name in KEY_HEADERS)
    keys = [key for name, value in given if value is not None and (key := _key(name, value))]
    if not keys:
        raise Unauthenticated("the request carries no API key", fix=_NO_KEY_FIX)
    return tuple(keys)


def single_header(headers: Headers, name: str) -> str | None:
    """Return a header's value, None where it is absent. Raises InvalidRequest for a repeated one.

    A proxy in front may have acted on the other one.
    """
    values = headers.getlist(name)
    if len(values) > 1:
        raise InvalidRequest(
            f"the request has {len(values)} {name} headers", field=name, fix="send one"
        )
    return values[0] if values else None


def _key(name: str, value: str) -> str:
    if name != "authorization":
        return value.strip()
    scheme, _, key = value.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def refusal(error: NarrowgateError) -> Response:
    """Return the response to a request that is refused for its headers."""
    response = error_response(error)
    if isinstance(error, Unauthenticated):
        response.headers["www-authenticate"] = "Bearer"
    return response
