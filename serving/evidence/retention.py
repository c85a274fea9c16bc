"""Deletes stored evidence by name and by age, whatever of it is switched on now.

What a feature has stored outlives its setting, so neither duty may depend on the feature's object.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from serving.contracts.errors import LedgerUnavailable
from serving.contracts.evidence_settings import EvidenceSettings
from serving.evidence.heads.cipher import VectorCipher
from serving.evidence.heads.example_store import ExampleStore, purge_examples
from serving.evidence.heads.head_store import delete_erased_heads
from serving.evidence.kept_texts import erase_texts, purge_texts
from serving.evidence.store import EvidenceOwner, EvidenceStore
from serving.ledger.database import Database

logger = logging.getLogger(__name__)

_PURGE_EVERY_S = 3600.0

Purge = Callable[[], object]
"""Deletes what is too old. Blocking."""


@dataclass(frozen=True, slots=True)
class DeletedEvidence:
    """How many audits, kept texts, and examples of heads were deleted."""

    audits: int
    texts: int
    examples: int


class EvidenceRetention:
    """Deletes for one process. Its watch must run, also where no evidence is collected.

    cipher: returns the cipher of examples; blocking, raises InvalidKey. others: further purges of
    what may be stored while its feature is off, by name for logs.
    """

    def __init__(
        self,
        settings: EvidenceSettings,
        database: Database,
        cipher: Callable[[], VectorCipher],
        others: Mapping[str, Purge] | None = None,
    ) -> None:
        self._database = database
        self._cipher = cipher
        self._purges: dict[str, Purge] = {
            "texts": lambda: purge_texts(database, settings.keep_texts),
            "examples": lambda: purge_examples(database, settings.keep_vectors),
            "heads": lambda: delete_erased_heads(database, settings.head.erase_within_h),
            **(others or {}),
        }

    def delete(self, owner: EvidenceOwner, actor: str) -> DeletedEvidence:
        """Delete what names a tenant, a request or an end user. Blocking.

        A tenant's own heads go at once; others that learned from deleted examples are fitted again
        or deleted. Raises InvalidKey where an end user's examples cannot be told from others';
        nothing is deleted then. Raises LedgerUnavailable.
        """
        examples = ExampleStore(self._database, self._cipher())
        if owner.end_user is not None:
            examples.check_key(owner.tenant)
        audits = EvidenceStore(self._database).delete(owner, actor)
        return DeletedEvidence(audits, erase_texts(self._database, owner), examples.erase(owner))

    def refuse_unknown(self, tenant: str) -> None:
        """Raise NotFound for a tenant that there never was. Blocking. Raises LedgerUnavailable."""
        EvidenceStore(self._database).refuse_unknown(tenant)

    async def watch(self) -> None:
        """Purge every hour until cancelled."""
        while True:
            await self.purge()
            await asyncio.sleep(_PURGE_EVERY_S)

    async def purge(self) -> None:
        """Delete what is too old; a purge that fails is logged, and the others run."""
        for name, purge in self._purges.items():
            try:
                await asyncio.to_thread(purge)
            except (LedgerUnavailable, SQLAlchemyError, OSError) as error:
                logger.warning("evidence.purge_failed what=%s error=%s", name, type(error).__name__)
