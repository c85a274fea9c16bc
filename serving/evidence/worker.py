"""Keeps claims up to date: one replica folds audits into states, every replica reads them."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import uuid4

from sqlalchemy.exc import SQLAlchemyError

from serving.contracts.errors import HeadRefused, LedgerUnavailable
from serving.contracts.evidence import Action, Audit, Claim, ClaimEvent, ClaimState, EventKind
from serving.contracts.evidence_settings import EvidenceSettings
from serving.evidence.drift_watch import DriftWatch
from serving.evidence.fold import IRREPRODUCIBLE, ClaimFold, rules_version
from serving.evidence.payback import PAIRED, payback
from serving.evidence.snapshot import ClaimSnapshot
from serving.evidence.store import EvidenceStore

logger = logging.getLogger(__name__)

_MISSED_FACTOR = 4
"""A draw without a verdict after so many deadlines of an audit was lost with its process."""


class EvidenceEvents(Protocol):
    """Counts events of evidence; the gateway's metrics implement it."""

    def claims_changed(self, claims: Sequence[Claim]) -> None:
        """The states of all claims were read or folded."""
        ...

    def claim_transition(self, claim: Claim, kind: str) -> None:
        """A claim was earned, suspended, found not earnable, or withdrawn."""
        ...


class TestOpener(Protocol):
    """Opens tests of fitted candidates; serving.evidence.heads implements it."""

    def due(self, claim: Claim, *, is_on_course: bool, covered: float) -> list[Action]:
        """Return the tests that are worth opening now. covered: share accepted now. Blocking."""
        ...


