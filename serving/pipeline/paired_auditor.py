"""Rules on a shortcut of one model, and compares its answers with and without the shortcut.

Until the claim is held no client gets an answer with the shortcut: of a share of the requests one
is made behind the request, and a judge compares it with the client's own. Once it is held, of a
share of the answers with the shortcut the one without it is made and compared.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, ClassVar
from uuid import uuid4

from serving.cache.cacheable import unfit_document
from serving.contracts.answer import Usage
from serving.contracts.context import RequestContext
from serving.contracts.errors import LedgerUnavailable, NarrowgateError
from serving.contracts.evidence import (
    Candidate,
    Claim,
    ClaimState,
    Origin,
    Shortcut,
    ShortcutName,
    Verdict,
)
from serving.contracts.evidence_settings import EvidenceSettings
from serving.contracts.prices import PriceList
from serving.contracts.requests import ChatRequest
from serving.evidence.appender import EvidenceAppender
from serving.evidence.candidates import MODEL
from serving.evidence.fold import AGAIN
from serving.evidence.judge import JudgedAnswers, JudgePrompt, JudgeReply, judge
from serving.evidence.pacing import coin
from serving.evidence.payback import SHADOW_SHARE
from serving.evidence.rulings import Evidence, Ruling
from serving.evidence.statistics.judged import JudgedPair
from serving.pipeline.audit_work import OF_THE_INPUT, AuditWork, Drawn, judge_call
from serving.pipeline.compared_text import answer_text, is_comparable, question_of
from serving.pipeline.exit_recorder import ExitRecorder, RequestRecord
from serving.pipeline.plan import FrontierPlan
from serving.pipeline.runner import Runner
from serving.tiers.shortcut import PairedModel

_AUDITED_AT_FIRST = 0.1
"""Of the answers with the shortcut, for the first evidence.high_rate_inputs: an audit costs a whole
answer and two calls of the judge, several times what one such answer saves."""
AGAIN_SHARE = 0.05
"""Of the compared requests, those for which the model answers once more: the judge's own spread."""


@dataclass(frozen=True, slots=True)
class PairDecision:
    """What the claim says of one request.

    ruling: None where nothing may be compared. is_earned: the request may take the shortcut.
    share: probability of the coin. is_drawn: it chose the request.
    """

    ruling: Ruling | None = None
    is_earned: bool = False
    share: float = 0.0
    is_drawn: bool = False


UNDECIDED = PairDecision()


@dataclass(frozen=True, slots=True)
class AskedChat:
    """What is asked for one of both answers."""

    request: ChatRequest
    plan: FrontierPlan


@dataclass(frozen=True, slots=True)
class ClientAnswer:
    """A client's own answer. usage: None where it is unknown."""

    text: str
    usage: Usage | None


