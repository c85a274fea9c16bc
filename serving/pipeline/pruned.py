"""Prunes a chat's context before its frontier call; sends it whole where that fails.

In the mode `auto` a context is pruned only while the claim on the model that is asked is held.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from serving.context.detection import Place, context_places, texts_of
from serving.contracts.errors import NarrowgateError
from serving.contracts.frontier import attempts_of
from serving.contracts.requests import ChatRequest
from serving.pipeline.compared_text import FollowedEvents, answer_text
from serving.pipeline.context_auditor import ContextAuditor
from serving.pipeline.context_pruning import ContextPruning, PrunedChat, PruningOutcome
from serving.pipeline.exit_recorder import Outcome, OutcomeStream, RequestRecord, Served
from serving.pipeline.paired_auditor import UNDECIDED, ClientAnswer
from serving.pipeline.plan import FrontierPlan
from serving.pipeline.runner import Runner

_ENDED = ("stop", "tool_calls", "function_call")
"""Finish reasons of answers that nothing cut."""


def _never(_error: NarrowgateError) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Pruning:
    """What pruning needs.

    auditor: makes the auditor of the mode `auto` from a runner that asks a model as clients are
    served; None where nothing can be compared, and nothing is pruned so. may_fall_back: whether
    another model may be asked after an error of the claim's.
    """

    pruning: ContextPruning
    auditor: Callable[[Runner[ChatRequest, FrontierPlan]], ContextAuditor] | None = None
    may_fall_back: Callable[[NarrowgateError], bool] = _never


@dataclass(frozen=True, slots=True)
class _Sent:
    """A request as the client sent it, with what is sent of it. plan: of all its targets."""

    request: ChatRequest
    plan: FrontierPlan
    chat: PrunedChat
    places: tuple[Place, ...]
    record: RequestRecord


class Pruned:
    """Implements Runner: another runner gets the request with its context pruned."""

    def __init__(
        self,
        runner: Runner[ChatRequest, FrontierPlan],
        pruning: Pruning,
    ) -> None:
        self._runner = runner
        self._pruning = pruning.pruning
        self._auditor = None if pruning.auditor is None else pruning.auditor(runner)
        self._may_fall_back = pruning.may_fall_back

    def concerns(self, request: ChatRequest, _plan: FrontierPlan) -> bool:
        """Return whether a request may hold a context to prune; takes microseconds."""
        settings = self._pruning.settings
        is_off = (request.pruning.mode or settings.mode) == "off"
        return not is_off and _may_hold_context(request, settings.tools)

    async def whole(
        self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord
    ) -> list[Outcome]:
        """Run with what is left; the answer states the tokens before and after."""
        sent = await self._sent(request, plan, record)
        if sent is None:
            return await self._runner.whole(request, plan, record)
        try:
            outcomes = await self._runner.whole(sent.chat.request, _of_claim(sent), record)
        except NarrowgateError as error:
            rest = self._rest(sent, error)
            if rest is None:
                raise
            sent = replace(sent, chat=sent.chat.sent_whole(request))
            outcomes = await self._runner.whole(request, rest, record)
        return [self._answered(sent, one) for one in outcomes]

    async def stream(
        self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord
    ) -> Outcome | OutcomeStream:
        """As `whole`; the first event states the tokens."""
        sent = await self._sent(request, plan, record)
        if sent is None:
            return await self._runner.stream(request, plan, record)
        apart = record.apart()
        try:
            stream = await self._runner.stream(sent.chat.request, _of_claim(sent), apart)
        except NarrowgateError as error:
            rest = self._rest(sent, error)
            if rest is None:
                raise
            # Its place in the queue: a request that held two could wait for itself.
            await apart.resources.aclose()
            sent = replace(sent, chat=sent.chat.sent_whole(request))
            stream = await self._runner.stream(request, rest, record)
        if isinstance(stream, Outcome):
            return self._answered(sent, stream)
        return self._followed(sent, stream)

    def _rest(self, sent: _Sent, error: NarrowgateError) -> FrontierPlan | None:
        """Return the plan of the other targets where the claim's model failed; None without any.

        The failed attempts are noted on the request.
        """
        rest = sent.plan.targets[1:]
        if not sent.chat.is_claimed or not rest or not self._may_fall_back(error):
            return None
        for item in sent.record.inputs:
            for attempt in attempts_of(error):
                item.set_aside(attempt, sent.plan.reason)
        return replace(sent.plan, targets=rest)

    async def _sent(
        self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord
    ) -> _Sent | None:
        """Return what is sent; None where the request has no context."""
        pruning = self._pruning
        places = await asyncio.to_thread(
            context_places, request.messages, request.pruning.marked, pruning.settings.tools
        )
        if not places:
            return None
        began_s = time.monotonic()
        mode = request.pruning.mode or pruning.settings.mode
        if mode == "auto":
            chat = await self._claimed(request, plan, record, places)
        else:
            chat = await pruning.pruned(request, plan, mode, places)
        pruning.count(chat, began_s)
        return _Sent(request, plan, chat, places, record)

    async def _claimed(
        self,
        request: ChatRequest,
        plan: FrontierPlan,
        record: RequestRecord,
        places: Sequence[Place],
    ) -> PrunedChat:
        """Return what is sent in the mode `auto`."""
        pruning, auditor = self._pruning, self._auditor
        if auditor is not None and not auditor.is_comparable(request):
            return await pruning.whole(request, places, "not_comparable", UNDECIDED)
        decision = (
            UNDECIDED if auditor is None else auditor.decide(request, plan.targets[0], record)
        )
        if not decision.is_earned:
            outcome: PruningOutcome = "no_claim" if decision.ruling is None else "not_earned"
            return await pruning.whole(request, places, outcome, decision)
        chat = await pruning.pruned(request, plan, "auto", places)
        return replace(chat, decision=decision)

    def _answered(self, sent: _Sent, outcome: Outcome) -> Outcome:
        content, served = outcome.content, outcome.served
        if not isinstance(content, dict):
            return outcome
        if served is not None:
            choices = content.get("choices") or [{}]
            text = answer_text(content) if content.get("choices") else ""
            answer = ClientAnswer(text, served.usage)
            self._compare(sent, served.model, answer, choices[0].get("finish_reason"))
            served = self._under_claim(sent, served)
        details = {**content.get("narrowgate", {}), **sent.chat.details()}
        return replace(outcome, content={**content, "narrowgate": details}, served=served)

    def _followed(self, sent: _Sent, stream: OutcomeStream) -> OutcomeStream:
        served, model = stream.served, stream.model

        def ended(text: str) -> None:
            self._compare(sent, model, ClientAnswer(text, served().usage), events.finish_reason)

        events = FollowedEvents(stream.events, sent.chat.details(), ended)
        return replace(stream, events=events, served=lambda: self._under_claim(sent, served()))

    def _under_claim(self, sent: _Sent, served: Served) -> Served:
        return sent.chat.served_under_claim(served, self._pruning.prices)

    def _compare(
        self, sent: _Sent, model: str, answer: ClientAnswer, finish_reason: str | None
    ) -> None:
        """Have a whole answer compared with the other one, where the coin chose the request.

        Not that of another model than the first target: the claim is about one model.
        """
        auditor, chat, request, plan = self._auditor, sent.chat, sent.request, sent.plan
        ruling = chat.decision.ruling
        if auditor is None or ruling is None or sent.record.is_audit:
            return
        if chat.is_claimed:
            auditor.evidence.counts.accepted[ruling.name] += 1
        if model != plan.targets[0] or finish_reason not in _ENDED:
            return
        context = sent.record.context
        if chat.is_claimed:
            auditor.served(request, chat.request, plan, chat.decision, context, answer)
        elif chat.outcome == "not_earned":

            async def prune() -> ChatRequest | None:
                found = await self._pruning.pruned(request, plan, "auto", sent.places)
                return found.request if found.outcome == "pruned" else None

            auditor.shadowed(request, prune, plan, chat.decision, context, answer)


def _of_claim(sent: _Sent) -> FrontierPlan:
    """Return the plan of what is sent: a context pruned under a claim goes to its model alone."""
    plan = sent.plan
    return replace(plan, targets=plan.targets[:1]) if sent.chat.is_claimed else plan


def _may_hold_context(request: ChatRequest, tools: Collection[str]) -> bool:
    if tools or request.pruning.marked:
        return True
    return any("<" in text for message in request.messages for _, text in texts_of(message))
