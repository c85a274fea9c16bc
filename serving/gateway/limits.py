"""Limits of a tenant: requests a minute, and concurrent requests."""

import math
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.contracts.auth import Directory
from serving.contracts.errors import NarrowgateError, RateLimited
from serving.contracts.ledger import Caller, Tenant
from serving.gateway.auth import refusal

_SLOT_RETRY_S = 1.0
_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class Window:
    """A tenant's requests of the last minute at this replica, the current one included.

    reset_s: seconds until the oldest of them no longer counts.
    """

    limit: int
    remaining: int
    reset_s: float
    exceeded: bool

    def headers(self) -> dict[str, str]:
        """Return the headers that OpenAI's API has for this."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{math.ceil(self.reset_s)}s",
        }


class TenantLimits:
    """Counts this replica's requests by tenant.

    The limits are those of the whole stack. Each gateway replica grants an equal share, rounded
    down, and at least one request. replicas: of the gateway. clock: monotonic seconds. Moments of
    a wall clock that was set back would refuse a tenant for as long as the jump.
    """

    def __init__(self, replicas: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._replicas = replicas
        self._clock = clock
        self._active: Counter[str] = Counter()
        self._counted: defaultdict[str, deque[float]] = defaultdict(deque)

    def active(self, tenant: str) -> int:
        """Return how many requests of a tenant are in progress."""
        return self._active[tenant]

    @contextmanager
    def slot(self, tenant: Tenant) -> Iterator[None]:
        """Hold one of a tenant's concurrent requests. Raises RateLimited."""
        name, limit = tenant.name, tenant.max_concurrent_requests
        if limit is not None and self._active[name] >= self._share(limit):
            raise RateLimited(
                f"{self._active[name]} requests of tenant {name!r} are in progress, its limit",
                fix="wait for one of them to end, or ask for a higher limit",
                retry_after_s=_SLOT_RETRY_S,
            )
        # Counted without a limit, too: a limit may be set while they are in progress.
        self._active[name] += 1
        try:
            yield
        finally:
            self._active[name] -= 1
            if not self._active[name]:
                del self._active[name]

    def count(self, tenant: Tenant) -> Window | None:
        """Count a request unless that exceeds the tenant's rate; None where it has no limit."""
        if tenant.requests_per_minute is None:
            # A limit that is set later counts from then on.
            self._counted.pop(tenant.name, None)
            return None
        limit, now = self._share(tenant.requests_per_minute), self._clock()
        counted = self._counted[tenant.name]
        while counted and counted[0] <= now - _WINDOW_S:
            counted.popleft()
        exceeded = len(counted) >= limit
        if not exceeded:
            counted.append(now)
        return Window(
            limit, max(0, limit - len(counted)), _reset_s(counted, limit, now), exceeded=exceeded
        )

    def _share(self, limit: int) -> int:
        return max(1, limit // self._replicas)


class LimitTenants:
    """Enforces a tenant's limits from a request's headers to the end of its response.

    Runs inside Authentication. Requests without a caller, and of admin keys, are not counted.
    """

    def __init__(self, app: ASGIApp, directory: Directory, limits: TenantLimits) -> None:
        self._app = app
        self._directory = directory
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        caller: Caller | None = scope.get("state", {}).get("caller")
        if scope["type"] != "http" or caller is None or caller.admin:
            await self._app(scope, receive, send)
            return
        window: Window | None = None

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start" and window is not None:
                MutableHeaders(scope=message).update(window.headers())
            await send(message)

        with ExitStack() as held:
            try:
                tenant = self._directory.tenant(caller.tenant)
                held.enter_context(self._limits.slot(tenant))
                window = self._limits.count(tenant)
                if window is not None and window.exceeded:
                    raise _too_fast(tenant, window)
            except NarrowgateError as error:
                await refusal(error)(scope, receive, send_with_limits)
                return
            await self._app(scope, receive, send_with_limits)


def _reset_s(counted: deque[float], limit: int, now: float) -> float:
    """Return the seconds until one more request fits, or until the oldest no longer counts."""
    if not counted:
        return 0.0
    # More than the limit are counted where it was lowered meanwhile.
    last = counted[max(0, len(counted) - limit)]
    return last + _WINDOW_S - now


def _too_fast(tenant: Tenant, window: Window) -> RateLimited:
    return RateLimited(
        f"tenant {tenant.name!r} may send {window.limit} requests a minute here",
        fix="retry after the time in Retry-After, or ask for a higher limit",
        retry_after_s=window.reset_s,
    )