@dataclass(frozen=True, slots=True)
class PairedChat:
    """One chat, once it was answered. request: as the client sent it; the judge reads it.

    shortcut, reference: how the answers with and without the shortcut are asked for. usd: what the
    client's own answer cost at list prices; None where that is unknown.
    """

    request: ChatRequest
    shortcut: AskedChat
    reference: AskedChat
    decision: PairDecision
    context: RequestContext
    input: str
    drawn_at: datetime
    usd: Decimal | None = None

    @property
    def ruling(self) -> Ruling:
        """Return the claim's; only what has one is compared."""
        assert self.decision.ruling is not None
        return self.decision.ruling

    @property
    def drawn(self) -> Drawn:
        """Return what its row says."""
        text = question_of(self.request)
        return Drawn(
            self.ruling, self.context, self.input, text, self.decision.share, self.drawn_at
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """What comparing two answers of a model takes.

    ask: asks a model as the plan says. judge: `provider/model`; None where it has no key: then no
    request takes the shortcut. prices: of the clients' own answers. target_error: largest share
    judged worse less the share judged better. shadow_share: of the requests, compared while the
    claim is being earned. again_share: of the compared ones, for which the model answers once more.
    """

    evidence: Evidence
    appender: EvidenceAppender
    recorder: ExitRecorder
    ask: Runner[ChatRequest, FrontierPlan]
    judge: str | None
    prices: PriceList
    target_error: float
    again_share: float = AGAIN_SHARE
    shadow_share: float = SHADOW_SHARE


class PairAuditor(AuditWork):
    """Rules on one kind of shortcut, a claim for each tenant and model. One for a process."""

    name: ClassVar[ShortcutName]
    defect: ClassVar[str]
    """What the log says where a comparison failed by a defect."""
    most_chars: ClassVar[int]
    """Of a chat that is compared: what the judge reads."""
    judged_anyway: ClassVar[frozenset[str]] = frozenset()
    """Reasons for which an answer is not cached and is compared all the same."""

    def __init__(self, comparison: Comparison, version: str) -> None:
        super().__init__(comparison.evidence, comparison.appender, comparison.recorder, self.defect)
        self._ask = comparison.ask
        self._judge = comparison.judge
        self._prices = comparison.prices
        self._target_error = comparison.target_error
        self._again_share = comparison.again_share
        self._shadow_share = comparison.shadow_share
        self._version = version
        self._shortcuts: dict[str, Shortcut] = {}

    def decide(self, request: ChatRequest, model: str, record: RequestRecord) -> PairDecision:
        """Return what holds for a request. model: `provider/model` that is asked. Never waits."""
        if self._judge is None or record.context.options.quality == "reference":
            return UNDECIDED
        turns = [message for message in request.messages if message.role == "user"]
        conversation = question_of(replace(request, messages=tuple(turns[:1])))
        try:
            ruling = self.evidence.tier_ruling(
                self._shortcut(model, self._judge), record.context, model, (model, self._judge),
                conversation if len(turns) > 1 else None,
            )  # fmt: skip
        except LedgerUnavailable:
            return UNDECIDED
        if ruling is None or ruling.standing.claim is None:
            return UNDECIDED
        is_earned = ruling.standing.mode == "claim"
        if is_earned and self.evidence.always_escalates(ruling.name, question_of(request)):
            return UNDECIDED
        share = self._share(ruling)
        is_drawn = not record.is_audit and self.is_comparable(request) and coin(share)
        return PairDecision(ruling, is_earned, share, is_drawn)

    def is_comparable(self, request: ChatRequest) -> bool:
        """Return whether a judge can compare answers to a request."""
        return is_comparable(request, self.most_chars)

    def compared(self, verdict: str) -> None:
        """Count a comparison: `better`, `same`, `worse`, `missing` or `dropped`."""

    def _shortcut(self, model: str, judge: str) -> Shortcut:
        known = self._shortcuts.get(model)
        if known is None:
            # One object a model: evidence keeps what it knows of it.
            known = PairedModel(self.name, model, self._version, judge, self._target_error)
            self._shortcuts[model] = known
        return known

    def _share(self, ruling: Ruling) -> float:
        claim = self.evidence.snapshot.find(ruling.name)
        is_earned = ruling.standing.mode == "claim"
        return compared_share(
            claim, self.evidence.settings, self._shadow_share, is_earned=is_earned
        )

    def _paired(
        self,
        request: ChatRequest,
        shortcut: AskedChat,
        reference: AskedChat,
        decision: PairDecision,
        context: RequestContext,
        usage: Usage | None,
    ) -> PairedChat:
        """Return the chat. usage: of the client's own answer; None where it is unknown."""
        prices = self._prices.of(shortcut.plan.targets[0])
        usd = None if prices is None or usage is None else prices.base.cost(usage)
        return PairedChat(
            request, shortcut, reference, decision, context, uuid4().hex, self.evidence.now(), usd
        )

    def _is_affordable(self, decision: PairDecision) -> bool:
        return self.evidence.is_affordable() if decision.is_earned else self.evidence.may_judge()

    def _compare(self, one: PairedChat, answer: str) -> None:
        """Compare a client's answer with the other one, if the budget and the queue have room."""
        origin = _origin(one)
        if self._is_affordable(one.decision) and self._start(self._compared(one, answer)):
            self._draw(one.drawn, origin)
        else:
            self._drop(one)

    async def _compared(self, one: PairedChat, answer: str) -> None:
        costs: list[Decimal] = []
        is_served = one.decision.is_earned
        try:
            other = await self._document(one, costs, is_shortcut=not is_served)
            avoided_usd = _avoided_usd(one, sum(costs, Decimal(0)))
            is_unfit = self._is_unfit(other)
            if is_unfit and is_served:
                # What the model cannot answer in full says nothing about the shortcut.
                self._drop(one, costs)
                return
            shortcut, reference = answer, answer_text(other)
            if not is_served:
                shortcut, reference = reference, shortcut
            pair = None if is_unfit else await self._judged(one, shortcut, reference, costs)
            again = None if pair is None else await self._again(one, reference, costs)
        except NarrowgateError as error:
            if isinstance(error, OF_THE_INPUT) and not is_served:
                self._verdict(one, None, None, costs)
            else:
                self._drop(one, costs)
            return
        self._verdict(one, pair, again, costs, avoided_usd)

    def _is_unfit(self, document: Mapping[str, Any]) -> bool:
        unfit = unfit_document(document)
        return unfit is not None and unfit not in self.judged_anyway

    async def _document(
        self, one: PairedChat, costs: list[Decimal], *, is_shortcut: bool
    ) -> Mapping[str, Any]:
        """Return the model's answer with the shortcut or without it."""
        asked = one.shortcut if is_shortcut else one.reference
        context = self._context(one.context)
        plan = replace(
            asked.plan, targets=asked.plan.targets[:1], deadline=context.deadline,
            reason="explore" if is_shortcut else "audit", decision=None,
        )  # fmt: skip
        request = replace(asked.request, stream=False, include_usage=False)
        return await self._asked(self._ask, context, request, plan, costs)

    async def _judged(
        self, one: PairedChat, shortcut: str, reference: str, costs: list[Decimal]
    ) -> JudgedPair | None:
        async def ask(prompt: JudgePrompt) -> JudgeReply:
            assert self._judge is not None
            context = self._context(one.context)
            request, plan = judge_call(
                prompt, self._judge, context.deadline, tier="standard", reason="judge"
            )
            document = await self._asked(self._ask, context, request, plan, costs)
            return JudgeReply(answer_text(document))

        return (await judge(JudgedAnswers(question_of(one.request), shortcut, reference), ask)).pair

    async def _again(
        self, one: PairedChat, reference: str, costs: list[Decimal]
    ) -> Candidate | None:
        """Return what the judge makes of a second answer without the shortcut; None for most."""
        if not coin(self._again_share):
            return None
        try:
            second = await self._document(one, costs, is_shortcut=False)
            if self._is_unfit(second):
                return None
            pair = await self._judged(one, answer_text(second), reference, costs)
        except NarrowgateError:
            return None
        return None if pair is None else Candidate(AGAIN, 1.0, pair.loss, None, pair.badly_worse)

    def _spent(self, origin: Origin, costs: list[Decimal]) -> Decimal:
        usd = sum(costs, Decimal(0))
        if origin == "shadow":
            self.evidence.judged(usd)
        return usd

    def _drop(self, one: PairedChat, costs: list[Decimal] | None = None) -> None:
        origin = _origin(one)
        self.compared("dropped")
        self._append_drop(one.drawn, origin, self._spent(origin, costs or []) or None)

    def _verdict(
        self,
        one: PairedChat,
        pair: JudgedPair | None,
        again: Candidate | None,
        costs: list[Decimal],
        avoided_usd: Decimal | None = None,
    ) -> None:
        origin = _origin(one)
        loss = 1.0 if pair is None else pair.loss
        badly = 1.0 if pair is None else pair.badly_worse
        verdict: Verdict = "missing" if pair is None else "same" if loss <= 0.5 else "different"
        self.compared("missing" if pair is None else preference(loss))
        usd = self._spent(origin, costs)
        candidates = [Candidate(MODEL, 1.0, loss, None, badly), *([] if again is None else [again])]
        row = replace(
            self._row(one.drawn, origin, verdict, loss),
            candidates=tuple(candidates),
            cost_usd=usd,
            judge_usd=usd if origin == "shadow" else None,
            avoided_usd=avoided_usd,
        )
        self._append(row)


def compared_share(
    claim: Claim | None, settings: EvidenceSettings, shadow_share: float, *, is_earned: bool
) -> float:
    """Return the share of requests to compare. claim: None where it is new.

    is_earned: whether answers with the shortcut are served.
    """
    if not is_earned:
        is_ended = claim is not None and (claim.state is ClaimState.NOT_EARNABLE or claim.is_slowed)
        return settings.sample_rate if is_ended else shadow_share
    is_new = claim is None or claim.since_signal < settings.high_rate_inputs
    return max(settings.floor_rate, _AUDITED_AT_FIRST) if is_new else settings.floor_rate


def preference(loss: float) -> str:
    """Return how a judged answer compares with the reference's, as metrics name it."""
    return "same" if loss == 0.5 else "worse" if loss > 0.5 else "better"


def _avoided_usd(one: PairedChat, other_usd: Decimal) -> Decimal | None:
    """Return what the shortcut saved, or would have. other_usd: of the answer no client got."""
    if one.usd is None:
        return None
    return other_usd - one.usd if one.decision.is_earned else one.usd - other_usd


def _origin(one: PairedChat) -> Origin:
    return "accepted" if one.decision.is_earned else "shadow"
