"""Compares answers of cheaper tiers with the reference's, behind the requests."""

import logging
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from serving.contracts.context import RequestContext
from serving.contracts.errors import NarrowgateError
from serving.contracts.evidence import Candidate, Origin, Verdict
from serving.contracts.requests import ChatRequest
from serving.contracts.routing import Reason
from serving.evidence.appender import EvidenceAppender
from serving.evidence.candidates import MODEL
from serving.evidence.fold import AGAIN
from serving.evidence.judge import JudgedAnswers, JudgePrompt, JudgeReply, judge
from serving.evidence.pacing import coin
from serving.evidence.rulings import Ruling
from serving.evidence.statistics.judged import JudgedPair
from serving.pipeline.audit_work import OF_THE_INPUT, AuditWork, Drawn, judge_call
from serving.pipeline.auditor import Embed
from serving.pipeline.compared_text import answer_text, question_of
from serving.pipeline.exit_recorder import ExitRecorder
from serving.pipeline.paired_auditor import preference
from serving.pipeline.plan import FrontierPlan
from serving.pipeline.runner import Runner
from serving.pipeline.self_check import agreement, checked_request, token_confidence
from serving.tiers.planner import TierCandidate, TierChoice, TierPlanner
from serving.tiers.shortcut import cascade_loss

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ComparedChat:
    """One chat as it was drawn, before its answers were known.

    plan: of the reference. candidate: the cheaper tier. input: its name, drawn at random.
    confidence: of an answer that a cascade kept; None elsewhere.
    """

    request: ChatRequest
    plan: FrontierPlan
    choice: TierChoice
    candidate: TierCandidate
    context: RequestContext
    input: str
    drawn_at: datetime
    confidence: float | None = None

    @property
    def drawn(self) -> Drawn:
        """Return what its row says."""
        ruling, text = self.candidate.ruling, question_of(self.request)
        return Drawn(ruling, self.context, self.input, text, self.candidate.share, self.drawn_at)


