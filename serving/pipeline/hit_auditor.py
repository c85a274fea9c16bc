"""Compares cached answers that were found by meaning with fresh ones, behind the requests."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from serving.cache.cacheable import unfit_document
from serving.cache.similar import SimilarEntries, SimilarEvents, SimilarMatch
from serving.contracts.context import RequestContext
from serving.contracts.errors import DeadlineExceeded, NarrowgateError
from serving.contracts.evidence import Candidate, Origin, Verdict
from serving.contracts.requests import ChatRequest
from serving.evidence.appender import EvidenceAppender
from serving.evidence.candidates import MODEL
from serving.evidence.fold import AGAIN
from serving.evidence.judge import JudgedAnswers, JudgePrompt, JudgeReply, judge
from serving.evidence.pacing import coin
from serving.evidence.rulings import Evidence, Ruling
from serving.evidence.statistics.judged import JudgedPair
from serving.pipeline.audit_work import OF_THE_INPUT, AuditWork, Drawn, judge_call
from serving.pipeline.compared_text import answer_text
from serving.pipeline.exit_recorder import ExitRecorder, RequestRecord
from serving.pipeline.plan import FrontierPlan
from serving.pipeline.runner import Runner

logger = logging.getLogger(__name__)

AGAIN_SHARE = 0.05
"""Of the compared hits, those for which the model answers once more: the judge's own spread."""

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
    the budget had room for it. is_suspected: the entry was put aside, so that the comparison
    decides about the entry; of a hit that no follow-up refined, about the entry alone.
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

    @property
    def drawn(self) -> Drawn:
        """Return what its row says."""
        probability = self.ruling.rate if self.coin else None
        return Drawn(
            self.ruling, self.context, self.input, self.question, probability, self.drawn_at
        )


