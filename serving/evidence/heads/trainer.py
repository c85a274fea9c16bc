"""Fits heads in the background: one at a time in a gateway replica, off the event loop."""

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import Literal, Protocol

from sqlalchemy.exc import SQLAlchemyError

from serving.contracts.errors import FitFailed, InvalidRequest, LedgerUnavailable
from serving.contracts.head_settings import HeadSettings
from serving.evidence.heads.example_store import ExampleStore
from serving.evidence.heads.fit_call import fit_in_process
from serving.evidence.heads.fit_queue import Due, FitQueue
from serving.evidence.heads.head_store import HeadStore

logger = logging.getLogger(__name__)

FitOutcome = Literal["fitted", "unchanged", "failed", "overtaken"]
"""unchanged: the same examples gave the same head. failed: too few examples, or beyond a bound.
overtaken: an example was erased during the fit; it is repeated."""


class HeadEvents(Protocol):
    """Receives the results of fits, for metrics."""

    def head_fit_ended(self, task: str, outcome: FitOutcome, seconds: float) -> None:
        """Count one fit. seconds: elapsed."""
        ...


@dataclass(frozen=True, slots=True)
class FitEnd:
    """How a fit ended. version: of the scope's newest heads; None where nothing was saved."""

    due: Due
    outcome: FitOutcome
    version: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class TrainerDeps:
    """What fits need."""

    queue: FitQueue
    examples: ExampleStore
    heads: HeadStore
    events: HeadEvents


class HeadTrainer:
    """Fits due scopes until cancelled. Cancelling ends the fit in progress."""

    def __init__(self, deps: TrainerDeps, settings: HeadSettings) -> None:
        self._deps = deps
        self._settings = settings
        self._one_at_a_time = asyncio.Lock()
        self._is_cut_off = False

    async def watch(self) -> None:
        """Fit what is due, every check_s. While the database is unreachable, wait for it."""
        while True:
            ended: FitEnd | None = None
            try:
                ended = await self.fit_next()
            except (LedgerUnavailable, SQLAlchemyError) as error:
                # Only the kind of error: SQLAlchemy's messages hold statements and parameters.
                if not self._is_cut_off:
                    logger.warning("evidence.head_fits_stopped error=%s", type(error).__name__)
                self._is_cut_off = True
            else:
                self._is_cut_off = False
            if ended is None:
                await asyncio.sleep(self._settings.check_s)

    async def fit_next(self) -> FitEnd | None:
        """Fit one scope that is due; None where none is. Raises LedgerUnavailable."""
        async with self._one_at_a_time:
            due = await asyncio.to_thread(self._deps.queue.take)
            if due is None:
                return None
            is_done = False
            try:
                ended = await self._fit(due)
                is_done = ended.outcome != "overtaken"
            finally:
                # Also where this is cancelled: another replica may continue at once.
                await asyncio.shield(
                    asyncio.to_thread(self._deps.queue.finish, due, is_done=is_done)
                )
        self._deps.events.head_fit_ended(due.task, ended.outcome, ended.seconds)
        return ended

    async def _fit(self, due: Due) -> FitEnd:
        began = time.monotonic()
        outcome: FitOutcome = "failed"
        version: int | None = None
        try:
            outcome, version = await self._fit_and_save(due)
        except (FitFailed, InvalidRequest) as error:
            logger.warning(
                "evidence.head_fit_failed task=%s scope=%s reason=%s error=%s",
                due.task, due.scope_id, due.reason, error.message,
            )  # fmt: skip
            if due.erased_at is not None:
                await asyncio.to_thread(self._delete_erased, due.scope_id)
        seconds = time.monotonic() - began
        logger.info(
            "evidence.head_fit task=%s scope=%s reason=%s outcome=%s version=%s examples=%d "
            "seconds=%.1f",
            due.task, due.scope_id, due.reason, outcome, version, due.examples, seconds,
        )  # fmt: skip
        return FitEnd(due, outcome, version, seconds)

    async def _fit_and_save(self, due: Due) -> tuple[FitOutcome, int | None]:
        read = await asyncio.to_thread(
            self._deps.examples.read, due.scope_id, self._settings.max_rows
        )
        if read.unreadable:
            logger.warning(
                "evidence.head_examples_unreadable task=%s scope=%s rows=%d",
                due.task, due.scope_id, read.unreadable,
            )  # fmt: skip
        candidates = await fit_in_process(read.rows, self._settings)
        saved = await asyncio.to_thread(self._deps.heads.save, read, candidates)
        if saved is None:
            return "overtaken", None
        return ("fitted" if saved.is_new else "unchanged"), saved.version

    def _delete_erased(self, scope_id: str) -> None:
        """Delete the heads that could not be fitted again without what was erased."""
        rows = self._deps.heads.listed(scope_id)
        self._deps.heads.delete([row.digest for row in rows if row.erased_at is not None])
