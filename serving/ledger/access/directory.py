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
"""Tenant of admin keys; no tenant can have this name."""


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """Tenants and keys as of one read. read_at: clock time before the read."""

    keys: Mapping[str, LiveKey]
    tenants: Mapping[str, Tenant]
    read_at: float


class Directory:
    """Implements serving.contracts.auth.Directory from a copy that is read again regularly.

    While the database is unreachable, the copy is used for at most max_stale_s. After that, and
    before the first read, every caller is refused. clock: monotonic seconds.
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
        self._is_stale = False

    async def watch(self) -> None:
        """Read the database every refresh_s until cancelled."""
        while True:
            began = self._clock()
            await self.refresh()
            await asyncio.sleep(max(0.0, began + self._settings.refresh_s - self._clock()))

    async def refresh(self) -> None:
        """Read the database once; after a failure, log it and keep the last copy."""
        try:
            self._snapshot = await asyncio.to_thread(self._read)
        except (LedgerUnavailable, SQLAlchemyError) as error:
            # Only the kind of error: SQLAlchemy's messages hold statements and parameters.
            if not self._is_stale:
                logger.warning("keys.stale error=%s", type(error).__name__)
            self._is_stale = True
            return
        if self._is_stale:
            logger.info("keys.fresh")
        self._is_stale = False

    def find(self, presented: str) -> Caller:
        """Return the caller of a key. Raises Unauthenticated or LedgerUnavailable."""
        key = matching(presented, self._known().keys)
        if key is None:
            raise Unauthenticated(
                "the API key is unknown or revoked",
                fix="send Authorization: Bearer KEY; narrowgate key create makes one",
            )
        return Caller(key.tenant or _NO_TENANT, key.id, key.admin, key.evidence_external)

    def tenant(self, name: str) -> Tenant:
        """Return a tenant with its limits. Raises NotFound or LedgerUnavailable."""
        found = self._known().tenants.get(name)
        if found is not None:
            return found
        if name == DEFAULT_TENANT:
            return Tenant(DEFAULT_TENANT)
        raise NotFound(
            f"no tenant {name!r}",
            field="tenant",
            fix="narrowgate tenant list shows them",
        )

    def _known(self) -> _Snapshot:
        snapshot = self._snapshot
        if snapshot is None or self._clock() - snapshot.read_at > self._settings.max_stale_s:
            raise LedgerUnavailable(
                "keys cannot be looked up: the ledger's database is unreachable",
                fix="check that the database runs; keys are read again within auth.refresh_s",
                retry_after_s=self._settings.refresh_s,
            )
        return snapshot

    def _read(self) -> _Snapshot:
        read_at = self._clock()
        with self._database.read() as connection:
            # Keys first: a tenant exists before its keys, and tenants are never removed.
            keys = live_keys(connection)
            return _Snapshot(keys, known_tenants(connection), read_at)