class HitAuditor(AuditWork):
    """Runs audits of hits with their own concurrency and deadline, within evidence's budget.

    frontier: asks a frontier model; the judge is evidence.reference. again_share: of the compared
    hits, those for which the model answers once more.
    """

    def __init__(
        self,
        evidence: Evidence,
        appender: EvidenceAppender,
        recorder: ExitRecorder,
        frontier: Runner[ChatRequest, FrontierPlan],
        entries: SimilarEntries,
        events: SimilarEvents,
        again_share: float = AGAIN_SHARE,
    ) -> None:
        super().__init__(evidence, appender, recorder, "cache.audit_failed")
        self._frontier = frontier
        self._entries = entries
        self._events = events
        self._again_share = again_share

    def shadowed(self, one: ObservedHit, fresh: FreshAnswer, ask: Fresh) -> None:
        """Compare a hit that was not served with the model's answer, which the client got."""
        if one.coin or one.is_suspected:
            self._begin(one, "shadow", self._compare(one, "shadow", fresh, ask))

    def served(self, one: ObservedHit, ask: Fresh) -> None:
        """Ask the model about a hit that was served, where the coin chose it."""
        self.evidence.counts.accepted[one.ruling.name] += 1
        if one.coin:
            self._begin(one, "accepted", self._ask(one, "accepted", ask))

    def refined(self, one: ObservedHit, ask: Fresh) -> None:
        """Audit a hit that was served, since a follow-up repeated or corrected its question."""
        self._begin(one, "refined", self._ask(one, "refined", ask))

    def _begin(self, one: ObservedHit, origin: Origin, work: Coroutine[Any, Any, None]) -> None:
        if not one.is_affordable:
            work.close()
            self._drop(one, origin)
        elif not self._start(work):
            self._drop(one, origin)
        elif _has_row(one, origin):
            self._draw(one.drawn, origin)

    async def _ask(self, one: ObservedHit, origin: Origin, ask: Fresh) -> None:
        """Have the model answer as if there were no cache, then compare."""
        costs: list[Decimal] = []
        try:
            async with asyncio.timeout(self.evidence.settings.deadline_s):
                fresh = await self._answered(one, ask, costs)
        except (NarrowgateError, TimeoutError) as error:
            self._unjudged(one, origin, error, costs[-1] if costs else None)
            return
        await self._compare(one, origin, fresh, ask)

    async def _answered(self, one: ObservedHit, ask: Fresh, costs: list[Decimal]) -> FreshAnswer:
        """Return a model's own answer. costs: gets its cost. Raises NarrowgateError."""
        context = self._context(one.context, one.context.options)
        async with self._recorder.open(context, "audit") as record:
            record.inputs[0].closed = costs.append
            return await ask(record)

    async def _compare(
        self, one: ObservedHit, origin: Origin, fresh: FreshAnswer, ask: Fresh
    ) -> None:
        if unfit_document(fresh.document) is not None:
            # Refused or cut: there is nothing to compare, for reasons of the input.
            self._verdict(one, origin, "missing", 1.0, fresh.cost_usd)
            return
        answer = answer_text(fresh.document)
        costs: list[Decimal] = []
        try:
            async with asyncio.timeout(self.evidence.settings.deadline_s):
                stored = answer_text(one.match.entry.content.document)
                found = await self._judged(one, stored, answer, costs)
                again = await self._again(one, answer, ask, costs)
        except (NarrowgateError, TimeoutError) as error:
            self._unjudged(one, origin, error, fresh.cost_usd, costs)
            return
        loss = 1.0 if found is None else found.badly_worse
        verdict: Verdict = "missing" if found is None else "different" if loss else "same"
        self._verdict(one, origin, verdict, loss, fresh.cost_usd, costs, again)
        if found is not None:
            await self._conclude(one, loss)

    async def _judged(
        self, one: ObservedHit, shortcut: str, reference: str, costs: list[Decimal]
    ) -> JudgedPair | None:
        async def ask(prompt: JudgePrompt) -> JudgeReply:
            return JudgeReply(await self._ask_judge(one, prompt, costs))

        return (await judge(JudgedAnswers(one.question, shortcut, reference), ask)).pair

    async def _again(
        self, one: ObservedHit, first: str, ask: Fresh, costs: list[Decimal]
    ) -> Candidate | None:
        """Return what the judge makes of a second fresh answer; None for most hits.

        The coin is drawn whatever the verdict on the hit was.
        """
        if not coin(self._again_share):
            return None
        try:
            second = await self._answered(one, ask, costs)
            if unfit_document(second.document) is not None:
                return None
            pair = await self._judged(one, answer_text(second.document), first, costs)
        except NarrowgateError:
            return None
        return None if pair is None else Candidate(AGAIN, 1.0, pair.loss, None, pair.badly_worse)

    async def _conclude(self, one: ObservedHit, loss: float) -> None:
        """Draw the consequences of a verdict for the entry."""
        match = one.match
        if one.is_suspected:
            await self._entries.settle(match.entry.id, is_right=loss == 0.0)
        elif loss:
            await self._entries.unlist(match.entry.id)
        elif match.kind == "semantic" and one.context.options.cache != "no-store":
            # An alias keeps the digest of the request.
            await self._entries.add_alias(one.key, match, self.evidence.now())

    async def _ask_judge(self, one: ObservedHit, prompt: JudgePrompt, costs: list[Decimal]) -> str:
        reference = one.ruling.reference
        assert reference is not None
        context = self._context(one.context)
        request, plan = judge_call(
            prompt, reference, context.deadline, tier="frontier", reason="audit"
        )
        return answer_text(await self._asked(self._frontier, context, request, plan, costs))

    def _unjudged(
        self,
        one: ObservedHit,
        origin: Origin,
        error: NarrowgateError | TimeoutError,
        cost_usd: Decimal | None,
        costs: Sequence[Decimal] = (),
    ) -> None:
        if isinstance(error, TimeoutError):
            error = DeadlineExceeded("the audit took longer than evidence.deadline_s")
        if isinstance(error, OF_THE_INPUT):
            self._verdict(one, origin, "missing", 1.0, cost_usd, costs)
        else:
            usd = self._count_judge(origin, costs)
            if origin != "shadow" and cost_usd is not None:
                # In shadow a client got the fresh answer: it is no cost of the audit.
                usd += cost_usd
            self._drop(one, origin, usd or None)

    def _drop(self, one: ObservedHit, origin: Origin, cost_usd: Decimal | None = None) -> None:
        self._append_drop(one.drawn, origin, cost_usd, has_row=_has_row(one, origin))

    def _count_judge(self, origin: Origin, costs: Sequence[Decimal]) -> Decimal:
        """Count what comparing cost besides the fresh answer; return it."""
        usd = sum(costs, Decimal(0))
        if origin == "shadow":
            self.evidence.judged(usd)
        return usd

    def _verdict(
        self,
        one: ObservedHit,
        origin: Origin,
        verdict: Verdict,
        loss: float,
        cost_usd: Decimal | None,
        costs: Sequence[Decimal] = (),
        again: Candidate | None = None,
    ) -> None:
        """Write a verdict. cost_usd: of the fresh answer. costs: of what else was asked."""
        self._events.similar_compared(one.match.kind, verdict)
        judge_usd = self._count_judge(origin, costs)
        if not _has_row(one, origin):
            # The coin did not choose it: it says nothing about the others.
            return
        row = self._row(one.drawn, origin, verdict, loss)
        candidates = [Candidate(MODEL, one.match.similarity, loss)]
        row = replace(row, candidates=(*candidates, *([] if again is None else [again])))
        if origin == "shadow":
            # The fresh answer's cost is what a hit would have avoided, without the judge.
            row = replace(row, cost_usd=cost_usd, judge_usd=judge_usd, avoided_usd=cost_usd)
        elif cost_usd is not None:
            row = replace(row, cost_usd=cost_usd + judge_usd, avoided_usd=cost_usd)
        self._append(row)


def _has_row(one: ObservedHit, origin: Origin) -> bool:
    return origin == "refined" or not one.is_suspected
