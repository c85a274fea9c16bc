"""Writes claims, draws and verdicts behind the requests, in order; a request never waits for it."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy.exc import SQLAlchemyError

from serving.contracts.errors import LedgerUnavailable
from serving.contracts.evidence import Audit
from serving.evidence.pacing import DeferredCost
from serving.evidence.pending_audits import PendingAudit, PendingAudits
from serving.evidence.store import Definition, EvidenceStore
from serving.ledger.database import blames_row

logger = logging.getLogger(__name__)

_MOST_PENDING = 10_000
_RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class _Drawn:
    """An input that is to be audited."""

    audit: Audit


_Pending = Definition | _Drawn | PendingAudit | Audit


class EvidenceAppender:
    """A queue in memory and one task that writes it. appended: called after rows were written.

    deferred: keeps audits that wait for a provider's batch; None where each is asked at once. cost:
    what these may cost.

    A crash loses pending rows, at most a few tenths of a second. While the database is
    unreachable rows wait; beyond 10,000, the oldest are dropped and counted in `lost`. So is a row
    that the database refuses: it does not keep the others back.
    """

    def __init__(
        self,
        store: EvidenceStore,
        appended: Callable[[], None],
        deferred: PendingAudits | None = None,
        cost: DeferredCost | None = None,
    ) -> None:
        self._store = store
        self._appended = appended
        self._deferred = deferred
        self._cost = cost or DeferredCost()
        self._pending: deque[_Pending] = deque()
        self._woken = asyncio.Event()
        self.lost = 0

    def open(self, definition: Definition) -> None:
        """Queue a claim."""
        self._add(definition)

    def draw(self, audit: Audit) -> None:
        """Queue an input that is to be audited."""
        self._add(_Drawn(audit))

    def defer(self, found: PendingAudit) -> None:
        """Queue an audit that waits for a provider's batch."""
        self._cost.queued_usd += found.worst_usd
        self._add(found)

    def append(self, audit: Audit) -> None:
        """Queue a verdict."""
        self._add(audit)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._pending and await self.flush():
                pass
            if self._pending:
                await asyncio.sleep(_RETRY_S)
                self._woken.set()

    async def flush(self) -> bool:
        """Write what is pending now; return whether the database took it."""
        batch = [self._pending.popleft() for _ in range(len(self._pending))]
        if not batch:
            return True
        try:
            await asyncio.to_thread(self._write, batch)
        except (LedgerUnavailable, SQLAlchemyError) as error:
            if isinstance(error, SQLAlchemyError) and blames_row(error):
                return await self._flush_one_by_one(batch)
            logger.warning(
                "evidence.append_failed rows=%d error=%s", len(batch), type(error).__name__
            )
            self._pending.extendleft(reversed(batch))
            return False
        self._cost.store(_worst_usd(batch))
        self._appended()
        return True

    async def _flush_one_by_one(self, batch: list[_Pending]) -> bool:
        """Write what the database takes of a batch, and drop what it refuses."""
        for position, row in enumerate(batch):
            try:
                await asyncio.to_thread(self._write, [row])
            except (LedgerUnavailable, SQLAlchemyError) as error:
                if not (isinstance(error, SQLAlchemyError) and blames_row(error)):
                    self._pending.extendleft(reversed(batch[position:]))
                    return False
                self._lose(row)
                # Not the message: it holds the row's values.
                logger.error(  # noqa: TRY400
                    "evidence.row_rejected row=%s error=%s",
                    type(row).__name__,
                    type(error).__name__,
                )
            else:
                self._cost.store(_worst_usd([row]))
        self._appended()
        return True

    def _add(self, row: _Pending) -> None:
        if len(self._pending) >= _MOST_PENDING:
            self._lose(self._pending.popleft())
        self._pending.append(row)
        self._woken.set()

    def _lose(self, row: _Pending) -> None:
        self._cost.queued_usd -= _worst_usd([row])
        self.lost += 1

    def _write(self, batch: list[_Pending]) -> None:
        # In this order: a claim before its rows, a draw before the verdict that removes it.
        self._store.register([row for row in batch if isinstance(row, Definition)])
        self._store.draw([row.audit for row in batch if isinstance(row, _Drawn)])
        if waiting := [row for row in batch if isinstance(row, PendingAudit)]:
            assert self._deferred is not None
            self._deferred.defer(waiting)
        self._store.append([row for row in batch if isinstance(row, Audit)])


def _worst_usd(rows: Iterable[_Pending]) -> Decimal:
    return sum((row.worst_usd for row in rows if isinstance(row, PendingAudit)), Decimal(0))
