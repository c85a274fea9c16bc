"""Sends lines to providers' batches at half price, and takes their results in once.

The lines' worst cases are held in the ledger first, until their results are known. The intent is in
the database before the call, and the provider's id after it.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from serving.batch.blobs import BlobStore
from serving.batch.files import FileStore
from serving.batch.lines import BadLine, LineFormat, read_line
from serving.batch.provider_batches import (
    ProviderBatches,
    ProviderBatchState,
    ProviderLine,
    ProviderLineResult,
    Uncertain,
    checked_spent,
    may_leave_batch,
)
from serving.batch.runner import Fence, LineRunner, unrun_text
from serving.batch.store import ActiveBatch, ClaimedLine, LeaseLost, LineEnd
from serving.batch.submission_store import LedgerRows, Submission, SubmissionStore
from serving.contracts.batch_settings import BatchSettings
from serving.contracts.context import RequestContext
from serving.contracts.deadline import Deadline
from serving.contracts.errors import (
    BudgetExceeded,
    FrontierError,
    FrontierRejected,
    LedgerUnavailable,
    NarrowgateError,
    NotFound,
)
from serving.contracts.exits import Exit, ExitObserver
from serving.contracts.frontier import FrontierCall
from serving.contracts.ledger import CallEnd, Caller, Entry, OpenCall
from serving.contracts.openai import json_text
from serving.contracts.prices import BATCH
from serving.frontier.frontier import BatchRequest, FrontierStack
from serving.frontier.spent import NOTHING, UNKNOWN, Spent
from serving.pipeline.plan import FrontierPlan, Policy, choose_plan
from serving.pipeline.read import read_chat

logger = logging.getLogger(__name__)
T = TypeVar("T")

Run = Callable[..., Any]
"""Awaits a blocking function in a thread, again until the database answers."""

_CHUNK = 200
_AT_ONCE = 5000
"""Lines of one submission: one transaction writes them, and their bodies are in memory."""
_SLACK = timedelta(minutes=70)
"""A deadline may be so much before the end of a provider's window, which has an hour's reserve.

