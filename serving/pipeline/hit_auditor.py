"""Compares cached answers that were found by meaning with fresh ones, behind the requests."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from serving.cache.cacheable import unfit_document
from serving.cache.similar import SimilarEntries, SimilarEvents, SimilarMatch
from serving.contracts.context import RequestContext
from serving.contracts.deadline import Deadline
from serving.contracts.errors import DeadlineExceeded, NarrowgateError
from serving.contracts.evidence import Audit, Candidate, Origin, Verdict
from serving.contracts.frontier import OutputBounds
from serving.contracts.requests import ChatRequest, Message
from serving.contracts.routing import RequestOptions
from serving.evidence.appender import EvidenceAppender
from serving.evidence.candidates import MODEL
from serving.evidence.judge import JudgedAnswers, JudgePrompt, JudgeReply, judge
from serving.evidence.rulings import Evidence, Ruling
from serving.pipeline.auditor import OF_THE_INPUT
from serving.pipeline.exit_recorder import ExitRecorder, RequestRecord
from serving.pipeline.plan import FrontierPlan
from serving.pipeline.runner import Runner

logger = logging.getLogger(__name__)

Fresh = Callable[[RequestRecord], Awaitable["FreshAnswer"]]
"""Asks a model, without the cache. Raises NarrowgateError."""


@dataclass(frozen=True, slots=True)
class FreshAnswer:
    """A model's own answer to a request. document: of OpenAI's API."""

    document: Mapping[str, Any]
    cost_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class ObservedHit:
    """A hit as it was drawn at acceptance, before its answer was compared.

    key: of the request. question: that was asked. coin: whether the coin chose it. is_affordable:
    the day's budget had room for an audit. is_suspected: the entry was put aside, so that the
    comparison decides about the entry alone.
    """

    match: SimilarMatch
    key: str
    question: str
    context: RequestContext
    ruling: Ruling
    coin: bool
    input: str
    drawn_at: datetime
    is_affordable: bool
    is_suspected: bool = False


class HitAuditor:
    """Runs audits of hits with their own concurrency and deadline, within evidence's budget.

    frontier: asks a frontier model; the judge is evidence.reference.
    """

    def __init__(
        self,
        evidence: Evidence,
        appender: EvidenceAppender,
        recorder: ExitRecorder,
        frontier: Runner[ChatRequest, FrontierPlan],
        entries: SimilarEntries,
        events: SimilarEvents,
    ) -> None:
        self.evidence = evidence
        self._appender = appender
        self._recorder = recorder
        self._frontier = frontier
        self._entries = entries
        self._events = events
        self._places = asyncio.Semaphore(evidence.settings.concurrency)
        self._running: set[asyncio.Task[None]] = set()

    async def settled(self) -> None:
        """Return when every audit that was begun has its verdict."""
        while self._running:
            await asyncio.wait(set(self._running))

    async def aclose(self) -> None:
        """Cancel audits in progress: their inputs are counted as dropped later."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def shadowed(self, one: ObservedHit, fresh: FreshAnswer) -> None:
        """Compare a hit that was not served with the model's answer, which the client got."""
        if one.coin or one.is_suspected:
            self._begin(one, "shadow", self._compare(one, "shadow", fresh))

    def served(self, one: ObservedHit, ask: Fresh) -> None:
        """Ask the model about a hit that was served, where the coin chose it."""
        self.evidence.counts.accepted[one.ruling.name] += 1
        if one.coin:
            self._begin(one, "accepted", self._ask(one, ask))

    def _begin(self, one: ObservedHit, origin: Origin, work: Coroutine[Any, Any, None]) -> None:
        is_full = len(self._running) >= self.evidence.settings.queue
        if is_full or not one.is_affordable:
            work.close()
            self._drop(one, origin)
            return
        if not one.is_suspected:
            self._appender.draw(self._row(one, origin, "dropped", None))
        task = asyncio.create_task(self._placed(work))
        self._running.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            # A defect: no request waits for this task. Its draw is counted as dropped later.
            logger.error("cache.audit_failed", exc_info=error)

    async def _placed(self, work: Coroutine[Any, Any, None]) -> None:
        async with self._places:
            await work

    async def _ask(self, one: ObservedHit, ask: Fresh) -> None:
        """Have the model answer as if there were no cache, then compare."""
        costs: list[Decimal | None] = [None]
        try:
            async with (
                asyncio.timeout(self.evidence.settings.deadline_s),
                self._recorder.open(self._context(one, one.context.options), "audit") as record,
            ):
                record.inputs[0].closed = costs.append
                fresh = await ask(record)
        except (NarrowgateError, TimeoutError) as error:
            self._unjudged(one, "accepted", error, costs[-1])
            return
        await self._compare(one, "accepted", fresh)

    async def _compare(self, one: ObservedHit, origin: Origin, fresh: FreshAnswer) -> None:
        cost_usd = fresh.cost_usd
        if unfit_document(fresh.document) is not None:
            # Refused or cut: there is nothing to compare, for reasons of the input.
            self._verdict(one, origin, "missing", 1.0, cost_usd)
            return
        answers = JudgedAnswers(
            one.question, _text(one.match.entry.content.document), _text(fresh.document)
        )
        try:
            async with asyncio.timeout(self.evidence.settings.deadline_s):
                found = await judge(answers, lambda prompt: self._ask_judge(one, prompt))
        except (NarrowgateError, TimeoutError) as error:
            self._unjudged(one, origin, error, cost_usd)
            return
        if origin == "accepted":
            # In shadow the fresh answer's cost is what a hit would have avoided, without the judge.
            costs = (cost_usd, found.cost_usd)
            cost_usd = None if None in costs else sum((c for c in costs if c), Decimal(0))
        if found.pair is None:
            self._verdict(one, origin, "missing", 1.0, cost_usd)
            return
        loss = found.pair.badly_worse
        self._verdict(one, origin, "different" if loss else "same", loss, cost_usd)
        await self._conclude(one, loss)

    async def _conclude(self, one: ObservedHit, loss: float) -> None:
        """Draw the consequences of a verdict for the entry."""
        match = one.match
        if one.is_suspected:
            await self._entries.settle(match.entry.id, is_right=loss == 0.0)
        elif loss:
            await self._entries.unlist(match.entry.id)
        elif match.kind == "semantic":
            await self._entries.add_alias(one.key, match, self.evidence.now())

    async def _ask_judge(self, one: ObservedHit, prompt: JudgePrompt) -> JudgeReply:
        reference = one.ruling.reference
        assert reference is not None
        context = self._context(one, RequestOptions())
        body = dict(prompt.body)
        messages = tuple(Message(m["role"], m["content"]) for m in body.pop("messages"))
        request = ChatRequest(reference, messages, max_tokens=prompt.max_tokens, fields=body)
        bounds = OutputBounds(prompt.max_tokens, thinking=False)
        plan = FrontierPlan((reference,), "frontier", bounds, context.deadline, "audit")
        async with self._recorder.open(context, "audit") as record:
            record.planned(plan)
            (outcome,) = await record.finish(await self._frontier.whole(request, plan, record))
        if isinstance(outcome.content, NarrowgateError):
            raise outcome.content
        assert isinstance(outcome.content, dict)
        return JudgeReply(_text(outcome.content), outcome.cost_usd)

    def _context(self, one: ObservedHit, options: RequestOptions) -> RequestContext:
        deadline = Deadline.after(self.evidence.settings.deadline_s)
        return RequestContext(one.context.request_id, one.context.caller, options, deadline)

    def _unjudged(
        self,
        one: ObservedHit,
        origin: Origin,
        error: NarrowgateError | TimeoutError,
        cost_usd: Decimal | None,
    ) -> None:
        if isinstance(error, TimeoutError):
            error = DeadlineExceeded("the audit took longer than evidence.deadline_s")
        if isinstance(error, OF_THE_INPUT):
            self._verdict(one, origin, "missing", 1.0, cost_usd)
        else:
            self._drop(one, origin)

    def _drop(self, one: ObservedHit, origin: Origin) -> None:
        self.evidence.counts.dropped[one.ruling.name] += 1
        if not one.is_suspected:
            self._append(self._row(one, origin, "dropped", None))

    def _verdict(
        self,
        one: ObservedHit,
        origin: Origin,
        verdict: Verdict,
        loss: float,
        cost_usd: Decimal | None,
    ) -> None:
        self._events.similar_compared(one.match.kind, verdict)
        if one.is_suspected:
            # The coin did not choose it: it says nothing about the others.
            return
        row = self._row(one, origin, verdict, loss)
        candidates = (Candidate(MODEL, one.match.similarity, loss),)
        self._append(replace(row, candidates=candidates, cost_usd=cost_usd))

    def _append(self, row: Audit) -> None:
        self._appender.append(replace(row, accepted=self.evidence.counts.take_accepted(row.claim)))

    def _row(self, one: ObservedHit, origin: Origin, verdict: Verdict, loss: float | None) -> Audit:
        ruling, context = one.ruling, one.context
        return Audit(
            claim=ruling.name,
            input=one.input,
            group=ruling.group,
            text=self.evidence.text_digest(ruling.name, one.question),
            origin=origin,
            coin=ruling.rate if one.coin else None,
            verdict=verdict,
            loss=loss,
            reference=ruling.reference or "",
            tenant=context.caller.tenant,
            request_id=context.request_id,
            end_user=context.options.end_user,
            hypothesis=ruling.standing.hypothesis,
            drawn_at=one.drawn_at,
            judged_at=self.evidence.now(),
        )


def _text(document: Mapping[str, Any]) -> str:
    """Return the text of a document's only choice."""
    content = document["choices"][0]["message"].get("content")
    return content if isinstance(content, str) else ""
