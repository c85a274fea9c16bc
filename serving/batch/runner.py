"""Runs one line through the request path, as the same request runs online."""

import json
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from serving.batch.line_work import Fence, LineWork, NotedLedger
from serving.batch.lines import LineFormat, LineRequest, read_line
from serving.batch.store import LONGEST_PAUSE, ActiveBatch, ClaimedLine, LineEnd, StoredResult
from serving.contracts.batch import Deferred, deferred
from serving.contracts.batch_settings import BatchSettings
from serving.contracts.context import RequestContext
from serving.contracts.deadline import Deadline
from serving.contracts.errors import (
    BudgetExceeded,
    FrontierError,
    MaxCostExceeded,
    ModelFailed,
    NarrowgateError,
)
from serving.contracts.exits import DEFERRED, Exit, ExitObserver
from serving.contracts.openai import json_text
from serving.evidence.heads.cipher import UnreadableContent, VectorCipher
from serving.frontier.failures import may_be_billed
from serving.pipeline.request_path import RequestPath
from serving.pipeline.write import Reply

_SUFFIX = '}, "error": null}'


@dataclass(frozen=True, slots=True)
class Noted:
    """Inputs of one attempt that have ended. cost_usd: None where a call's cost is unknown.

    is_paid: a provider was called and may bill it.
    """

    cost_usd: Decimal | None
    is_paid: bool


class ExitNotes:
    """Passes exits on, and keeps what the attempts of lines cost until it is taken."""

    def __init__(self, observer: ExitObserver) -> None:
        self._observer = observer
        self._exits: defaultdict[str, list[tuple[Exit, Decimal | None]]] = defaultdict(list)

    def input_finished(self, exit_: Exit, cost_usd: Decimal | None) -> None:
        """Count one exit."""
        if exit_.error == DEFERRED:
            return
        self._observer.input_finished(exit_, cost_usd)
        if exit_.endpoint != "audit":
            self._exits[exit_.request_id].append((exit_, cost_usd))

    def take(self, request_id: str) -> Noted:
        """Return and forget what an attempt cost."""
        exits = self._exits.pop(request_id, [])
        costs = [cost for _, cost in exits]
        known = [cost for cost in costs if cost is not None]
        return Noted(
            sum(known, Decimal(0)) if len(known) == len(costs) else None,
            len(known) < len(costs) or any(_is_paid(exit_) for exit_, _ in exits),
        )


