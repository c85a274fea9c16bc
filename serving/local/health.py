"""The health of a model's engine, as observed by one gateway."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from serving.contracts.engine import EngineInfo
from serving.contracts.errors import ModelStarting, ModelUnavailable, NarrowgateError

logger = logging.getLogger(__name__)

State = Literal["starting", "ready", "unavailable"]
Ping = Callable[[float], Awaitable[EngineInfo]]

_READY_PERIOD_S = 2.0
_PING_TIMEOUT_S = 3.0
_CONFIRM_TIMEOUT_S = 2.0
_MISSED_PINGS_ALLOWED = 3


class EngineHealth:
    """Pings the engine in the background; `confirm` pings at once after a failed call.

    ping: returns the description of any healthy replica within a time-out; it waits for a replica
    where there is none, so the first ping returns as soon as the model has loaded. attestation:
    digest of the envelope that this gateway reads. A replica that verified another one counts as
    not ready, because thresholds and answers would not match. None accepts any.
    """

    def __init__(self, model_id: str, ping: Ping, attestation: str | None = None) -> None:
        self._model_id = model_id
        self._ping = ping
        self._attestation = attestation
        self._missed = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self.state: State = "starting"
        self.info: EngineInfo | None = None

    def require_ready(self) -> EngineInfo:
        """Return the engine's description. Raises ModelStarting or ModelUnavailable."""
        if self.state == "ready" and self.info is not None:
            return self.info
        if self.state == "starting":
            raise ModelStarting(
                f"model {self._model_id!r} is still loading",
                fix="wait for /readyz",
                retry_after_s=5,
            )
        raise self.unavailable()

    @contextmanager
    def until_lost(self) -> Iterator[asyncio.Future[None]]:
        """Yield a future that completes when no healthy replica is left.

        Ray Serve holds a call whose replica has ended until there is another one, without a time
        limit. Callers wait for this future at the same time.
        """
        lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(lost)
        try:
            yield lost
        finally:
            self._waiting.discard(lost)

    async def confirm(self) -> None:
        """Return when a replica answers a ping now. Raises ModelUnavailable otherwise."""
        try:
            self._seen(await self._ping(_CONFIRM_TIMEOUT_S))
        except (NarrowgateError, TimeoutError) as error:
            self._lost(error)
            raise self.unavailable() from error

    async def watch(self) -> None:
        """Ping until cancelled."""
        while True:
            try:
                self._seen(await self._ping(_PING_TIMEOUT_S))
            except TimeoutError as error:
                # A replica under load may answer late; one that has ended, or that has not been
                # started yet, never does.
                self._missed += 1
                if self._missed >= _MISSED_PINGS_ALLOWED:
                    self._lost(error)
            except NarrowgateError as error:
                self._lost(error)
                await asyncio.sleep(1.0)
            else:
                await asyncio.sleep(_READY_PERIOD_S)

    def _seen(self, info: EngineInfo) -> None:
        if self._attestation is not None and info.attestation != self._attestation:
            if self._missed == 0:
                logger.error(
                    "attestation_mismatch model=%s engine=%s gateway=%s",
                    self._model_id, info.attestation, self._attestation,
                )  # fmt: skip
                self._missed = 1
            raise ModelUnavailable(
                f"a replica of model {self._model_id!r} verified attestation {info.attestation}, "
                f"and this gateway has {self._attestation}",
                fix="restart the one that started before the attestation was replaced",
                retry_after_s=10,
            )
        self._missed = 0
        self.info = info
        if self.state != "ready":
            logger.info("model_ready model=%s", self._model_id)
            self.state = "ready"

    def _lost(self, error: BaseException) -> None:
        if self.state == "ready":
            logger.warning("model_lost model=%s error=%s", self._model_id, type(error).__name__)
            self.state = "unavailable"
        if self.state == "unavailable":
            for waiting in self._waiting:
                if not waiting.done():
                    waiting.set_result(None)

    def unavailable(self) -> ModelUnavailable:
        """Return the error for a request that finds no healthy replica."""
        return ModelUnavailable(
            f"no replica of model {self._model_id!r} is healthy; one is being restarted",
            fix="retry after the time in Retry-After",
            retry_after_s=10,
        )
