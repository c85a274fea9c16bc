"""Tenants and keys in memory, so that no request waits for the database."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from serving.contracts.errors import LedgerUnavailable, NotFound, Unauthenticated
from serving.contracts.ledger import DEFAULT_TENANT, Caller, Tenant
from serving.contracts.ledger_settings import AuthSettings
from serving.ledger.access.keys import LiveKey, live_keys, matching
from serving.ledger.access.tenants import known_tenants
from serving.ledger.database import Database

logger = logging.getLogger(__name__)

_NO_TENANT = ""
"""Of admin keys; no tenant can be called so."""


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """read_at: by the clock, from before the reading."""

    keys: Mapping[str, LiveKey]
    tenants: Mapping[str, Tenant]
    read_at: float


class Directory:
    """Implements serving.contracts.auth.Directory from a copy that is renewed all the time.

    The copy is used while the database is away, for max_stale_s at most; then, and before the
    first one is read, everybody is refused. clock: monotonic seconds.
    """

    def __init__(
        self,
        database: Database,
        settings: AuthSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock
        self._snapshot: _Snapshot | None = None
        self._away = False

    async def watch(self) -> None:
        """Read the database every refresh_s until cancelled."""
        while True:
            began = self._clock()
            await self.refresh()
            await asyncio.sleep(max(0.0, began + self._settings.refresh_s - self._clock()))

    async def refresh(self) -> None:
        """Read the database once; where that fails, log it and keep what is known."""
        try:
            self._snapshot = await asyncio.to_thread(self._read)
        except (LedgerUnavailable, SQLAlchemyError) as error:
            # Of the error its kind alone: SQLAlchemy's words hold statements and parameters.
            if not self._away:
                logger.warning("directory_stale error=%s", type(error).__name__)
            self._away = True
            return
        if self._away:
            logger.info("directory_fresh")
        self._away = False

    def find(self, presented: str) -> Caller:
        """Return whose key it is. Raises Unauthenticated, or LedgerUnavailable."""
        key = matching(presented, self._known().keys)
        if key is None:
            raise Unauthenticated(
                "the API key is not known here, or is revoked",
                fix="send Authorization: Bearer KEY; narrowgate key create makes one",
            )
        return Caller(key.tenant or _NO_TENANT, key.id, key.admin)

    def tenant(self, name: str) -> Tenant:
        """Return a tenant with its limits. Raises NotFound, or LedgerUnavailable."""
        found = self._known().tenants.get(name)
        if found is not None:
            return found
        if name == DEFAULT_TENANT:
            return Tenant(DEFAULT_TENANT)
        raise NotFound(
            f"no tenant is called {name!r}",
            field="tenant",
            fix="narrowgate tenant list shows them",
        )

    def _known(self) -> _Snapshot:
        snapshot = self._snapshot
        if snapshot is None or self._clock() - snapshot.read_at > self._settings.max_stale_s:
            raise LedgerUnavailable(
                "who may ask cannot be looked up: the ledger's database does not answer",
                fix="see that it runs; keys are known again within auth.refresh_s",
                retry_after_s=self._settings.refresh_s,
            )
        return snapshot

    def _read(self) -> _Snapshot:
        read_at = self._clock()
        with self._database.read() as connection:
            # Keys first: a tenant is there before its keys, and none is ever removed.
            keys = live_keys(connection)
            return _Snapshot(keys, known_tenants(connection), read_at)