class LineRunner:
    """Runs lines. path: with a recorder whose observer is `notes` and whose ledger is `ledger`."""

    def __init__(
        self,
        path: RequestPath,
        notes: ExitNotes,
        line_format: LineFormat,
        settings: BatchSettings,
        ledger: NotedLedger,
        cipher: VectorCipher | None = None,
    ) -> None:
        self._path = path
        self._ledger = ledger
        self._notes = notes
        self._format = line_format
        self._settings = settings
        self._cipher = cipher

    def fence(self, fence: Fence) -> None:
        """Open paid calls only where the fence lets them; `run` raises LeaseLost else."""
        self._ledger.fence = fence

    async def run(
        self,
        batch: ActiveBatch,
        line: ClaimedLine,
        data: bytes,
        now: datetime,
        work: LineWork,
    ) -> LineEnd:
        """Return how an attempt ended: `waiting` with its request where a provider's batch answers.

        Its calls have ended in the ledger by then: a line that is known to have ended has no call
        that a crash leaves open. data: the line. Raises BudgetExceeded where it does not fit the
        budget, MaxCostExceeded where it does not fit the work's room.
        """
        self._ledger.works[line.request_id] = work
        try:
            end = await self._run(batch, line, data, now, work)
        except BaseException:  # cancellation too; re-raised
            self._ledger.forget(line.request_id)
            raise
        finally:
            del self._ledger.works[line.request_id]
        await self._ledger.written(line.request_id)
        return end

    async def _run(
        self,
        batch: ActiveBatch,
        line: ClaimedLine,
        data: bytes,
        now: datetime,
        work: LineWork,
    ) -> LineEnd:
        request = read_line(data, batch.endpoint, self._format)
        if request.task is not None and "inputs" in request.body:
            # Some of them may be answered now.
            work.defer = None
        context = self._context(batch, request, now, line, work)
        try:
            document = await self._answered(request, context, work)
        except NarrowgateError as error:
            noted = self._notes.take(line.request_id)
            return self._failed(batch, line, error, noted, now, request, work)
        except BaseException as error:  # cancellation too: its notes are not kept for ever
            self._notes.take(line.request_id)
            wait = deferred(error)
            if wait is None:
                raise
            return self._deferred(line, wait)
        noted = self._notes.take(line.request_id)
        text = self.text(line, 200, document)
        cost = _cost_usd(line, noted, work)
        return self.sealed(LineEnd(line.batch, line.number, "succeeded", cost_usd=cost), text)

    def sealed(self, end: LineEnd, text: str) -> LineEnd:
        """Return an end with its result as it is stored. text: JSON."""
        data = text.encode("utf-8", "surrogatepass")
        if self._cipher is None:
            return replace(end, result=data)
        sealed = self._cipher.encrypted(data, result_name(end.batch, end.number))
        return replace(end, result=sealed, key_id=self._cipher.key_ids[0])

    def opened(self, batch: str, result: StoredResult) -> bytes:
        """Return a stored result's JSON. Raises UnreadableContent without its key."""
        assert result.result is not None
        if not result.key_id:
            return result.result
        if self._cipher is None:
            raise UnreadableContent("it is encrypted, and there is no key")
        return self._cipher.decrypted(result.result, result_name(batch, result.number))

    def refused(self, line: ClaimedLine, error: NarrowgateError, cost: Decimal | None) -> LineEnd:
        """Return the end of a line that ended in an error."""
        http = self._format.error(error)
        text = self.text(line, http.status, json_text({"error": http.body}))
        end = LineEnd(line.batch, line.number, "failed", error=error.code, cost_usd=cost)
        return self.sealed(end, text)

    def _deferred(self, line: ClaimedLine, wait: Deferred) -> LineEnd:
        """Return a line to those that wait, with the request that its provider's batch gets."""
        end = LineEnd(
            line.batch, line.number, "waiting", target=wait.target, batch_usd=wait.worst_usd
        )
        return self.sealed(end, json_text(wait.body))

    async def _answered(self, request: LineRequest, context: RequestContext, work: LineWork) -> str:
        """Return the answer's document as text."""
        if request.task is None:
            async with self._path.chat(request.body, context) as reply:
                assert reply.document is not None
                return reply.document if work.provided is None else _marked(reply)
        async with self._path.tasks(request.task, request.body, context) as tasks:
            return json_text(self._format.task_document(tasks, context.request_id))

    def _context(
        self,
        batch: ActiveBatch,
        request: LineRequest,
        now: datetime,
        line: ClaimedLine,
        work: LineWork,
    ) -> RequestContext:
        options = request.options
        if work.provided is not None:
            if options.cache == "use":
                # It was looked up before it was sent; the answer that was paid for is the line's.
                options = replace(options, cache="refresh")
            deadline = Deadline.after(self._settings.line_timeout_s)
            return RequestContext(line.request_id, batch.caller, options, deadline)
        left_s = max(0.0, (batch.expires_at - now).total_seconds())
        longest_s = request.deadline_s or self._settings.line_timeout_s
        seconds = min(left_s, longest_s, self._settings.line_timeout_s)
        return RequestContext(line.request_id, batch.caller, options, Deadline.after(seconds))

    def _failed(
        self,
        batch: ActiveBatch,
        line: ClaimedLine,
        error: NarrowgateError,
        noted: Noted,
        now: datetime,
        request: LineRequest,
        work: LineWork,
    ) -> LineEnd:
        if work.provided is not None:
            return self.refused(line, error, _cost_usd(line, noted, work))
        if isinstance(error, BudgetExceeded) and not noted.is_paid:
            raise error
        own, room_usd = request.options.max_cost_usd, work.room_usd
        is_batch_limit = work.is_refused or (
            room_usd is not None and (own is None or room_usd < own)
        )
        if isinstance(error, MaxCostExceeded) and is_batch_limit and not noted.is_paid:
            raise error
        if line.attempt < self._settings.max_attempts and is_repeatable(error, noted):
            pause = timedelta(seconds=error.retry_after_s or 2.0**line.attempt / 2)
            again = now + min(LONGEST_PAUSE, pause)
            if again < batch.expires_at:
                return LineEnd(
                    line.batch, line.number, "waiting", error=error.code, not_before=again
                )
        return self.refused(line, error, _cost_usd(line, noted, work))

    def text(self, line: ClaimedLine, status: int, document: str) -> str:
        """Return what a result file says of a line's response. document: JSON."""
        head: dict[str, Any] = {
            "id": f"batch_req_{line.request_id.removeprefix('batch_')}",
            "custom_id": line.custom_id,
        }
        response = {"status_code": status, "request_id": line.request_id}
        return (
            f'{json.dumps(head)[:-1]}, "response": {json.dumps(response)[:-1]}, "body": '
            f"{document}{_SUFFIX}"
        )


def _cost_usd(line: ClaimedLine, noted: Noted, work: LineWork) -> Decimal | None:
    """Return what an attempt cost, at most where that is unknown; None where no bound is known."""
    if noted.cost_usd is not None:
        return noted.cost_usd
    # By its calls, as the ledger holds them.
    most = sum((entry.most_usd for entry in work.entries), Decimal(0))
    return most or line.most_usd(in_batch=work.provided is not None)


def _marked(reply: Reply) -> str:
    """Return the document of a chat that a provider's batch answered, with how it was answered."""
    document = json.loads(reply.document or "{}")
    document["narrowgate"] = {
        "route": reply.route, "reason": reply.reason, **document.get("narrowgate", {}),
        "lane": "batch", "cost_usd": None if reply.cost_usd is None else f"{reply.cost_usd:f}",
    }  # fmt: skip
    return json_text(document)


def is_repeatable(error: NarrowgateError, noted: Noted) -> bool:
    """Return whether an attempt may be repeated: a retry may help, and nothing is paid twice."""
    if noted.is_paid or isinstance(error, ModelFailed):
        return False
    if isinstance(error, FrontierError) and may_be_billed(error):
        return False
    return error.retryable


def unrun_text(line: str, custom_id: str, code: str, message: str) -> str:
    """Return what the error file says of a line without a response. line: its id."""
    return json.dumps({
        "id": f"batch_req_{line.removeprefix('batch_')}", "custom_id": custom_id,
        "response": None, "error": {"code": code, "message": message},
    })  # fmt: skip


def result_name(batch: str, number: int) -> str:
    """Return the name with which a stored result is authenticated."""
    return f"batch/{batch}/{number}"


def _is_paid(exit_: Exit) -> bool:
    """Return whether a provider answered, in whole or in part."""
    answered = exit_.usage is not None and exit_.replica_s is None
    return (answered and exit_.route in ("frontier", "none")) or any(
        attempt.replica_s is None and attempt.usage is not None for attempt in exit_.attempts
    )
