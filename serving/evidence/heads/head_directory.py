"""Heads in memory, so that no request waits for the database."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from cachetools import LRUCache
from sqlalchemy.exc import SQLAlchemyError

from serving.contracts.errors import HeadRefused, LedgerUnavailable, NotFound
from serving.evidence.heads.candidate import KINDS, Kind
from serving.evidence.heads.head_store import HeadStore
from serving.evidence.heads.statement import Head

logger = logging.getLogger(__name__)

MAX_SCOPES: Final = 500
"""Scopes that a replica keeps heads of: those asked for last."""


class HeadDirectory:
    """The verified heads of the scopes that this replica serves, read again regularly.

    A head that is refused is left out and logged once. Use it on one event loop.
    """

    def __init__(self, store: HeadStore, refresh_s: float, max_scopes: int = MAX_SCOPES) -> None:
        self._store = store
        self._refresh_s = refresh_s
        self._scopes: LRUCache[str, Mapping[str, Head]] = LRUCache(max_scopes)
        self._refused: set[str] = set()
        self._is_stale = False

    def find(self, scope_id: str, digest: str) -> Head | None:
        """Return a head of a scope by its digest, from memory.

        None where it is deleted, refused or not read yet: the first question about a scope has it
        read at the next refresh.
        """
        return self._known(scope_id).get(digest)

    def newest(self, scope_id: str) -> dict[Kind, Head]:
        """Return the newest head of each kind of a scope, from memory, as `find` knows them."""
        found: dict[Kind, Head] = {}
        for head in self._known(scope_id).values():
            kind = head.candidate.kind
            if kind not in found or found[kind].predicate.version < head.predicate.version:
                found[kind] = head
        return {kind: found[kind] for kind in KINDS if kind in found}

    def all(self, scope_id: str) -> tuple[Head, ...]:
        """Return every head of a scope that is kept, from memory, as `find` knows them."""
        return tuple(self._known(scope_id).values())

    async def watch(self) -> None:
        """Read the heads every refresh_s until cancelled."""
        while True:
            await self.refresh()
            await asyncio.sleep(self._refresh_s)

    async def refresh(self) -> None:
        """Read new heads of all scopes that were asked for; keep what is known after a failure."""
        known = dict(self._scopes)
        try:
            found = await asyncio.to_thread(self._read, known)
        except (LedgerUnavailable, SQLAlchemyError) as error:
            # Only the kind of error: SQLAlchemy's messages hold statements and parameters.
            if not self._is_stale:
                logger.warning("evidence.heads_stale error=%s", type(error).__name__)
            self._is_stale = True
            return
        self._is_stale = False
        for scope_id, heads in found.items():
            if scope_id in self._scopes:
                self._scopes[scope_id] = heads

    def _known(self, scope_id: str) -> Mapping[str, Head]:
        return self._scopes.setdefault(scope_id, {})

    def _read(self, known: Mapping[str, Mapping[str, Head]]) -> dict[str, dict[str, Head]]:
        found: dict[str, dict[str, Head]] = {}
        for scope_id, heads in known.items():
            found[scope_id] = {}
            for row in self._store.listed(scope_id):
                head = heads.get(row.digest) or self._load(row.digest)
                if head is not None:
                    found[scope_id][row.digest] = head
        return found

    def _load(self, digest: str) -> Head | None:
        if digest in self._refused:
            return None
        try:
            return self._store.load(digest)
        except NotFound:
            return None  # deleted since it was listed
        except HeadRefused as error:
            self._refused.add(digest)
            logger.warning("evidence.head_refused digest=%s error=%s", digest, error.message)
            return None
