"""Whether answers that were asked for briefly are as good as the model's own: under a claim.

Until the claim is held no request is asked for brevity. Of a share of them the brief answer is made
behind the request, and a judge compares it with the answer that the client got. Once it is held,
brief answers are served, and a share of them is compared with the model's own.
"""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import uuid4

from serving.cache.cacheable import unfit_document
from serving.contracts.context import RequestContext
from serving.contracts.errors import LedgerUnavailable, NarrowgateError
from serving.contracts.evidence import Candidate, ClaimState, Origin, ShortcutName, Verdict
from serving.contracts.requests import ChatRequest
from serving.evidence.appender import EvidenceAppender
from serving.evidence.candidates import MODEL
from serving.evidence.fold import AGAIN
from serving.evidence.judge import JudgedAnswers, JudgePrompt, JudgeReply, judge
from serving.evidence.pacing import coin
from serving.evidence.rulings import Evidence, Ruling
from serving.evidence.statistics.judged import JudgedPair
from serving.pipeline.audit_work import OF_THE_INPUT, AuditWork, Drawn, judge_call
from serving.pipeline.compared_text import answer_text, is_comparable, question_of
from serving.pipeline.exit_recorder import ExitRecorder, RequestRecord
from serving.pipeline.plan import FrontierPlan
from serving.pipeline.runner import Runner
from serving.tiers.shortcut import JudgedAnswer

logger = logging.getLogger(__name__)

_SHADOW_SHARE = 0.2
"""Of the requests, while the claim is being earned."""
_AUDITED_AT_FIRST = 0.1
"""Of the brief answers, for the first evidence.high_rate_inputs: an audit costs a whole answer and
two calls of the judge, several times what one brief answer saves."""
_AGAIN_SHARE = 0.05
"""Of the compared requests, those for which the model answers once more: the judge's own spread."""
_MOST_CHARS = 40_000


@dataclass(frozen=True, slots=True)
class BriefAnswer(JudgedAnswer):
    """Implements Shortcut: a model's answer to a request that also asks for brevity.

    model: `provider/model`. directive: digest of the sentence, without its number of words. judge:
    the model that compares. target_error: largest share judged worse less the share judged better.
    """

    model: str
    directive: str
    judge: str
    target_error: float
    name: ShortcutName = "brief_answer"

    @property
    def subject(self) -> str:
        """Return the name under which reports and metrics show the model."""
        return f"brief/{self.model}"

    @property
    def versions(self) -> dict[str, str]:
        """Return the versions of its model and sentence."""
        return {"model": self.model, "directive": self.directive}


@dataclass(frozen=True, slots=True)
class Brevity:
    """What the claim says of one request.

    ruling: None where nothing may be compared. is_earned: the request may be asked for brevity.
    share: probability of the coin. is_drawn: it chose the request.
    """

    ruling: Ruling | None = None
    is_earned: bool = False
    share: float = 0.0
    is_drawn: bool = False


UNKNOWN = Brevity()


@dataclass(frozen=True, slots=True)
class _Compared:
    """One chat, once it was answered. plan: of its answer. directive: of the brief answer."""

    request: ChatRequest
    plan: FrontierPlan
    directive: str
    brevity: Brevity
    ruling: Ruling
    context: RequestContext
    input: str
    drawn_at: datetime

    @property
    def drawn(self) -> Drawn:
        """Return what its row says."""
        text = question_of(self.request)
        return Drawn(self.ruling, self.context, self.input, text, self.brevity.share, self.drawn_at)


