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
from serving.contracts.errors import DeadlineExceeded, NarrowgateError
from serving.contracts.evidence import Candidate, Origin, Verdict
from serving.contracts.requests import ChatRequest
from serving.evidence.appender import EvidenceAppender
from serving.evidence.candidates import MODEL
from serving.evidence.judge import JudgedAnswers, JudgePrompt, JudgeReply, judge
from serving.evidence.rulings import Evidence, Ruling
from serving.pipeline.audit_work import OF_THE_INPUT, AuditWork, Drawn, judge_call
from serving.pipeline.compared_text import answer_text
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

    @property
    def drawn(self) -> Drawn:
        """Return what its row says."""
        probability = self.ruling.rate if self.coin else None
        return Drawn(
            self.ruling, self.context, self.input, self.question, probability, self.drawn_at
        )


class HitAuditor(AuditWork):
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
        super().__init__(evidence, appender, "cache.audit_failed")
        self._recorder = recorder
        self._frontier = frontier
        self._entries = entries
        self._events = events

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
        if not one.is_affordable:
            work.close()
            self._drop(one, origin)
        elif not self._start(work):
            self._drop(one, origin)
        elif not one.is_suspected:
            self._draw(one.drawn, origin)

    async def _ask(self, one: ObservedHit, ask: Fresh) -> None:
        """Have the model answer as if there were no cache, then compare."""
        costs: list[Decimal | None] = [None]
        try:
            async with (
                asyncio.timeout(self.evidence.settings.deadline_s),
                self._recorder.open(
                    self._context(one.context, one.context.options), "audit"
                ) as record,
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
            one.question, answer_text(one.match.entry.content.document), answer_text(fresh.document)
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
        elif match.kind == "semantic" and one.context.options.cache != "no-store":
            # An alias keeps the digest of the request.
            await self._entries.add_alias(one.key, match, self.evidence.now())

    async def _ask_judge(self, one: ObservedHit, prompt: JudgePrompt) -> JudgeReply:
        reference = one.ruling.reference
        assert reference is not None
        context = self._context(one.context)
        request, plan = judge_call(
            prompt, reference, context.deadline, tier="frontier", reason="audit"
        )
        async with self._recorder.open(context, "audit") as record:
            record.planned(plan)
            (outcome,) = await record.finish(await self._frontier.whole(request, plan, record))
        if isinstance(outcome.content, NarrowgateError):
            raise outcome.content
        assert isinstance(outcome.content, dict)
        return JudgeReply(answer_text(outcome.content), outcome.cost_usd)

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
        self._append_drop(one.drawn, origin, has_row=not one.is_suspected)

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
        row = self._row(one.drawn, origin, verdict, loss)
        candidates = (Candidate(MODEL, one.match.similarity, loss),)
        self._append(replace(row, candidates=candidates, cost_usd=cost_usd))
