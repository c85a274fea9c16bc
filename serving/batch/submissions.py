"""Sends lines to providers' batches at half price, and takes their results in once.

The lines' worst cases are held in the ledger first, until their results are known. The intent is in
the database before the call, and the provider's id after it.
"""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from serving.batch.audits import AuditBatches, AuditResult
from serving.batch.batch_calls import WINDOW_S
from serving.batch.blobs import BlobStore
from serving.batch.files import FileStore
from serving.batch.line_work import Fence, LineWork, ProvidedAnswer
from serving.batch.lines import TASK_PREFIX, BadLine, LineFormat, read_line
from serving.batch.provider_batches import (
    ProviderBatches,
    ProviderBatchState,
    ProviderLine,
    ProviderLineResult,
    Uncertain,
    checked_spent,
    may_leave_batch,
)
from serving.batch.room import BatchRoom
from serving.batch.runner import LineRunner, unrun_text
from serving.batch.slack import Slack
from serving.batch.store import ActiveBatch, ClaimedLine, LeaseLost, LineEnd, is_lease_lost
from serving.batch.submission_store import LedgerRows, Submission, SubmissionStore
from serving.contracts.batch_settings import BatchSettings
from serving.contracts.context import RequestContext
from serving.contracts.deadline import Deadline
from serving.contracts.errors import (
    BudgetExceeded,
    FrontierError,
    FrontierRejected,
    FrontierUnavailable,
    LedgerUnavailable,
    MaxCostExceeded,
    NarrowgateError,
    NotFound,
)
from serving.contracts.exits import DEFERRED, Exit, ExitObserver
from serving.contracts.frontier import FrontierCall
from serving.contracts.ledger import CallEnd, Caller, Entry, OpenCall
from serving.contracts.prices import BATCH
from serving.evidence.heads.cipher import UnreadableContent
from serving.frontier.frontier import BatchRequest, FrontierStack
from serving.frontier.spent import NOTHING, UNKNOWN, Spent
from serving.pipeline.cache_access import CacheAccess
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
_HURRY = timedelta(minutes=5)
"""Before the time at which a provider's window no longer fits, lines do not wait for others."""
_ENOUGH = 1000
"""Lines that the gateway's own lane left to a provider are sent from this number on."""
_ANSWERS_AT_ONCE = 4
"""Answers that are taken through the steps of a request together; no provider slows them down."""
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
    """What submissions use. now: the time with its zone. cache: None without one."""

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
    slack: Slack
    audits: AuditBatches
    cache: CacheAccess | None = None


@dataclass(frozen=True, slots=True)
class _Request:
    """A line as its provider gets it. size: about its bytes.

    key: in the cache, None where it is not looked up.
    """

    body: Mapping[str, Any]
    worst_usd: Decimal
    size: int
    key: str | None = None
    context: RequestContext | None = None


@dataclass(slots=True)
class _Held:
    """What became of some lines. lines: those that go; size: about their bytes. ends: the others'.

    refusal: where the budget or the batch's limit had no room for some of them.
    """

    lines: list[ProviderLine] = field(default_factory=list)
    size: int = 0
    ends: list[LineEnd] = field(default_factory=list)
    refusal: BudgetExceeded | MaxCostExceeded | None = None


_Prepared = tuple[ClaimedLine, _Request | NarrowgateError]


@dataclass(frozen=True, slots=True)
class Lane:
    """What submissions need of the scheduler. run: see Run.

    fence: raises LeaseLost where this process no longer runs batches. ended: told of attempts that
    ended, once that is written. room: of a batch.
    """

    run: Run
    fence: Fence
    ended: Callable[[Sequence[LineEnd]], None]
    room: Callable[[ActiveBatch], BatchRoom]