A client that asks for 24 hours gets a provider's batch of 24 hours; at the deadline it is
cancelled, and what it has answered by then is taken in.
"""
_LOST_AFTER = timedelta(hours=1)
_INCOMPLETE_FOR = timedelta(hours=6)
_LONGEST_PAUSE_S = 3600.0
_PREPARE_S = 60.0
_PAUSE_S = 60.0
_UNKNOWN_CODE = "outcome_unknown"
_UNKNOWN_TEXT = "the provider's batch ended without this line's result; it may have been billed"


class ResumableLedger(Protocol):
    """A ledger whose open calls another process may close; serving.ledger implements it."""

    def entry(
        self, caller: Caller, request_id: str, endpoint: Any, task: str | None, index: int
    ) -> Entry:
        """Return the entry of an input."""
        ...

    def resumed(self, exit_: Mapping[str, Any], call: Mapping[str, Any]) -> tuple[Entry, OpenCall]:
        """Return the entry and the open call of rows."""
        ...


@dataclass(frozen=True, slots=True)
class SubmissionParts:
    """What submissions use. now: the time with its zone."""

    store: SubmissionStore
    files: FileStore
    blobs: BlobStore
    providers: Mapping[str, ProviderBatches]
    frontier: FrontierStack
    ledger: ResumableLedger
    observer: ExitObserver
    policy: Policy
    line_format: LineFormat
    runner: LineRunner
    settings: BatchSettings
    max_inputs: int
    now: Callable[[], datetime]


class Submissions:
    """Lines that are answered in providers' batches. run: see Run.

    fence: raises LeaseLost where this process no longer runs batches. ended: told of attempts that
    ended, once that is written.
    """

    def __init__(
        self,
        parts: SubmissionParts,
        run: Run,
        fence: Fence,
        ended: Callable[[Sequence[LineEnd]], None],
    ) -> None:
        self._parts = parts
        self._run = run
        self._fence = fence
        self._told = ended
        self._ask_at: dict[str, datetime] = {}
        self._incomplete: dict[str, tuple[datetime, int]] = {}
        self._cancelled: set[str] = set()
        self.submitting: set[str] = set()

    def fits(self, batch: ActiveBatch, target: str | None) -> bool:
        """Return whether a line of this target may wait for its provider's batch."""
        provider = self._parts.providers.get((target or "").partition("/")[0])
        if provider is None or target is None or not self._parts.frontier.batch_targets((target,)):
            return False
        window = timedelta(seconds=provider.window_s)
        return self._parts.now() + window <= batch.expires_at + _SLACK

    async def targets(self, batch: ActiveBatch) -> dict[str, bool]:
        """Return the targets of a batch whose lines go into providers' batches.

        True where a line may be sent now. A line that its submission gives back between this and
        its next claim still waits for the provider's batch.
        """
        found = await self._run(self._parts.store.targets, batch.id, self._parts.now())
        return {target: ready for target, ready in found.items() if self.fits(batch, target)}

    async def submit(
        self, holder: str, batch: ActiveBatch, target: str, room_usd: Decimal | None
    ) -> int:
        """Send lines that wait for one target as one provider batch; return how many were taken.

        Raises BudgetExceeded where not one of them fits the budget, LeaseLost.
        """
        parts = self._parts
        provider = parts.providers[target.partition("/")[0]]
        most = min(provider.max_lines, _AT_ONCE)
        key, lines = await self._run(
            parts.store.claim, holder, batch.id, target, most, parts.now(), room_usd
        )
        if not lines:
            return 0
        self.submitting.add(key)
        try:
            await self._submit(holder, batch, target, key, lines)
        finally:
            self.submitting.discard(key)
        return len(lines)

    async def follow(self, batches: Mapping[str, ActiveBatch]) -> None:
        """Ask for the states of submissions whose time has come; take final ones in."""
        parts = self._parts
        for one in await self._run(parts.store.opened):
            batch, provider = batches.get(one.batch), parts.providers.get(one.provider)
            if one.id in self.submitting or batch is None or provider is None:
                continue
            now = parts.now()
            if now < self._ask_at.get(one.id, now) and not self._must_cancel(one, batch):
                continue
            self._ask_at[one.id] = now + timedelta(seconds=parts.settings.provider_poll_s)
            try:
                await self._follow(one, batch, provider)
            except FrontierError as error:
                logger.warning("batch.provider_failed id=%s code=%s", one.id, error.code)
            except (LeaseLost, LedgerUnavailable, SQLAlchemyError):
                raise
            except Exception:
                # Another submission, of another tenant, must not wait for this one.
                logger.exception("batch.submission_failed id=%s", one.id)

    # Submission.

    async def _submit(
        self,
        holder: str,
        batch: ActiveBatch,
        target: str,
        key: str,
        lines: Sequence[ClaimedLine],
    ) -> None:
        parts = self._parts
        provider = parts.providers[target.partition("/")[0]]
        chosen: list[ProviderLine] = []
        size, refusal = 0, None
        for start in range(0, len(lines), _CHUNK):
            some = lines[start : start + _CHUNK]
            if refusal is not None or size > provider.max_bytes // 2:
                await self._run(parts.store.end_lines, key, [_again(line) for line in some])
                continue
            held, ends, refusal = await self._held(batch, target, some)
            chosen += held
            size += sum(line.length for line in some)
            await self._write(key, ends)
        if not chosen:
            await self._run(parts.store.mark, key, "abandoned", parts.now(), None)
            if refusal is not None:
                raise refusal
            return
        await self._run(parts.store.intend, holder, key)
        await self._fence()
        try:
            found = await provider.submit(chosen, key, target.partition("/")[2])
        except FrontierError as error:
            logger.warning("batch.not_submitted id=%s code=%s", key, error.code)
            if not may_leave_batch(error):
                await self._give_back(key, batch, error, parts.now())
            return
        await self._run(parts.store.mark, key, "submitted", parts.now(), found)
        logger.info("batch.submitted id=%s lines=%d target=%s", key, len(chosen), target)

    async def _held(
        self, batch: ActiveBatch, target: str, lines: Sequence[ClaimedLine]
    ) -> tuple[list[ProviderLine], list[LineEnd], BudgetExceeded | None]:
        """Hold the worst cases of lines; return those that go, the others' ends, and a refusal."""
        chosen, ends, refusal = [], [], None
        for line, request in await self._prepared(batch, lines):
            if isinstance(request, NarrowgateError):
                ends.append(self._parts.runner.refused(line, request, Decimal(0)))
                continue
            if refusal is None:
                try:
                    await self._hold(batch, line, target, request)
                    chosen.append(ProviderLine(line.request_id, request.body))
                    continue
                except BudgetExceeded as error:
                    refusal = error
            ends.append(_again(line, refusal.code))
        return chosen, ends, refusal

    async def _prepared(
        self, batch: ActiveBatch, lines: Sequence[ClaimedLine]
    ) -> list[tuple[ClaimedLine, BatchRequest | NarrowgateError]]:
        """Return lines as their provider gets them, or why they cannot be sent. In a thread."""
        parts = self._parts

        def prepare() -> list[tuple[ClaimedLine, BatchRequest | NarrowgateError]]:
            found: list[tuple[ClaimedLine, BatchRequest | NarrowgateError]] = []
            try:
                blob = parts.files.blob(batch.caller.tenant, batch.input_file)
            except NotFound as error:
                return [(line, error) for line in lines]
            for line in lines:
                try:
                    data = parts.blobs.slice(blob, line.start, line.length)
                    found.append((line, self._request(batch, line, data)))
                except LedgerUnavailable:
                    raise
                except NarrowgateError as error:
                    found.append((line, error))
            return found

        prepared: list[tuple[ClaimedLine, BatchRequest | NarrowgateError]] = await self._run(
            prepare
        )
        return prepared

    async def _hold(
        self, batch: ActiveBatch, line: ClaimedLine, target: str, request: BatchRequest
    ) -> None:
        """Hold a line's worst case in the ledger. Raises BudgetExceeded."""
        entry = self._parts.ledger.entry(batch.caller, line.request_id, "chat", None, 0)
        await entry.open_call(target, request.worst_case_usd, Deadline.after(_PREPARE_S))

    def _request(self, batch: ActiveBatch, line: ClaimedLine, data: bytes) -> BatchRequest:
        """Return a line as its provider gets it. Raises NarrowgateError."""
        parts = self._parts
        try:
            found = read_line(data, batch.endpoint, parts.line_format)
        except BadLine as problem:
            raise FrontierRejected(problem.message, field=problem.param) from problem
        request = read_chat(found.body, parts.max_inputs)
        deadline = Deadline.after(_PREPARE_S)
        context = RequestContext(line.request_id, batch.caller, found.options, deadline)
        plan = choose_plan(request, context, parts.policy)
        assert isinstance(plan, FrontierPlan)
        entry = parts.ledger.entry(batch.caller, line.request_id, "chat", None, 0)
        return parts.frontier.batch_request(
            FrontierCall(
                body=request.provider_body(), targets=plan.targets, bounds=plan.bounds,
                deadline=deadline, request_id=line.request_id, entry=entry,
                max_cost_usd=found.options.max_cost_usd,
            )
        )  # fmt: skip

    # What became of it.

    def _must_cancel(self, one: Submission, batch: ActiveBatch) -> bool:
        return batch.stopped is not None and one.id not in self._cancelled

    async def _follow(self, one: Submission, batch: ActiveBatch, provider: ProviderBatches) -> None:
        parts = self._parts
        lines = await self._run(parts.store.lines, one.id)
        if one.state == "holding":
            # A process that stopped before it called the provider.
            await self._give_back(one.id, batch, None, one.created_at)
            return
        if one.provider_id is None:
            known = [o.provider_id for o in await self._run(parts.store.opened) if o.provider_id]
            keys = [line.request_id for line in lines]
            found = await provider.find(one.id, one.created_at, keys, known)
            if isinstance(found, Uncertain):
                return
            if found is None:
                await self._give_back(one.id, batch, None, one.created_at)
                return
            await self._run(parts.store.mark, one.id, "submitted", parts.now(), found)
            return
        if self._must_cancel(one, batch):
            await provider.cancel(one.provider_id)
            self._cancelled.add(one.id)
        state = await provider.state(one.provider_id)
        window = timedelta(seconds=provider.window_s)
        is_lost = state.phase == "missing" and parts.now() > one.created_at + window + _LOST_AFTER
        if state.phase == "failed":
            text = state.error or "the provider refused the batch"
            error = FrontierRejected(f"the provider refused the batch: {text}")
            await self._give_back(one.id, batch, error, one.created_at, retry=state.is_retryable)
        elif state.is_final or is_lost:
            await self._take_in(one, batch, provider, lines, None if is_lost else state)

    async def _take_in(
        self,
        one: Submission,
        batch: ActiveBatch,
        provider: ProviderBatches,
        lines: Sequence[ClaimedLine],
        state: ProviderBatchState | None,
    ) -> None:
        """Take results in. state: None for a batch that the provider no longer has."""
        parts, left = self._parts, {line.request_id: line for line in lines}
        assert one.provider_id is not None
        if state is not None:
            some: list[ProviderLineResult] = []
            async with aclosing(provider.results(one.provider_id, list(left))) as results:
                async for result in results:
                    some.append(result)
                    if len(some) == _CHUNK:
                        await self._ended(one, batch, some, left)
                        some = []
            await self._ended(one, batch, some, left)
            if len(left) > _unrun(state, len(left)) and self._may_come(one, provider):
                logger.warning(
                    "batch.results_missing id=%s provider_id=%s lines=%d",
                    one.id, one.provider_id, len(left),
                )  # fmt: skip
                return
        # Nothing says what became of these: they stay held, and are not repeated.
        missing = [ProviderLineResult(key, "errored", spent=UNKNOWN) for key in list(left)]
        await self._ended(one, batch, missing, left)
        await self._run(parts.store.mark, one.id, "ended", parts.now(), one.provider_id)
        self._incomplete.pop(one.id, None)
        if not missing:
            # Else the provider's copy may be the only one of what was paid for.
            await self._forget(provider, one.provider_id)
        logger.info("batch.taken_in id=%s lines=%d missing=%d", one.id, len(lines), len(missing))

    def _may_come(self, one: Submission, provider: ProviderBatches) -> bool:
        """Note that an ended batch lacks results; return whether they are still waited for.

        Its files may lag behind its state, or a proxy may have answered in the provider's place.
        """
        now = self._parts.now()
        since, asks = self._incomplete.get(one.id, (now, 0))
        self._incomplete[one.id] = since, asks + 1
        pause_s = min(_LONGEST_PAUSE_S, self._parts.settings.provider_poll_s * 2.0**asks)
        self._ask_at[one.id] = now + timedelta(seconds=pause_s)
        window = timedelta(seconds=provider.window_s)
        return now < min(since + _INCOMPLETE_FOR, one.created_at + window + _LOST_AFTER)

    async def _forget(self, provider: ProviderBatches, provider_id: str) -> None:
        """Delete the prompts and answers at the provider; they expire there where that fails."""
        try:
            await provider.forget(provider_id)
        except FrontierError as error:
            logger.warning("batch.not_forgotten id=%s code=%s", provider_id, error.code)

    async def _ended(
        self,
        one: Submission,
        batch: ActiveBatch,
        results: Sequence[ProviderLineResult],
        left: dict[str, ClaimedLine],
    ) -> None:
        """Close the ledger's calls of results, then their lines."""
        chosen = [(left.pop(r.key), r) for r in results if r.key in left]
        if not chosen:
            return
        lines = [line for line, _ in chosen]
        rows = await self._rows(batch, lines, one.created_at)
        requests = dict(await self._prepared(batch, lines))
        ends, last = [], None
        for line, result in chosen:
            row = rows.get(line.request_id)
            request = requests[line]
            spent = result.spent
            if result.document is not None and isinstance(request, BatchRequest):
                spent = checked_spent(result, request.facts)
            cost = None
            if row is not None:
                cost, last = self._closed(one, row, result, spent)
            ends.append(self._end(batch, line, one, result, spent, cost))
        if last is not None:
            await last.written()
        await self._write(one.id, ends)

    def _closed(
        self, one: Submission, rows: LedgerRows, result: ProviderLineResult, spent: Spent
    ) -> tuple[Decimal | None, Entry | None]:
        """Close a line's call and its entry; return its cost or worst case, and the entry."""
        if rows.call["state"] == "closed":
            # An earlier process had taken this result in.
            return rows.call["cost_usd"], None
        parts, target = self._parts, f"{one.provider}/{one.model}"
        entry, call = parts.ledger.resumed(rows.exit, rows.call)
        elapsed_s = (parts.now() - one.created_at).total_seconds()
        code = None if result.kind == "succeeded" else _code(result)
        call.close(CallEnd(code or "ok", spent.usage, spent.source, elapsed_s, BATCH))
        exit_ = Exit(
            rows.exit["request_id"], "chat", None, "frontier" if code is None else "none",
            "requested", target, spent.usage if code is None else None, elapsed_s,
            valid=code is None, error=code, service_tier=BATCH if code is None else None,
        )  # fmt: skip
        cost = entry.close(exit_)
        parts.observer.input_finished(exit_, cost)
        return (rows.call["held_usd"] if cost is None else cost), entry

    def _end(
        self,
        batch: ActiveBatch,
        line: ClaimedLine,
        one: Submission,
        result: ProviderLineResult,
        spent: Spent,
        cost: Decimal | None,
    ) -> LineEnd:
        runner = self._parts.runner
        if result.document is not None:
            document = {
                **result.document, "model": f"{one.provider}/{one.model}",
                "narrowgate": {"route": "frontier", "reason": "requested", "lane": "batch",
                               "cost_usd": None if cost is None else f"{cost:f}"},
            }  # fmt: skip
            end = LineEnd(line.batch, line.number, "succeeded", cost_usd=cost)
            return runner.sealed(end, runner.text(line, 200, json_text(document)))
        if batch.stopped is None and spent is NOTHING and self._may_repeat(line, result):
            # The first time at once: the deadline may be near.
            pause_s = _PAUSE_S if line.attempt > 1 else 0.0
            return _again(line, _code(result), self._parts.now() + timedelta(seconds=pause_s))
        if result.kind in ("expired", "cancelled") and spent is NOTHING and batch.stopped:
            state = "expired" if batch.stopped == "expired" else "cancelled"
            code = "batch_expired" if state == "expired" else "batch_cancelled"
            return LineEnd(line.batch, line.number, state, error=code, cost_usd=cost)  # type: ignore[arg-type]
        if result.error is not None:
            return runner.refused(line, result.error, cost)
        text = unrun_text(line.request_id, line.custom_id, _UNKNOWN_CODE, _UNKNOWN_TEXT)
        end = LineEnd(line.batch, line.number, "failed", error=_UNKNOWN_CODE, cost_usd=cost)
        return runner.sealed(end, text)

    def _may_repeat(self, line: ClaimedLine, result: ProviderLineResult) -> bool:
        """Return whether an unpaid line may be sent again; as for a line that runs here."""
        if line.attempt >= self._parts.settings.max_attempts:
            return False
        if result.kind in ("expired", "cancelled"):
            return True
        return result.error is not None and result.error.retryable

    async def _give_back(
        self,
        key: str,
        batch: ActiveBatch,
        error: FrontierError | None,
        since: datetime,
        *,
        retry: bool = True,
    ) -> None:
        """Return the unpaid lines of a submission to the plan, or fail them with its error."""
        parts = self._parts
        lines = await self._run(parts.store.lines, key)
        pause = timedelta(seconds=0.0 if error is None else _PAUSE_S)
        again_at = parts.now() + pause
        one = Submission(key, batch.id, "", "", "intent", None, parts.now())
        for start in range(0, len(lines), _CHUNK):
            some = lines[start : start + _CHUNK]
            rows = await self._rows(batch, some, since)
            last = None
            for line in some:
                row = rows.get(line.request_id)
                if row is not None:
                    result = ProviderLineResult(line.request_id, "errored", error=error)
                    _, last = self._closed(one, row, result, NOTHING)
            if last is not None:
                await last.written()
            ends = [
                _again(line, None if error is None else error.code, again_at)
                if error is None or (retry and line.attempt < parts.settings.max_attempts)
                else parts.runner.refused(line, error, Decimal(0))
                for line in some
            ]
            await self._write(key, ends)
        await self._run(parts.store.mark, key, "abandoned", parts.now(), None)

    async def _write(self, submission: str, ends: Sequence[LineEnd]) -> None:
        await self._run(self._parts.store.end_lines, submission, ends)
        self._told(ends)

    async def _rows(
        self, batch: ActiveBatch, lines: Sequence[ClaimedLine], since: datetime
    ) -> dict[str, LedgerRows]:
        names = [line.request_id for line in lines]
        found: dict[str, LedgerRows] = await self._run(
            self._parts.store.ledger_rows, batch.caller.tenant, names, since
        )
        return found

    async def aclose(self) -> None:
        """Close the connections to the providers."""
        await asyncio.gather(*(one.aclose() for one in self._parts.providers.values()))


def _unrun(state: ProviderBatchState, left: int) -> int:
    """Return how many lines without a result did not run, by a final batch's counts."""
    if not state.counts.total:
        return 0 if state.phase == "ended" else left
    return state.counts.total - state.counts.succeeded - state.counts.errored


def _again(
    line: ClaimedLine, code: str | None = None, not_before: datetime | None = None
) -> LineEnd:
    return LineEnd(line.batch, line.number, "waiting", error=code, not_before=not_before)


def _code(result: ProviderLineResult) -> str:
    if result.error is not None:
        return result.error.code
    return result.kind if result.kind in ("expired", "cancelled") else _UNKNOWN_CODE