class EvidenceWorker:
    """Folds while it holds the lease, and refreshes the snapshot. One for a process.

    clock: monotonic seconds. now: the time with its zone. drift: what this replica saw of traffic
    under held claims. fitted: opens tests of heads; None where none are learned. payback_every_s:
    between two looks at whether the comparisons of the paired shortcuts pay.
    """

    fitted: TestOpener | None = None
    payback_every_s = 30.0

    def __init__(
        self,
        store: EvidenceStore,
        settings: EvidenceSettings,
        snapshot: ClaimSnapshot,
        events: EvidenceEvents,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        drift: DriftWatch | None = None,
    ) -> None:
        self._drift = drift
        self._store = store
        self._settings = settings
        self._snapshot = snapshot
        self._events = events
        self._clock = clock
        self._now = now
        self._holder = uuid4().hex
        self._rules = rules_version(settings)
        self._folds: dict[str, ClaimFold] | None = None
        self._cursor = 0
        self._woken = asyncio.Event()
        self._payback_at_s = clock()
        self._is_stale = False

    def wake(self) -> None:
        """Make the next round begin at once: this replica has appended rows."""
        self._woken.set()

    async def watch(self) -> None:
        """Fold and refresh every refresh_s until cancelled; an unreachable database is logged."""
        while True:
            await self.round()
            try:
                # Not wait_for, which in Python 3.11 can swallow a cancellation.
                async with asyncio.timeout(self._settings.refresh_s):
                    await self._woken.wait()
            except TimeoutError:
                continue
            self._woken.clear()

    async def round(self) -> None:
        """Fold what is new where this replica has the lease, then read the states once."""
        try:
            await asyncio.to_thread(self.round_blocking)
        except (LedgerUnavailable, SQLAlchemyError) as error:
            self._folds = None
            if not self._is_stale:
                logger.warning("evidence.stale error=%s", type(error).__name__)
            self._is_stale = True
            return
        if self._is_stale:
            logger.info("evidence.fresh")
        self._is_stale = False
        claims = self._snapshot.all()
        self._events.claims_changed(
            [claim for claim in claims if claim.scope.versions.get("rules") == self._rules]
        )

    def round_blocking(self) -> None:
        """As `round`; blocking, and raises LedgerUnavailable."""
        # Without claims there is nothing to fold, and no reason to write every second.
        if self._store.has_claims() and self._store.take_lease(
            self._holder, self._settings.lease_s
        ):
            self._fold()
        else:
            self._folds = None
        read_at_s = self._clock()
        self._snapshot.replace(self._store.states().claims, read_at_s)
        self._signal()

    def _signal(self) -> None:
        """Append that traffic under a held claim has changed, unless it is audited more already."""
        if self._drift is None:
            return
        half = self._settings.high_rate_inputs / 2
        settled = [claim for claim in self._snapshot.all() if claim.since_signal >= half]
        events = self._drift.signals(settled)
        self._store.append(events=events)
        for event in events:
            logger.warning("evidence.drift claim=%s reason=%s", event.claim, event.reason)

    def _fold(self) -> None:
        self._end_missed()
        is_new = self._folds is None
        if self._folds is None:
            self._folds, self._cursor = {}, 0
        self._drop_deleted()
        changed = self._define()
        # Events are read back, not folded as they are written: other replicas append in between.
        changed |= self._read()
        while self._decide(changed):
            changed |= self._read()
        if self._pay_back():
            changed |= self._read()
        claims = [self._checked(self._folds[name], is_new=is_new) for name in sorted(changed)]
        for claim in claims:
            if claim.state is ClaimState.SUSPENDED:
                self._snapshot.take(claim)
        if claims:
            self._store.save(claims)

    def _define(self) -> set[str]:
        """Begin the folds of claims that are new here; return their ids."""
        assert self._folds is not None
        changed = set()
        for item in self._store.definitions():
            # Claims of other rules keep their last state: no request is served under them.
            if item.id not in self._folds and item.scope.versions.get("rules") == self._rules:
                self._folds[item.id] = ClaimFold(item, self._settings).extend(self._before(item.id))
                changed.add(item.id)
        return changed

    def _before(self, claim: str) -> Iterator[Audit | ClaimEvent]:
        """Yield the rows of a claim up to the cursor: one that was deleted may have some."""
        last = 0
        while last < self._cursor and (rows := self._store.rows_after(last, claim)):
            yield from (row for row in rows if row.sequence <= self._cursor)
            last = rows[-1].sequence

    def _drop_deleted(self) -> None:
        """Forget claims that were deleted with their tenant: later inputs begin them anew."""
        assert self._folds is not None
        known = {item.id: item for item in self._store.definitions()}
        for name, fold in list(self._folds.items()):
            if known.get(name) != fold.definition:
                del self._folds[name]

    def _read(self) -> set[str]:
        """Fold the rows after the cursor; return the claims that they belong to."""
        assert self._folds is not None
        changed: set[str] = set()
        while rows := self._store.rows_after(self._cursor):
            if any(row.claim not in self._folds for row in rows):
                # A claim is registered before its rows, perhaps since the last look.
                changed |= self._define()
            for row in rows:
                if row.claim in self._folds:
                    self._folds[row.claim].add(row)
                    changed.add(row.claim)
                self._cursor = row.sequence
        return changed

    def _decide(self, changed: set[str]) -> bool:
        """Append what follows from the rows and from the time; return whether anything did."""
        assert self._folds is not None
        events = [event for name in sorted(changed) for event in self._due(self._folds[name])]
        for name in sorted(self._folds):
            events += self._silent(self._folds[name])
        return self._write(events)

    def _write(self, events: Sequence[ClaimEvent]) -> bool:
        """Append events and report them; return whether there are any."""
        assert self._folds is not None
        self._store.append(events=events)
        for event in events:
            if event.kind != "tested":
                logger.warning(
                    "evidence.claim id=%s kind=%s reason=%s", event.claim, event.kind, event.reason
                )
                self._events.claim_transition(self._folds[event.claim].claim, event.kind)
        return bool(events)

    def _pay_back(self) -> bool:
        """Slow the claims whose comparisons cost more than they bring, and resume others.

        Returns whether any was. A slowed claim that its sample has earned is suspended again.
        """
        assert self._folds is not None
        if self._clock() < self._payback_at_s + self.payback_every_s:
            return False
        self._payback_at_s = self._clock()
        now, days = self._now(), self._settings.payback_days
        events = []
        for name, found in self._store.comparisons(now - timedelta(days=days), PAIRED).items():
            fold = self._folds.get(name)
            if fold is None or not fold.is_reproduced:
                continue
            claim = fold.claim
            expected = payback(found, claim, self._settings, now)
            if expected is None:
                continue
            is_over = not expected.pays(claim)
            is_held = claim.state is ClaimState.HELD
            if is_over == claim.is_slowed and not (is_over and is_held):
                continue
            reason = (
                f"within {days:g} days comparing is expected to cost ${expected.compared_usd:.4f} "
                f"and the shortcut to save ${expected.saved_usd:.4f}"
            )
            kind: EventKind = "slowed" if is_over else "resumed"
            events.append(ClaimEvent(name, kind, reason, "narrowgate", now, claim.sequence))
        return self._write(events)

    def _due(self, fold: ClaimFold) -> list[ClaimEvent]:
        """Return a fold's transitions that no event records, and the tests that are due."""
        found = fold.unrecorded if fold.is_reproduced else []
        why = "thresholds placed by the examples so far"
        return found + [
            ClaimEvent(
                fold.claim.id, "tested", why, "narrowgate", self._now(), fold.claim.sequence, action
            )
            for action in (*fold.due_tests(), *self._due_fitted(fold))
        ]

    def _due_fitted(self, fold: ClaimFold) -> list[Action]:
        claim = fold.claim
        if self.fitted is None or not fold.is_reproduced:
            return []
        try:
            # As many more inputs as there were so far: a better head may be there by then.
            return self.fitted.due(
                claim, is_on_course=fold.is_on_course(claim.audits), covered=fold.covered
            )
        except HeadRefused as error:
            logger.warning("evidence.head_refused claim=%s error=%s", claim.id, error.message)
            return []

    def _silent(self, fold: ClaimFold) -> list[ClaimEvent]:
        """Return the end of a held claim that was not audited although audits were due."""
        claim, hours = fold.claim, self._settings.max_silence_h
        if claim.state is not ClaimState.HELD:
            return []
        if not fold.is_unwatched(self._now() - timedelta(hours=hours)):
            return []
        reason = f"no audit for {hours:g} h although some were due"
        return [
            ClaimEvent(claim.id, "suspended", reason, "narrowgate", self._now(), claim.sequence)
        ]

    def _checked(self, fold: ClaimFold, *, is_new: bool) -> Claim:
        """Return a fold's claim, not in force where its recorded transitions do not follow."""
        claim = fold.claim
        if fold.is_reproduced:
            return claim
        if is_new:
            logger.error("evidence.irreproducible claim=%s", claim.id)
        return replace(claim, state=ClaimState.SUSPENDED, action=None, reason=IRREPRODUCIBLE)

    def _end_missed(self) -> None:
        """Append what is missing for inputs whose audit a crash has ended."""
        wait = timedelta(seconds=_MISSED_FACTOR * self._settings.deadline_s)
        if missed := self._store.missed(wait):
            self._store.append(missed)