class BrevityAuditor(AuditWork):
    """Rules on brevity, and compares both answers behind the requests. One for a process.

    ask: asks a model as the plan says: no cache, no claim. judge: `provider/model`; None where it
    has no key: then nothing is asked for briefly. directive: of the settings, with {words}.
    shadow_share: of the requests, compared while the claim is being earned. again_share: of the
    compared ones, for which the model answers once more.
    """

    def __init__(
        self,
        evidence: Evidence,
        appender: EvidenceAppender,
        recorder: ExitRecorder,
        ask: Runner[ChatRequest, FrontierPlan],
        judge: str | None,
        directive: str,
        target_error: float,
        again_share: float = _AGAIN_SHARE,
        shadow_share: float = _SHADOW_SHARE,
    ) -> None:
        super().__init__(evidence, appender, recorder, "bounds.comparison_failed")
        self._ask = ask
        self._judge = judge
        self._directive = hashlib.sha256(directive.encode()).hexdigest()[:16]
        self._target_error = target_error
        self._again_share = again_share
        self._shadow_share = shadow_share
        self._shortcuts: dict[str, BriefAnswer] = {}

    def decide(self, request: ChatRequest, model: str, record: RequestRecord) -> Brevity:
        """Return what holds for a request. model: `provider/model` that is asked. Never waits."""
        if self._judge is None or record.context.options.quality == "reference":
            return UNKNOWN
        turns = [message for message in request.messages if message.role == "user"]
        conversation = question_of(replace(request, messages=tuple(turns[:1])))
        try:
            ruling = self.evidence.tier_ruling(
                self._shortcut(model), record.context, model, (model, self._judge),
                conversation if len(turns) > 1 else None,
            )  # fmt: skip
        except LedgerUnavailable:
            return UNKNOWN
        if ruling is None or ruling.standing.claim is None:
            return UNKNOWN
        is_earned = ruling.standing.mode == "claim"
        if is_earned and self.evidence.always_escalates(ruling.name, question_of(request)):
            return UNKNOWN
        share = self._share(ruling)
        is_drawn = not record.is_audit and is_comparable(request, _MOST_CHARS) and coin(share)
        return Brevity(ruling, is_earned, share, is_drawn)

    def answered(
        self,
        request: ChatRequest,
        plan: FrontierPlan,
        brevity: Brevity,
        context: RequestContext,
        answer: str,
        directive: str,
    ) -> None:
        """Compare a client's answer with the other one where the coin chose the request.

        plan: of the answer, whose bounds say whether it was asked for briefly. directive: of the
        brief answer.
        """
        ruling = brevity.ruling
        if ruling is None or not brevity.is_drawn:
            return
        evidence = self.evidence
        one = _Compared(
            request, plan, directive, brevity, ruling, context, uuid4().hex, evidence.now()
        )
        origin: Origin = "accepted" if brevity.is_earned else "shadow"
        is_affordable = evidence.is_affordable() if brevity.is_earned else evidence.may_judge()
        if is_affordable and self._start(self._compared(one, origin, answer)):
            self._draw(one.drawn, origin)
        else:
            self._append_drop(one.drawn, origin)

    def _shortcut(self, model: str) -> BriefAnswer:
        assert self._judge is not None
        known = self._shortcuts.get(model)
        if known is None:
            # One object a model: evidence keeps what it knows of it.
            known = BriefAnswer(model, self._directive, self._judge, self._target_error)
            self._shortcuts[model] = known
        return known

    def _share(self, ruling: Ruling) -> float:
        settings, standing = self.evidence.settings, ruling.standing
        if standing.mode != "claim":
            is_ended = standing.state is ClaimState.NOT_EARNABLE
            return settings.sample_rate if is_ended else self._shadow_share
        claim = self.evidence.snapshot.find(ruling.name)
        is_new = claim is None or claim.since_signal < settings.high_rate_inputs
        return max(settings.floor_rate, _AUDITED_AT_FIRST) if is_new else settings.floor_rate

    async def _compared(self, one: _Compared, origin: Origin, answer: str) -> None:
        costs: list[Decimal] = []
        is_brief = one.brevity.is_earned
        try:
            other = await self._other(one, costs, is_brief=not is_brief)
            unfit = unfit_document(other)
            if unfit is not None and is_brief:
                # What the model cannot answer at length says nothing about its brief answer.
                self._dropped(one, origin, costs)
                return
            brief, plain = answer, answer_text(other)
            if not is_brief:
                brief, plain = plain, brief
            pair = None if unfit is not None else await self._judged(one, brief, plain, costs)
            again = None if pair is None else await self._again(one, plain, costs)
        except NarrowgateError as error:
            if isinstance(error, OF_THE_INPUT) and not is_brief:
                self._verdict(one, origin, None, None, costs)
            else:
                self._dropped(one, origin, costs)
            return
        self._verdict(one, origin, pair, again, costs)

    async def _other(
        self, one: _Compared, costs: list[Decimal], *, is_brief: bool
    ) -> Mapping[str, Any]:
        """Return the model's other answer."""
        bounds = replace(one.plan.bounds, directive=one.directive if is_brief else None)
        context = self._context(one.context)
        plan = replace(
            one.plan, targets=one.plan.targets[:1], bounds=bounds, deadline=context.deadline,
            reason="explore" if is_brief else "audit", decision=None,
        )  # fmt: skip
        request = replace(one.request, stream=False, include_usage=False)
        return await self._asked(self._ask, context, request, plan, costs)

    async def _judged(
        self, one: _Compared, brief: str, plain: str, costs: list[Decimal]
    ) -> JudgedPair | None:
        async def ask(prompt: JudgePrompt) -> JudgeReply:
            assert self._judge is not None
            context = self._context(one.context)
            request, plan = judge_call(
                prompt, self._judge, context.deadline, tier="standard", reason="judge"
            )
            document = await self._asked(self._ask, context, request, plan, costs)
            return JudgeReply(answer_text(document))

        return (await judge(JudgedAnswers(question_of(one.request), brief, plain), ask)).pair

    async def _again(self, one: _Compared, plain: str, costs: list[Decimal]) -> Candidate | None:
        """Return what the judge makes of a second answer without the directive; None for most."""
        if not coin(self._again_share):
            return None
        try:
            second = await self._other(one, costs, is_brief=False)
            if unfit_document(second) is not None:
                return None
            pair = await self._judged(one, answer_text(second), plain, costs)
        except NarrowgateError:
            return None
        return None if pair is None else Candidate(AGAIN, 1.0, pair.loss, None, pair.badly_worse)

    def _spent(self, origin: Origin, costs: list[Decimal]) -> Decimal:
        usd = sum(costs, Decimal(0))
        if origin == "shadow":
            self.evidence.judged(usd)
        return usd

    def _dropped(self, one: _Compared, origin: Origin, costs: list[Decimal]) -> None:
        self._append_drop(one.drawn, origin, self._spent(origin, costs) or None)

    def _verdict(
        self,
        one: _Compared,
        origin: Origin,
        pair: JudgedPair | None,
        again: Candidate | None,
        costs: list[Decimal],
    ) -> None:
        loss = 1.0 if pair is None else pair.loss
        badly = 1.0 if pair is None else pair.badly_worse
        verdict: Verdict = "missing" if pair is None else "same" if loss <= 0.5 else "different"
        usd = self._spent(origin, costs)
        candidates = [Candidate(MODEL, 1.0, loss, None, badly), *([] if again is None else [again])]
        row = replace(
            self._row(one.drawn, origin, verdict, loss),
            candidates=tuple(candidates),
            cost_usd=usd,
            judge_usd=usd if origin == "shadow" else None,
        )
        self._append(row)