class Submissions:
    """Lines that are answered in providers' batches."""

    def __init__(self, parts: SubmissionParts, lane: Lane) -> None:
        self._parts = parts
        self._run = lane.run
        self._fence = lane.fence
        self._told = lane.ended
        self._room = lane.room
        # By the event loop's clock, which no one sets back.
        self._ask_at: dict[str, float] = {}
        self._incomplete: dict[str, tuple[datetime, int]] = {}
        self._cancelled: set[str] = set()
        self._orphans: set[str] = set()
        self._hurried_at: dict[tuple[str, str], datetime] = {}
        self.submitting: set[str] = set()

    def fits(self, batch: ActiveBatch, target: str | None) -> bool:
        """Return whether a line of this target may wait for its provider's batch."""
        provider = self._parts.providers.get((target or "").partition("/")[0])
        if provider is None or target is None or not self._parts.frontier.batch_targets((target,)):
            return False
        window = timedelta(seconds=provider.window_s)
        return self._parts.now() + window <= batch.expires_at + _SLACK

    def fits_any(self, batch: ActiveBatch) -> bool:
        """Return whether a provider's batch fits: all have the same window."""
        windows = [timedelta(seconds=one.window_s) for one in self._parts.providers.values()]
        return bool(windows) and self._parts.now() + max(windows) <= batch.expires_at + _SLACK

    async def targets(
        self, batch: ActiveBatch, *, may_grow: bool = True
    ) -> tuple[dict[str, bool], list[str]]:
        """Return the targets of a batch whose lines go into providers' batches, and the others.

        True where lines may be sent now: those that name the model at once; those that the
        gateway's own lane left to the provider once they are many, or no more can come. A line that
        its submission gives back between this and its next claim still waits for the provider.
        may_grow: False where the lines that may join them cannot run now.
        """
        store, now = self._parts.store, self._parts.now()
        found = await self._run(store.targets, batch.id, now)
        fitting = {target: lines for target, lines in found.items() if self.fits(batch, target)}
        grows = False
        if may_grow and any(lines.waiting and not lines.is_first for lines in fitting.values()):
            grows = await self._run(store.may_grow, batch.id)
        ready = {
            target: lines.waiting > 0
            and (
                lines.is_first
                or not grows
                or lines.waiting >= _ENOUGH
                or self._is_last_chance(batch, target)
            )
            for target, lines in fitting.items()
        }
        return ready, [target for target in found if target not in fitting]

    def _is_last_chance(self, batch: ActiveBatch, target: str) -> bool:
        """Return whether the provider's window soon does not fit; once in the time of a poll."""
        parts, now = self._parts, self._parts.now()
        window = timedelta(seconds=parts.providers[target.partition("/")[0]].window_s)
        if now + window + _HURRY <= batch.expires_at + _SLACK:
            return False
        sent = self._hurried_at.get((batch.id, target))
        if sent is not None and now < sent + timedelta(seconds=parts.settings.provider_poll_s):
            return False
        self._hurried_at[batch.id, target] = now
        return True

    async def submit(self, holder: str, batch: ActiveBatch, target: str) -> int:
        """Send lines that wait for one target as one provider batch; return how many were taken.

        Raises BudgetExceeded and MaxCostExceeded where not one of them fits the budget or the
        batch's limit, LeaseLost.
        """
        parts, room = self._parts, self._room(batch)
        provider = parts.providers[target.partition("/")[0]]
        most = min(provider.max_lines, _AT_ONCE)
        async with room.claiming:
            key, lines = await self._run(
                parts.store.claim, holder, batch.id, target, most, parts.now(),
                await room.free_usd(),
            )  # fmt: skip
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
        for one in await self._run(self._parts.store.opened):
            try:
                await self._follow_one(one, batches.get(one.batch))
            except FrontierError as error:
                logger.warning("batch.provider_failed id=%s code=%s", one.id, error.code)
            except (LeaseLost, LedgerUnavailable, SQLAlchemyError):
                raise
            except Exception:
                # Another submission, of another tenant, must not wait for this one.
                logger.exception("batch.submission_failed id=%s", one.id)

    async def _follow_one(self, one: Submission, batch: ActiveBatch | None) -> None:
        provider = self._parts.providers.get(one.provider)
        if one.id in self.submitting:
            return
        if provider is None:
            if batch is not None:
                await self._without_provider(one, batch)
        elif batch is None:
            if not one.batch:
                await self._end_empty(one, provider)
        elif self._is_due(one, batch):
            await self._follow(one, batch, provider)

    def _is_due(self, one: Submission, batch: ActiveBatch) -> bool:
        """Return whether a submission's time to be asked for has come, and note that it is."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._ask_at.get(one.id, now_s) and not self._must_cancel(one, batch):
            return False
        self._ask_at[one.id] = now_s + self._parts.settings.provider_poll_s
        return True

    async def _without_provider(self, one: Submission, batch: ActiveBatch) -> None:
        """End lines whose provider the settings no longer name, once its window has passed."""
        if one.id not in self._orphans:
            self._orphans.add(one.id)
            logger.warning(
                "batch.provider_removed id=%s provider=%s: its results cannot be read; put the "
                "provider and its key back, or the lines end as unknown after its window",
                one.id, one.provider,
            )  # fmt: skip
        if self._is_over(one, WINDOW_S):
            lines = await self._run(self._parts.store.lines, one.id)
            await self._missing(one, batch, lines, None)

    async def _end_empty(self, one: Submission, provider: ProviderBatches) -> None:
        """End a submission whose lines have all ended: a crash came before its own end."""
        parts = self._parts
        if one.provider_id is None:
            await self._run(parts.store.mark, one.id, "abandoned", parts.now(), None)
            return
        await self._run(parts.store.mark, one.id, "ended", parts.now(), one.provider_id)
        await self._forget(provider, one.provider_id)

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
        size = 0
        refusal: BudgetExceeded | MaxCostExceeded | None = None
        for start in range(0, len(lines), _CHUNK):
            some = lines[start : start + _CHUNK]
            if refusal is not None or size > provider.max_bytes // 2:
                await self._run(parts.store.end_lines, key, [_again(line) for line in some])
                continue
            held = await self._held(batch, target, key, some)
            chosen += held.lines
            size, refusal = size + held.size, held.refusal
            await self._write(key, held.ends)
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
        self, batch: ActiveBatch, target: str, key: str, lines: Sequence[ClaimedLine]
    ) -> "_Held":
        """Hold the worst cases of lines; return those that go, and the others' ends."""
        prepared = await self._uncached(key, await self._prepared(batch, lines))
        # At once: the ledger commits pending writes in one transaction.
        held = await asyncio.gather(
            *(self._hold(batch, line, target, request) for line, request in prepared),
            return_exceptions=True,
        )
        await self._reprice(batch, key, prepared)
        found = _Held()
        for (line, request), error in zip(prepared, held, strict=True):
            if isinstance(error, BudgetExceeded | MaxCostExceeded):
                found.refusal = error
                found.ends.append(_again(line, error.code))
            elif error is not None:
                raise error
            elif isinstance(request, NarrowgateError):
                found.ends.append(self._refused(batch, line, request))
            else:
                found.lines.append(ProviderLine(line.request_id, request.body))
                found.size += request.size
        return found

    async def _uncached(self, key: str, prepared: Sequence[_Prepared]) -> list[_Prepared]:
        """Return those lines that no answer in the cache answers; the others leave the submission.

        Their requests find it there, as any other.
        """
        cache = self._parts.cache
        asked = [one for _, one in prepared if isinstance(one, _Request)]
        keys = {one.key: one.context for one in asked if one.key is not None and one.context}
        held = await cache.held(keys) if cache is not None and keys else set()
        if not held:
            return list(prepared)
        hits = [
            line.number
            for line, one in prepared
            if isinstance(one, _Request) and one.key in held
        ]  # fmt: skip
        await self._run(self._parts.store.leave, key, hits)
        left = set(hits)
        return [(line, one) for line, one in prepared if line.number not in left]

    async def _prepared(self, batch: ActiveBatch, lines: Sequence[ClaimedLine]) -> list[_Prepared]:
        """Return lines as their provider gets them, or why they cannot be sent. In a thread."""
        parts = self._parts
        if batch.is_audit:
            return [
                (line, one) if isinstance(one, NarrowgateError)
                else (line, _Request(one.body, one.worst_case_usd, line.length))
                for line, one in await self._run(parts.audits.requests, batch, lines)
            ]  # fmt: skip

        def prepare() -> list[_Prepared]:
            stored = parts.store.requests(batch.id, [line.number for line in lines])
            found: list[_Prepared] = []
            try:
                blob = parts.files.blob(batch.caller.tenant, batch.input_file)
            except NotFound as error:
                return [(line, error) for line in lines]
            for line in lines:
                try:
                    if line.number in stored:
                        text = parts.runner.opened(batch.id, stored[line.number])
                        worst = line.most_usd(in_batch=True) or Decimal(0)
                        found.append((line, _Request(json.loads(text), worst, len(text))))
                        continue
                    data = parts.blobs.slice(blob, line.start, line.length)
                    found.append((line, self._request(batch, line, data)))
                except LedgerUnavailable:
                    raise
                except NarrowgateError as error:
                    found.append((line, error))
                except UnreadableContent as error:
                    wrapped = NarrowgateError(f"the line's request cannot be read: {error}")
                    found.append((line, wrapped))
            return found

        prepared: list[_Prepared] = await self._run(prepare)
        return prepared

    async def _hold(
        self,
        batch: ActiveBatch,
        line: ClaimedLine,
        target: str,
        request: "_Request | NarrowgateError",
    ) -> None:
        """Hold a line's worst case in the ledger, where it can be sent.

        Raises BudgetExceeded, and MaxCostExceeded where the price has grown since the check.
        """
        if isinstance(request, NarrowgateError):
            return
        more_usd = request.worst_usd - (line.most_usd(in_batch=True) or Decimal(0))
        await self._room(batch).require(line.number, more_usd)
        entry = self._entry(batch, line)
        await entry.open_call(target, request.worst_usd, Deadline.after(_PREPARE_S))

    async def _reprice(self, batch: ActiveBatch, key: str, prepared: Sequence[_Prepared]) -> None:
        """Write the worst cases that the ledger holds, where the lines' own differ."""
        changed = {
            line.number: request.worst_usd
            for line, request in prepared
            if isinstance(request, _Request) and request.worst_usd != line.most_usd(in_batch=True)
        }
        await self._run(self._parts.store.reprice, key, changed)
        for number in changed:
            self._room(batch).release(number)

    def _entry(self, batch: ActiveBatch, line: ClaimedLine) -> Entry:
        if batch.is_audit:
            name = batch.metadata["task"]
            return self._parts.ledger.entry(batch.caller, line.request_id, "audit", name, 0)
        task = batch.endpoint.removeprefix(TASK_PREFIX)
        is_task = task != batch.endpoint
        return self._parts.ledger.entry(
            batch.caller, line.request_id, "task" if is_task else "chat",
            task if is_task else None, 0,
        )  # fmt: skip

    def _request(self, batch: ActiveBatch, line: ClaimedLine, data: bytes) -> "_Request":
        """Return a line that names a model as its provider gets it. Raises NarrowgateError."""
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
        key = None
        if parts.cache is not None and line.attempt == 1 and found.options.cache != "refresh":
            # Once: an entry that has gone since then must not be waited for again.
            _, key = parts.cache.found_key(request, context)
        made = parts.frontier.batch_request(
            FrontierCall(
                body=request.provider_body(), targets=plan.targets, bounds=plan.bounds,
                deadline=deadline, request_id=line.request_id, entry=self._entry(batch, line),
                max_cost_usd=found.options.max_cost_usd,
            )
        )  # fmt: skip
        return _Request(made.body, made.worst_case_usd, line.length, key, context)

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
                if self._is_over(one, provider.window_s):
                    # No provider keeps a batch open for so long.
                    await self._missing(one, batch, lines, None)
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
        is_lost = state.phase == "missing" and self._is_over(one, provider.window_s)
        if state.phase == "failed":
            text = state.error or "the provider refused the batch"
            error = FrontierRejected(f"the provider refused the batch: {text}")
            await self._give_back(one.id, batch, error, one.created_at, retry=state.is_retryable)
        elif state.is_final or is_lost:
            await self._take_in(one, batch, provider, lines, None if is_lost else state)

    def _is_over(self, one: Submission, window_s: float) -> bool:
        return self._parts.now() > _given_up_at(one, window_s)

    async def _take_in(
        self,
        one: Submission,
        batch: ActiveBatch,
        provider: ProviderBatches,
        lines: Sequence[ClaimedLine],
        state: ProviderBatchState | None,
    ) -> None:
        """Take results in. state: None for a batch that the provider no longer has."""
        left = {line.request_id: line for line in lines}
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
        missing = list(left.values())
        is_known = await self._missing(one, batch, missing, state)
        if is_known:
            # Else the provider's copy may be the only one of what was paid for.
            await self._forget(provider, one.provider_id)
        logger.info("batch.taken_in id=%s lines=%d missing=%d", one.id, len(lines), len(missing))

    async def _missing(
        self,
        one: Submission,
        batch: ActiveBatch,
        lines: Sequence[ClaimedLine],
        state: ProviderBatchState | None,
    ) -> bool:
        """End a submission and those of its lines that have no result.

        Where the provider's own counts say that all lines that ran have one, these did not run.
        Elsewhere nothing says what became of them: they stay held, and are not repeated. Return
        whether it is known of all.
        """
        store, kind, spent = self._parts.store, "errored", UNKNOWN
        error: FrontierError | None = None
        if lines and state is not None and state.counts.total:
            ran = await self._run(store.ran, one.id)
            is_whole = ran >= state.counts.succeeded + state.counts.errored
            if is_whole and state.phase in ("expired", "cancelled"):
                kind, spent = state.phase, NOTHING
                text = f"provider {one.provider!r} did not run the line: its batch is {kind}"
                error = FrontierUnavailable(text, fix="send it again")
        for start in range(0, len(lines), _CHUNK):
            left = {line.request_id: line for line in lines[start : start + _CHUNK]}
            missing = [
                ProviderLineResult(key, kind, spent=spent, error=error)  # type: ignore[arg-type]
                for key in left
            ]
            await self._ended(one, batch, missing, left)
        await self._run(store.mark, one.id, "ended", self._parts.now(), one.provider_id)
        self._incomplete.pop(one.id, None)
        return not lines or spent is NOTHING

    def _may_come(self, one: Submission, provider: ProviderBatches) -> bool:
        """Note that an ended batch lacks results; return whether they are still waited for.

        Its files may lag behind its state, or a proxy may have answered in the provider's place.
        """
        now = self._parts.now()
        since, asks = self._incomplete.get(one.id, (now, 0))
        self._incomplete[one.id] = since, asks + 1
        pause_s = min(_LONGEST_PAUSE_S, self._parts.settings.provider_poll_s * 2.0**asks)
        self._ask_at[one.id] = asyncio.get_running_loop().time() + pause_s
        return now < min(since + _INCOMPLETE_FOR, _given_up_at(one, provider.window_s))

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
        rows = await self._rows(batch, [line for line, _ in chosen], one.created_at)
        if batch.is_audit:
            await self._audited(one, batch, chosen, rows)
            return
        answered = [(line, result) for line, result in chosen if result.document is not None]
        ends, last = await self._answered(one, batch, answered, rows), None
        for line, result in chosen:
            if result.document is not None:
                continue
            row, cost = rows.get(line.request_id), None
            if row is not None:
                cost, last = self._closed(one, row, result, result.spent)
            ends.append(self._end(batch, line, result, result.spent, cost))
        if last is not None:
            await last.written()
        await self._write(one.id, ends)

    async def _audited(
        self,
        one: Submission,
        batch: ActiveBatch,
        found: Sequence[tuple[ClaimedLine, ProviderLineResult]],
        rows: Mapping[str, LedgerRows],
    ) -> None:
        """Close the ledger's calls of audits, write their verdicts, then end their lines."""
        audits = self._parts.audits
        asked = dict(await self._run(audits.requests, batch, [line for line, _ in found]))
        ends: list[LineEnd] = []
        last: Entry | None = None
        for line, result in found:
            row, request, cost = rows.get(line.request_id), asked[line], None
            spent = result.spent
            if result.document is not None and isinstance(request, BatchRequest):
                spent = checked_spent(result, request.facts)
            if row is not None:
                cost, entry = self._closed(one, row, result, spent)
                last = entry or last
            ends.append(self._end(batch, line, result, result.spent, cost))
        if last is not None:
            await last.written()
        # Before the lines end: a crash in between has the results read again.
        await audits.settle(self._run, [
            AuditResult(line.custom_id, result, end.cost_usd)
            for (line, result), end in zip(found, ends, strict=True)
            if end.state in ("succeeded", "failed")
        ])  # fmt: skip
        await self._write(one.id, ends)

    async def _answered(
        self,
        one: Submission,
        batch: ActiveBatch,
        found: Sequence[tuple[ClaimedLine, ProviderLineResult]],
        rows: Mapping[str, LedgerRows],
    ) -> list[LineEnd]:
        """Take answers through the steps of a request: what they are read and kept for is one."""
        if not found:
            return []
        parts = self._parts

        def read() -> list[bytes]:
            blob = parts.files.blob(batch.caller.tenant, batch.input_file)
            return [parts.blobs.slice(blob, line.start, line.length) for line, _ in found]

        async def answer(line: ClaimedLine, result: ProviderLineResult, data: bytes) -> LineEnd:
            provided = self._provided(one, result, rows.get(line.request_id))
            return await self._through(batch, line, data, provided)

        try:
            texts = await self._run(read)
        except LedgerUnavailable:
            raise
        except NarrowgateError as error:
            # The content is missing or damaged; what was answered is paid for.
            return [
                self._unread(line, self._provided(one, result, rows.get(line.request_id)), error)
                for line, result in found
            ]
        ends: list[LineEnd] = []
        for start in range(0, len(found), _ANSWERS_AT_ONCE):
            began_s = time.perf_counter()
            some = slice(start, start + _ANSWERS_AT_ONCE)
            ends += await asyncio.gather(
                *(answer(*one, data) for one, data in zip(found[some], texts[some], strict=True))
            )
            await parts.slack.rest(time.perf_counter() - began_s)
        return ends

    async def _through(
        self, batch: ActiveBatch, line: ClaimedLine, data: bytes, provided: ProvidedAnswer
    ) -> LineEnd:
        runner, room = self._parts.runner, self._room(batch)
        counted_usd = line.most_usd(in_batch=True) or Decimal(0)
        work = LineWork(
            provided=provided, reserve=lambda usd: room.require(line.number, usd - counted_usd)
        )
        try:
            end = await runner.run(batch, line, data, self._parts.now(), work)
        except BadLine as problem:
            return self._unread(line, provided, FrontierRejected(problem.message))
        except Exception as error:
            if is_lease_lost(error):
                raise
            # The process edge of a line: it must end, and its batch must go on.
            logger.exception("batch.line_failed id=%s", line.request_id)
            failed = NarrowgateError(f"the line failed: {type(error).__name__}")
            return self._unread(line, provided, failed)
        if not provided.is_closed:
            self._close_unread(line, provided, end.error)
        return end

    def _unread(
        self, line: ClaimedLine, provided: ProvidedAnswer, error: NarrowgateError
    ) -> LineEnd:
        """Return the end of a line whose answer could not be taken."""
        cost = provided.cost_usd
        if not provided.is_closed:
            cost = self._close_unread(line, provided, error.code)
        most = line.most_usd(in_batch=True) if cost is None else cost
        return self._parts.runner.refused(line, error, most)

    def _close_unread(
        self, line: ClaimedLine, provided: ProvidedAnswer, code: str | None
    ) -> Decimal | None:
        """Close the call and the entry of an answer that no step took; return their cost."""
        provided.settle()
        provided.is_closed = True
        if provided.entry is None:
            return provided.cost_usd
        exit_ = Exit(
            line.request_id, "chat", None, "none", "requested", provided.target, None,
            provided.elapsed_s, valid=False, error=code or NarrowgateError.code,
        )  # fmt: skip
        cost = provided.entry.close(exit_)
        self._parts.observer.input_finished(exit_, cost)
        return cost

    def _provided(
        self, one: Submission, result: ProviderLineResult, rows: LedgerRows | None
    ) -> ProvidedAnswer:
        target, parts = f"{one.provider}/{one.model}", self._parts
        elapsed_s = (parts.now() - one.created_at).total_seconds()
        if rows is None or rows.call["state"] == "closed":
            # An earlier process had taken this result in.
            cost = None if rows is None else rows.call["cost_usd"]
            return ProvidedAnswer(target, result, elapsed_s, None, None, cost)
        return ProvidedAnswer(
            target, result, elapsed_s, *parts.ledger.resumed(rows.exit, rows.call)
        )

    def _closed(
        self, one: Submission, rows: LedgerRows, result: ProviderLineResult, spent: Spent
    ) -> tuple[Decimal | None, Entry | None]:
        """Close the call and the entry of a line without an answer, or of an audit.

        Return its cost or worst case, and the entry.
        """
        if rows.call["state"] == "closed":
            # An earlier process had taken this result in.
            return rows.call["cost_usd"], None
        parts, target = self._parts, f"{one.provider}/{one.model}"
        entry, call = parts.ledger.resumed(rows.exit, rows.call)
        elapsed_s = (parts.now() - one.created_at).total_seconds()
        is_answered, endpoint = result.document is not None, rows.exit["endpoint"]
        code = None if is_answered else _code(result, spent)
        call.close(CallEnd(code or "ok", spent.usage, spent.source, elapsed_s, BATCH))
        exit_ = Exit(
            rows.exit["request_id"], endpoint, rows.exit["task"],
            "frontier" if is_answered else "none",
            "audit" if endpoint == "audit" else "requested", target,
            spent.usage if is_answered else None, elapsed_s, valid=is_answered, error=code,
            service_tier=BATCH if is_answered else None,
        )  # fmt: skip
        cost = entry.close(exit_)
        if code != DEFERRED:
            parts.observer.input_finished(exit_, cost)
        return (rows.call["held_usd"] if cost is None else cost), entry

    def _end(
        self,
        batch: ActiveBatch,
        line: ClaimedLine,
        result: ProviderLineResult,
        spent: Spent,
        cost: Decimal | None,
    ) -> LineEnd:
        """Return the end of a line without an answer, or of an audit."""
        runner = self._parts.runner
        if batch.stopped is None and spent is NOTHING and self._may_repeat(line, result):
            # The first time at once: the deadline may be near.
            pause_s = _PAUSE_S if line.attempt > 1 else 0.0
            again_at = self._parts.now() + timedelta(seconds=pause_s)
            return _again(line, _code(result, spent), again_at)
        if result.kind in ("expired", "cancelled") and spent is NOTHING and batch.stopped:
            state = "expired" if batch.stopped == "expired" else "cancelled"
            code = "batch_expired" if state == "expired" else "batch_cancelled"
            return LineEnd(line.batch, line.number, state, error=code, cost_usd=cost)  # type: ignore[arg-type]
        if batch.is_audit:
            # An answer is in the verdict alone.
            is_answered = result.document is not None
            return LineEnd(
                line.batch, line.number, "succeeded" if is_answered else "failed",
                error=None if is_answered else _code(result, spent), cost_usd=cost,
            )  # fmt: skip
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
                else self._refused(batch, line, error)
                for line in some
            ]
            await self._write(key, ends)
        await self._run(parts.store.mark, key, "abandoned", parts.now(), None)

    def _refused(self, batch: ActiveBatch, line: ClaimedLine, error: NarrowgateError) -> LineEnd:
        """Return the end of a line that cost nothing."""
        if batch.is_audit:
            return LineEnd(line.batch, line.number, "failed", error=error.code, cost_usd=Decimal(0))
        return self._parts.runner.refused(line, error, Decimal(0))

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


def _given_up_at(one: Submission, window_s: float) -> datetime:
    """Return when nothing more is expected of a provider's batch. window_s: of the provider."""
    return one.created_at + timedelta(seconds=window_s) + _LOST_AFTER


def _unrun(state: ProviderBatchState, left: int) -> int:
    """Return how many lines without a result did not run, by a final batch's counts."""
    if not state.counts.total:
        return 0 if state.phase == "ended" else left
    return state.counts.total - state.counts.succeeded - state.counts.errored


def _again(
    line: ClaimedLine, code: str | None = None, not_before: datetime | None = None
) -> LineEnd:
    return LineEnd(line.batch, line.number, "waiting", error=code, not_before=not_before)


def _code(result: ProviderLineResult, spent: Spent) -> str:
    is_unrun = result.kind in ("expired", "cancelled") or result.error is None
    if is_unrun and spent is NOTHING:
        return DEFERRED
    return _UNKNOWN_CODE if result.error is None else result.error.code
