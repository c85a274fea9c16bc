"""The running parts of evidence in one process: appender, worker, and the cost of audits."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from serving.contracts.errors import LedgerUnavailable
from serving.contracts.evidence_settings import EvidenceSettings
from serving.contracts.ledger import Tenant
from serving.evidence.appender import EvidenceAppender
from serving.evidence.drift_watch import DriftWatch
from serving.evidence.heads.keys import vector_cipher
from serving.evidence.heads.service import HeadService
from serving.evidence.kept_texts import KeptText, KeptTexts
from serving.evidence.pacing import DeferredCost, Spent
from serving.evidence.pending_audits import PendingAudits
from serving.evidence.rulings import Evidence
from serving.evidence.snapshot import ClaimSnapshot
from serving.evidence.store import EvidenceStore
from serving.evidence.worker import EvidenceEvents, EvidenceWorker
from serving.ledger.database import Database

logger = logging.getLogger(__name__)

_SPENT_EVERY_S = 5.0
_EVER = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class EvidenceService:
    """Everything that runs beside the requests. Build it with build_evidence.

    closers: called when it stops, before the last rows are written. watches: run beside it until it
    stops. heads: None where none are
    learned. texts: None where none are kept. pending: audits that wait for a provider's batch; None
    without a reference.
    """

    settings: EvidenceSettings
    store: EvidenceStore
    snapshot: ClaimSnapshot
    worker: EvidenceWorker
    appender: EvidenceAppender
    evidence: Evidence
    closers: list[Callable[[], Awaitable[None]]] = field(default_factory=list)
    watches: list[Callable[[], Coroutine[Any, Any, None]]] = field(default_factory=list)
    heads: HeadService | None = None
    texts: KeptTexts | None = None
    pending: PendingAudits | None = None

    async def keep(self, found: KeptText) -> None:
        """Keep a text for people. While the database is unreachable it is not kept."""
        assert self.texts is not None
        try:
            await asyncio.to_thread(self.texts.keep, found)
        except (LedgerUnavailable, SQLAlchemyError) as error:
            logger.warning("evidence.text_not_kept error=%s", type(error).__name__)

    async def watch(self) -> None:
        """Write, fold and read until cancelled; then write what is pending once more."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self.worker.watch())
                group.create_task(self.appender.run())
                group.create_task(self._count_spending())
                for watch in self.watches:
                    group.create_task(watch())
                if self.heads is not None:
                    group.create_task(self.heads.watch())
        finally:
            for close in self.closers:
                await close()
            await self.appender.flush()

    async def _count_spending(self) -> None:
        while True:
            # Before the reading: what is stored during it may be missing there.
            stored_usd = self.evidence.counts.deferred.stored_usd
            try:
                await asyncio.to_thread(self._read_spending)
            except (LedgerUnavailable, SQLAlchemyError) as error:
                logger.warning("evidence.spending_not_read error=%s", type(error).__name__)
            else:
                self.evidence.counts.deferred.is_read(stored_usd)
            await asyncio.sleep(_SPENT_EVERY_S)

    def _read_spending(self) -> None:
        counts, now = self.evidence.counts, self.evidence.now()
        midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        # Pending ones first: one that gets its verdict in between counts twice, not never.
        today = Decimal(0) if self.pending is None else self.pending.outstanding_usd()
        audits = self.store.spent_usd(midnight, "accepted", "refined")
        today += sum(audits.values(), Decimal(0))
        shadow = self.store.spent_usd(_EVER, "shadow")
        counts.spent_today = Spent(today_usd=today)
        counts.judged_today = self.store.judge_usd(midnight)
        counts.shadow_spent = {name: Spent(shadow_usd=usd) for name, usd in shadow.items()}


def build_evidence(
    settings: EvidenceSettings,
    database: Database,
    reference: str | None,
    tenant_of: Callable[[str], Tenant],
    events: EvidenceEvents,
    key: bytes,
    state: Path | None = None,
) -> EvidenceService:
    """Return the service, not running yet. Its watch needs an event loop.

    reference: `provider/model` that judges, None without a key. key: digests texts and clients.
    state: the folder with the key of pending audits; None where there are none. Blocking.
    Raises InvalidKey.
    """
    store = EvidenceStore(database)
    snapshot = ClaimSnapshot(settings.max_snapshot_age_s)
    drift = DriftWatch()
    worker = EvidenceWorker(store, settings, snapshot, events, drift=drift)
    pending = None
    if reference is not None and state is not None:
        # Also where each is asked at once now: some may have been deferred before.
        pending = PendingAudits(database, vector_cipher(state, settings.vector_key_file))
    cost = DeferredCost()
    appender = EvidenceAppender(store, worker.wake, pending, cost)
    evidence = Evidence(
        settings, snapshot, reference, tenant_of, appender.open, key, drift=drift, deferred=cost
    )
    return EvidenceService(settings, store, snapshot, worker, appender, evidence, pending=pending)


def kept_texts(settings: EvidenceSettings, database: Database, state: Path) -> KeptTexts | None:
    """Return where texts are kept for people; None where none are. Blocking. Raises InvalidKey."""
    if settings.keep_texts is None:
        return None
    return KeptTexts(database, vector_cipher(state, settings.vector_key_file))
