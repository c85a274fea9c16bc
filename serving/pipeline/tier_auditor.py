"""Compares answers of cheaper tiers with the reference's, behind the requests."""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from serving.contracts.context import RequestContext
from serving.contracts.deadline import Deadline
from serving.contracts.errors import DeadlineExceeded, NarrowgateError
from serving.contracts.evidence import Audit, Candidate, Origin, Verdict
from serving.contracts.frontier import OutputBounds
from serving.contracts.requests import ChatRequest, Message
from serving.contracts.routing import Reason, RequestOptions
from serving.evidence.appender import EvidenceAppender
from serving.evidence.candidates import MODEL
from serving.evidence.fold import AGAIN
from serving.evidence.judge import JudgedAnswers, JudgePrompt, JudgeReply, judge
from serving.evidence.pacing import coin
from serving.evidence.statistics.judged import JudgedPair
from serving.pipeline.auditor import OF_THE_INPUT
from serving.pipeline.compared_text import answer_text, question_of
from serving.pipeline.exit_recorder import ExitRecorder
from serving.pipeline.plan import FrontierPlan
from serving.pipeline.runner import Runner
from serving.tiers.planner import TierCandidate, TierChoice, TierPlanner

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ComparedChat:
    """One chat as it was drawn, before its answers were known.

    plan: of the reference. candidate: the cheaper tier. input: its name, drawn at random.
    """

    request: ChatRequest
    plan: FrontierPlan
    choice: TierChoice
    candidate: TierCandidate
    context: RequestContext
    input: str
    drawn_at: datetime


@dataclass(slots=True)
class _Costs:
    """What one comparison has cost. is_known: no call's cost is unknown."""

    usd: Decimal = Decimal(0)
    is_known: bool = True

    def add(self, usd: Decimal | None) -> None:
        self.usd += usd or Decimal(0)
        self.is_known &= usd is not None