class TierAuditor(AuditWork):
    """Runs comparisons with their own concurrency, queue and deadline. One for a process.

    reference: asks a model with the whole request: no cache, no pruning, no claim. as_served: asks
    it as clients are served, so that a cheaper tier is compared as it would answer. embed: compares
    two answers of one model, for cascades.
    """

    def __init__(
        self,
        planner: TierPlanner,
        appender: EvidenceAppender,
        recorder: ExitRecorder,
        reference: Runner[ChatRequest, FrontierPlan],
        as_served: Runner[ChatRequest, FrontierPlan],
        embed: Embed | None = None,
    ) -> None:
        super().__init__(planner.evidence, appender, recorder, "tiers.comparison_failed")
        self._planner = planner
        self._reference = reference
        self._as_served = as_served
        self._embed = embed

    def explore(self, one: ComparedChat, reference: str | None) -> None:
        """Compare a cheaper tier's answer with the reference's. reference: None asks it anew."""
        if not self._planner.may_explore(one.candidate):
            self._drop(one, "shadow")
        elif not self._begin(one, "shadow", self._explored(one, reference)):
            self._planner.explored_for(Decimal(0), one.candidate)

    def audit(self, one: ComparedChat, served: str) -> None:
        """Compare an answer that a client got from a cheaper tier with the reference's."""
        if not self.evidence.is_affordable():
            self._drop(one, "accepted")
            return
        self._begin(one, "accepted", self._audited(one, served))

    def _begin(self, one: ComparedChat, origin: Origin, work: Coroutine[Any, Any, None]) -> bool:
        """Return whether the work was begun; else it is closed, and dropped."""
        is_begun = self._start(work)
        if is_begun:
            self._draw(one.drawn, origin)
        else:
            self._drop(one, origin)
        return is_begun

    async def _explored(self, one: ComparedChat, reference: str | None) -> None:
        costs: list[Decimal] = []
        try:
            await self._asked_and_compared(costs, one, reference)
        finally:
            self._planner.explored_for(sum(costs, Decimal(0)), one.candidate)

    async def _asked_and_compared(
        self, costs: list[Decimal], one: ComparedChat, reference: str | None
    ) -> None:
        try:
            if reference is None:
                reference = await self._ask(one, one.choice.start.model, "audit", costs)
        except NarrowgateError as error:
            self._unjudged(one, "shadow", error, costs, of_reference=True)
            return
        try:
            served, confidence = await self._explored_answer(one, costs)
        except NarrowgateError as error:
            self._unjudged(one, "shadow", error, costs)
            return
        await self._compared(one, "shadow", served, reference, costs, confidence)

    async def _explored_answer(
        self, one: ComparedChat, costs: list[Decimal]
    ) -> tuple[str, float | None]:
        """Return the cheaper answer, and its self-check where a cascade is earned, too."""
        model, check = one.candidate.rung.model, one.candidate.check
        if one.candidate.beside is None or self._embed is None:
            return await self._ask(one, model, "explore", costs), None
        request = checked_request(one.request, check)
        document = await self._document(one, request, model, "explore", costs)
        text = answer_text(document)
        if check == "logprobs":
            found = token_confidence(document)
            cascades = self._planner.cascades
            if cascades is not None and found is None:
                cascades.gave_no_logprobs(model)
            elif cascades is not None:
                cascades.gave_logprobs(model)
            return text, found
        second = answer_text(await self._document(one, request, model, "explore", costs))
        return text, await agreement(text, second, self._embed)

    async def _audited(self, one: ComparedChat, served: str) -> None:
        costs: list[Decimal] = []
        try:
            reference = await self._ask(one, one.choice.start.model, "audit", costs)
        except NarrowgateError as error:
            self._unjudged(one, "accepted", error, costs, of_reference=True)
            return
        await self._compared(one, "accepted", served, reference, costs)

    async def _compared(
        self,
        one: ComparedChat,
        origin: Origin,
        served: str,
        reference: str,
        costs: list[Decimal],
        confidence: float | None = None,
    ) -> None:
        try:
            pair = await self._judged(one, served, reference, costs)
        except NarrowgateError as error:
            self._unjudged(one, origin, error, costs)
            return
        if one.candidate.beside is not None and confidence is not None:
            self._append_beside(one, one.candidate.beside, pair, confidence)
        if pair is None:
            self._verdict(one, origin, None, (), costs)
            return
        if one.confidence is not None:
            self._verdict(one, origin, pair, (_cascaded(pair, one.confidence),), costs)
            return
        candidates = [Candidate(MODEL, 1.0, pair.loss, None, pair.badly_worse)]
        if coin(self._planner.settings.again_share):
            again = await self._again(one, reference, costs)
            candidates += [] if again is None else [again]
        self._verdict(one, origin, pair, tuple(candidates), costs)

    async def _again(
        self, one: ComparedChat, reference: str, costs: list[Decimal]
    ) -> Candidate | None:
        """Return what the judge makes of the reference's own second answer; None without one."""
        try:
            second = await self._ask(one, one.choice.start.model, "audit", costs)
            pair = await self._judged(one, second, reference, costs)
        except NarrowgateError:
            return None
        return None if pair is None else Candidate(AGAIN, 1.0, pair.loss, None, pair.badly_worse)

    async def _ask(
        self, one: ComparedChat, model: str, reason: Reason, costs: list[Decimal]
    ) -> str:
        """Return one model's answer. Raises NarrowgateError, also where another model answered."""
        request = replace(one.request, stream=False, include_usage=False)
        return answer_text(await self._document(one, request, model, reason, costs))

    async def _document(
        self,
        one: ComparedChat,
        request: ChatRequest,
        model: str,
        reason: Reason,
        costs: list[Decimal],
    ) -> dict[str, Any]:
        context = self._context(one.context)
        plan = replace(
            one.plan, targets=(model,), deadline=context.deadline, reason=reason, decision=None
        )
        runner = self._as_served if reason == "explore" else self._reference
        return await self._asked(runner, context, request, plan, costs, one.choice.cluster)

    async def _judged(
        self, one: ComparedChat, served: str, reference: str, costs: list[Decimal]
    ) -> JudgedPair | None:
        async def ask(prompt: JudgePrompt) -> JudgeReply:
            context = self._context(one.context)
            request, plan = judge_call(
                prompt, one.candidate.judge, context.deadline, tier="standard", reason="judge"
            )
            document = await self._asked(
                self._reference, context, request, plan, costs, one.choice.cluster
            )
            return JudgeReply(answer_text(document))

        answers = JudgedAnswers(question_of(one.request), served, reference)
        return (await judge(answers, ask)).pair

    def _append_beside(
        self, one: ComparedChat, ruling: Ruling, pair: JudgedPair | None, confidence: float
    ) -> None:
        """Write the comparison as evidence of the cascade, too. Its cost is in the tier's row."""
        candidate = _cascaded(pair, confidence)
        verdict: Verdict = "missing" if pair is None else _verdict_of(candidate.loss)
        row = self._row(replace(one.drawn, ruling=ruling), "shadow", verdict, candidate.loss)
        self._append(replace(row, candidates=(candidate,)))

    def _unjudged(
        self,
        one: ComparedChat,
        origin: Origin,
        error: NarrowgateError,
        costs: list[Decimal],
        *,
        of_reference: bool = False,
    ) -> None:
        # What the reference cannot answer says nothing about the cheaper tier.
        if isinstance(error, OF_THE_INPUT) and not of_reference:
            self._verdict(one, origin, None, (), costs)
        else:
            self._drop(one, origin, sum(costs, Decimal(0)) or None)

    def _drop(self, one: ComparedChat, origin: Origin, cost_usd: Decimal | None = None) -> None:
        self._count(one, "dropped")
        self._append_drop(one.drawn, origin, cost_usd)

    def _verdict(
        self,
        one: ComparedChat,
        origin: Origin,
        pair: JudgedPair | None,
        candidates: tuple[Candidate, ...],
        costs: list[Decimal],
    ) -> None:
        loss = 1.0 if pair is None else pair.loss
        verdict: Verdict = "missing" if pair is None else _verdict_of(2.0 * loss - 1.0)
        self._count(one, "missing" if pair is None else preference(loss))
        if one.confidence is not None:
            loss = 1.0 if pair is None else cascade_loss(pair)
            candidates = candidates or (Candidate(MODEL, one.confidence, 1.0, None, 1.0),)
        row = self._row(one.drawn, origin, verdict, loss)
        made = candidates or (Candidate(MODEL, 1.0, 1.0, None, 1.0),)
        self._append(replace(row, candidates=made, cost_usd=sum(costs, Decimal(0))))

    def _count(self, one: ComparedChat, verdict: str) -> None:
        events = self._planner.events
        events.tier_compared(one.choice.topic, one.candidate.rung.tier, verdict)


def _verdict_of(net: float) -> Verdict:
    return "same" if net <= 0.0 else "different"


def _cascaded(pair: JudgedPair | None, confidence: float) -> Candidate:
    if pair is None:
        return Candidate(MODEL, confidence, 1.0, None, 1.0)
    return Candidate(MODEL, confidence, cascade_loss(pair), None, pair.badly_worse)
