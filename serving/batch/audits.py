"""Audits in providers' batches: their lines as the provider gets them, and their verdicts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from serving.batch.audit_store import AuditStore, Awaited
from serving.batch.provider_batches import ProviderLineResult
from serving.batch.store import ActiveBatch, ClaimedLine
from serving.contracts.errors import LedgerUnavailable, NarrowgateError, NotFound
from serving.contracts.evidence_settings import EvidenceSettings
from serving.evidence.pending_audits import PendingAudits
from serving.frontier.frontier import BatchRequest, FrontierStack
from serving.pipeline.deferred_audits import DeferredAudits, DeferredVerdict

Run = Callable[..., Any]
"""Awaits a blocking function in a thread, again until the database answers."""


@dataclass(frozen=True, slots=True)
class AuditResult:
    """The result of one line. cost_usd: of its call, or its worst case where that is unknown."""

    custom_id: str
    result: ProviderLineResult
    cost_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class AuditParts:
    """What makes verdicts. wake: called on the event loop after verdicts were written."""

    pending: PendingAudits
    deferred: DeferredAudits
    settings: EvidenceSettings
    wake: Callable[[], None]


class AuditBatches:
    """Audits that wait for the reference's batch API.

    parts: None where evidence is off: pending audits get no verdict then. now: the time, with its
    zone.
    """

    def __init__(
        self,
        store: AuditStore,
        frontier: FrontierStack | None,
        parts: AuditParts | None,
        now: Callable[[], datetime],
    ) -> None:
        self._store = store
        self._frontier = frontier
        self._parts = parts
        self._now = now

    def has_pending(self) -> bool:
        """Return whether an audit waits to be collected. Blocking, as the three after it."""
        return self._store.has_pending()

    def awaited(self) -> Awaited:
        """Return how many audits have no verdict."""
        return self._store.awaited()

    def collect(self, holder: str) -> int:
        """Put audits that wait into batches; return the number of batches. Raises LeaseLost."""
        now, parts = self._now(), self._parts
        if parts is None:
            return self._store.collect(holder, now, now, now, lambda reference: False)
        settings = parts.settings
        return self._store.collect(
            holder, now, now - timedelta(seconds=settings.audit.collect_s),
            now - timedelta(hours=settings.max_silence_h), self._is_served,
        )  # fmt: skip

    def finish(self, batch: ActiveBatch) -> int:
        """End a batch whose lines have all ended; return how many audits got no verdict.

        What the provider did not answer waits for another batch, where that can end before the
        claim's longest silence does.
        """
        now, parts = self._now(), self._parts
        if parts is None or batch.stopped not in (None, "expired"):
            return self._store.finish(batch, now, None)
        left_h = parts.settings.max_silence_h - parts.settings.audit.longest_h
        return self._store.finish(batch, now, now - timedelta(hours=left_h))

    def _is_served(self, reference: str) -> bool:
        """Return whether a reference has a key and a batch API."""
        return self._frontier is not None and bool(self._frontier.batch_targets((reference,)))

    def requests(
        self, batch: ActiveBatch, lines: Sequence[ClaimedLine]
    ) -> list[tuple[ClaimedLine, BatchRequest | NarrowgateError]]:
        """Return lines as their provider gets them, or why they may not be sent. Blocking."""
        parts, frontier = self._parts, self._frontier
        known = {} if parts is None else parts.pending.find(line.custom_id for line in lines)
        found: list[tuple[ClaimedLine, BatchRequest | NarrowgateError]] = []
        for line in lines:
            one = known.get(line.custom_id)
            try:
                if one is None or parts is None or not parts.deferred.may_send(one):
                    raise NotFound("the audit was settled or deleted, or may not be sent any more")
                assert frontier is not None, "lines are sent by a lane with providers"
                call = parts.deferred.call(one, batch.caller, line.request_id)
                found.append((line, frontier.batch_request(call)))
            except LedgerUnavailable:
                raise
            except NarrowgateError as error:
                found.append((line, error))
        return found

    async def settle(self, run: Run, results: Sequence[AuditResult]) -> None:
        """Write the verdicts that results give, once, and learn from them."""
        parts = self._parts
        if parts is None:
            return
        deferred = parts.deferred
        known = await run(parts.pending.find, [one.custom_id for one in results])

        def judge() -> list[DeferredVerdict]:
            verdicts = [
                deferred.verdict(
                    known[one.custom_id], one.result.document or one.result.error, one.cost_usd
                )
                for one in results
                if one.custom_id in known
            ]
            # In the order of their inputs: a group of evidence is complete once a later one came.
            return sorted(verdicts, key=lambda found: found.audit.drawn_at)

        verdicts: list[DeferredVerdict] = await run(judge)
        written = await run(parts.pending.settle, [found.audit for found in verdicts])
        names = {(audit.claim, audit.input) for audit in written}
        parts.wake()
        for found in verdicts:
            if (found.audit.claim, found.audit.input) in names:
                await deferred.settled(found)