class TierAuditor:
    """Runs comparisons with their own concurrency, queue and deadline. One for a process.

    reference: asks a model with the whole request: no cache, no pruning, no claim. as_served: asks
    it as clients are served, so that a cheaper tier is compared as it would answer.
    """

    def __init__(
        self,
        planner: TierPlanner,
        appender: EvidenceAppender,
        recorder: ExitRecorder,
        reference: Runner[ChatRequest, FrontierPlan],
        as_served: Runner[ChatRequest, FrontierPlan],
    ) -> None:
        self._planner = planner
        self._evidence = planner.evidence
        self._appender = appender
        self._recorder = recorder
        self._reference = reference
        self._as_served = as_served
        self._places = asyncio.Semaphore(planner.evidence.settings.concurrency)
        self._running: set[asyncio.Task[None]] = set()

    async def settled(self) -> None:
        """Return when every comparison that was begun has its verdict."""
        while self._running:
            await asyncio.wait(set(self._running))

    async def aclose(self) -> None:
        """Cancel comparisons in progress: they are counted as dropped later."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def explore(self, one: ComparedChat, reference: str | None) -> None:
        """Compare a cheaper tier's answer with the reference's. reference: None asks it anew."""
        self._begin(one, "shadow", self._explored(one, reference))

    def audit(self, one: ComparedChat, served: str) -> None:
        """Compare an answer that a client got from a cheaper tier with the reference's."""
        if not self._evidence.is_affordable():
            self._drop(one, "accepted")
            return
        self._begin(one, "accepted", self._audited(one, served))

    def _begin(self, one: ComparedChat, origin: Origin, work: Coroutine[Any, Any, None]) -> None:
        if len(self._running) >= self._evidence.settings.queue:
            work.close()
            self._drop(one, origin)
            return
        self._appender.draw(self._row(one, origin, "dropped", None))
        task = asyncio.create_task(self._placed(work))
        self._running.add(task)
        task.add_done_callback(lambda ended: self._ended(ended, work))

    def _ended(self, task: asyncio.Task[None], work: Coroutine[Any, Any, None]) -> None:
        # A task that is cancelled before it begins has not awaited it.
        work.close()
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            # A defect: no request waits for this task. Its draw is counted as dropped later.
            logger.error("tiers.comparison_failed", exc_info=error)

    async def _placed(self, work: Coroutine[Any, Any, None]) -> None:
        async with self._places:
            await work

    async def _explored(self, one: ComparedChat, reference: str | None) -> None:
        costs = _Costs()
        try:
            if reference is None:
                reference = await self._ask(one, one.choice.start.model, "audit", costs)
        except NarrowgateError as error:
            self._unjudged(one, "shadow", error, costs, of_reference=True)
            return
        try:
            served = await self._ask(one, one.candidate.rung.model, "explore", costs)
        except NarrowgateError as error:
            self._unjudged(one, "shadow", error, costs)
            return
        await self._compared(one, "shadow", served, reference, costs)

    async def _audited(self, one: ComparedChat, served: str) -> None:
        costs = _Costs()
        try:
            reference = await self._ask(one, one.choice.start.model, "audit", costs)
        except NarrowgateError as error:
            self._unjudged(one, "accepted", error, costs, of_reference=True)
            return
        await self._compared(one, "accepted", served, reference, costs)

    async def _compared(
        self, one: ComparedChat, origin: Origin, served: str, reference: str, costs: _Costs
    ) -> None:
        try:
            pair = await self._judged(one, served, reference, costs)
        except NarrowgateError as error:
            self._unjudged(one, origin, error, costs)
            return
        if pair is None:
            self._verdict(one, origin, None, (), costs)
            return
        candidates = [Candidate(MODEL, 1.0, pair.loss, None, pair.badly_worse)]
        if coin(self._planner.settings.again_share):
            again = await self._again(one, reference, costs)
            candidates += [] if again is None else [again]
        self._verdict(one, origin, pair, tuple(candidates), costs)

    async def _again(self, one: ComparedChat, reference: str, costs: _Costs) -> Candidate | None:
        """Return what the judge makes of the reference's own second answer; None without one."""
        try:
            second = await self._ask(one, one.choice.start.model, "audit", costs)
            pair = await self._judged(one, second, reference, costs)
        except NarrowgateError:
            return None
        return None if pair is None else Candidate(AGAIN, 1.0, pair.loss, None, pair.badly_worse)

    async def _ask(self, one: ComparedChat, model: str, reason: Reason, costs: _Costs) -> str:
        """Return one model's answer. Raises NarrowgateError, also where another model answered."""
        context = self._context(one)
        request = replace(one.request, stream=False, include_usage=False)
        plan = replace(
            one.plan, targets=(model,), deadline=context.deadline, reason=reason, decision=None
        )
        runner = self._as_served if reason == "explore" else self._reference
        return answer_text(await self._answer(runner, one, context, request, plan, costs))

    async def _judged(
        self, one: ComparedChat, served: str, reference: str, costs: _Costs
    ) -> JudgedPair | None:
        async def ask(prompt: JudgePrompt) -> JudgeReply:
            context = self._context(one)
            body = dict(prompt.body)
            messages = tuple(Message(m["role"], m["content"]) for m in body.pop("messages"))
            model = one.candidate.judge
            request = ChatRequest(model, messages, max_tokens=prompt.max_tokens, fields=body)
            bounds = OutputBounds(prompt.max_tokens, thinking=False)
            plan = FrontierPlan((model,), "standard", bounds, context.deadline, "judge")
            document = await self._answer(self._reference, one, context, request, plan, costs)
            content = document["choices"][0].get("message", {}).get("content")
            return JudgeReply(content if isinstance(content, str) else "")

        answers = JudgedAnswers(question_of(one.request), served, reference)
        return (await judge(answers, ask)).pair

    async def _answer(
        self,
        runner: Runner[ChatRequest, FrontierPlan],
        one: ComparedChat,
        context: RequestContext,
        request: ChatRequest,
        plan: FrontierPlan,
        costs: _Costs,
    ) -> dict[str, Any]:
        try:
            async with (
                asyncio.timeout(self._evidence.settings.deadline_s),
                self._recorder.open(context, "audit") as record,
            ):
                record.planned(plan)
                record.inputs[0].cluster = one.choice.cluster
                record.inputs[0].closed = costs.add
                (outcome,) = await record.finish(await runner.whole(request, plan, record))
        except TimeoutError as error:
            raise DeadlineExceeded("a comparison took longer than evidence.deadline_s") from error
        if isinstance(outcome.content, NarrowgateError):
            raise outcome.content
        assert isinstance(outcome.content, dict)
        return outcome.content

    def _context(self, one: ComparedChat) -> RequestContext:
        deadline = Deadline.after(self._evidence.settings.deadline_s)
        return RequestContext(
            one.context.request_id, one.context.caller, RequestOptions(), deadline
        )

    def _unjudged(
        self,
        one: ComparedChat,
        origin: Origin,
        error: NarrowgateError,
        costs: _Costs,
        *,
        of_reference: bool = False,
    ) -> None:
        # What the reference cannot answer says nothing about the cheaper tier.
        if isinstance(error, OF_THE_INPUT) and not of_reference:
            self._verdict(one, origin, None, (), costs)
        else:
            self._drop(one, origin)

    def _drop(self, one: ComparedChat, origin: Origin) -> None:
        self._evidence.counts.dropped[one.candidate.ruling.name] += 1
        self._count(one, "dropped")
        self._append(self._row(one, origin, "dropped", None))

    def _verdict(
        self,
        one: ComparedChat,
        origin: Origin,
        pair: JudgedPair | None,
        candidates: tuple[Candidate, ...],
        costs: _Costs,
    ) -> None:
        loss = 1.0 if pair is None else pair.loss
        verdict: Verdict = "missing" if pair is None else "same" if loss <= 0.5 else "different"
        self._count(one, "missing" if pair is None else _preference(loss))
        if origin == "shadow":
            self._planner.spent(costs.usd)
        row = self._row(one, origin, verdict, loss)
        made = candidates or (Candidate(MODEL, 1.0, 1.0, None, 1.0),)
        cost_usd = costs.usd if costs.is_known else None
        self._append(replace(row, candidates=made, cost_usd=cost_usd))

    def _count(self, one: ComparedChat, verdict: str) -> None:
        events = self._planner.events
        events.tier_compared(one.choice.topic, one.candidate.rung.tier, verdict)

    def _append(self, row: Audit) -> None:
        self._appender.append(replace(row, accepted=self._evidence.counts.take_accepted(row.claim)))

    def _row(
        self, one: ComparedChat, origin: Origin, verdict: Verdict, loss: float | None
    ) -> Audit:
        ruling, context = one.candidate.ruling, one.context
        return Audit(
            claim=ruling.name,
            input=one.input,
            group=ruling.group,
            text=self._evidence.text_digest(ruling.name, question_of(one.request)),
            origin=origin,
            coin=one.candidate.share,
            verdict=verdict,
            loss=loss,
            reference=ruling.reference or "",
            tenant=context.caller.tenant,
            request_id=context.request_id,
            end_user=context.options.end_user,
            hypothesis=ruling.standing.hypothesis,
            drawn_at=one.drawn_at,
            judged_at=self._evidence.now(),
        )


def _preference(loss: float) -> str:
    return "same" if loss == 0.5 else "worse" if loss > 0.5 else "better"
