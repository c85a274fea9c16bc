"""Answers open-ended chats from the cheapest tier that has earned their cluster."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from serving.contracts.errors import NarrowgateError
from serving.contracts.evidence import NO_GUARANTEE, Guarantee
from serving.contracts.requests import ChatRequest
from serving.pipeline.auditor import Embed
from serving.pipeline.cascading import Cascade, Checked, set_aside
from serving.pipeline.compared_text import FollowedEvents, answer_text, is_comparable, question_of
from serving.pipeline.exit_recorder import (
    Outcome,
    OutcomeStream,
    RequestRecord,
    Served,
    under_claim,
)
from serving.pipeline.plan import FrontierPlan
from serving.pipeline.runner import Runner
from serving.pipeline.self_check import is_checkable
from serving.pipeline.stream_document import document_chunks
from serving.pipeline.tier_auditor import ComparedChat, TierAuditor
from serving.tiers.cascades import Asked, Check
from serving.tiers.clusters import clustered_text
from serving.tiers.planner import (
    TierCandidate,
    TierChoice,
    TierOutcome,
    TierPlanner,
)

_VECTOR_TIMEOUT_S = 0.5
"""The client waits for it; where it takes longer, the reference answers."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """A request with its choice. plan: of the model that answers."""

    plan: FrontierPlan
    choice: TierChoice | None = None

    @property
    def cascading(self) -> TierCandidate | None:
        """Return the tier that answers first; None where none does."""
        return None if self.choice is None else self.choice.cascading


class Tiered:
    """Implements Runner: another runner gets the plan of the tier that a chat's cluster earned.

    What the client decides stays: a named model, a route, `quality: reference`, `deterministic`.
    """

    def __init__(
        self,
        runner: Runner[ChatRequest, FrontierPlan],
        planner: TierPlanner,
        auditor: TierAuditor,
        embed: Embed,
    ) -> None:
        self._runner = runner
        self._planner = planner
        self._auditor = auditor
        self._embed = embed
        self._cascade = Cascade(runner, planner, embed)

    async def whole(
        self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord
    ) -> list[Outcome]:
        """Return the other runner's answer; compare it behind the request where that is drawn."""
        taken = await self._take(request, plan, record)
        if taken.cascading is not None and taken.choice is not None:
            return [
                await self._cascaded(request, taken.plan, taken.choice, taken.cascading, record)
            ]
        outcomes = await self._runner.whole(request, taken.plan, record)
        if taken.choice is None:
            return outcomes
        return [self._answered(request, plan, taken.choice, record, one) for one in outcomes]

    async def stream(
        self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord
    ) -> Outcome | OutcomeStream:
        """As `whole`; a streamed answer is compared once it has ended."""
        taken = await self._take(request, plan, record)
        if taken.cascading is not None and taken.choice is not None:
            return _streamed(
                await self._cascaded(request, taken.plan, taken.choice, taken.cascading, record)
            )
        stream = await self._runner.stream(request, taken.plan, record)
        if taken.choice is None:
            return stream
        if isinstance(stream, Outcome):
            return self._answered(request, plan, taken.choice, record, stream)
        choice, served = taken.choice, stream.served
        candidate = _candidate(choice, stream.model)
        self._count(choice, candidate)

        def ended(text: str) -> None:
            self._compare(request, plan, choice, candidate, record, text)

        return replace(
            stream,
            reason=_reason(candidate, stream.reason),
            events=FollowedEvents(stream.events, _details(choice, candidate), ended),
            served=lambda: _under(served(), candidate),
        )

    async def _take(
        self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord
    ) -> _Taken:
        planner, options = self._planner, record.context.options
        is_routed = plan.decision is not None and plan.reason == "out_of_scope"
        if not is_routed or options.deterministic or options.quality == "reference":
            return _Taken(plan)
        start = planner.start(plan.tier)
        if start is None or not planner.is_possible:
            return _Taken(plan)
        targets = (start.model, *(t for t in plan.targets if t != start.model))
        plan = replace(plan, targets=targets)
        text = clustered_text(request.messages)
        if not text or not is_comparable(request, planner.settings.max_chars):
            planner.events.tier_chosen("none", start.tier, "not_comparable")
            return _Taken(plan)
        try:
            async with asyncio.timeout(_VECTOR_TIMEOUT_S):
                vector = await self._embed(text)
        except (NarrowgateError, TimeoutError):
            planner.events.tier_chosen("none", start.tier, "no_vector")
            return _Taken(plan)
        cluster = planner.clustering.nearest(vector)
        turns = sum(message.role == "user" for message in request.messages)
        choice = planner.choose(cluster, start, self._asked(request, record, text, turns))
        for item in record.inputs:
            item.cluster = choice.cluster
        serving = choice.serving
        if serving is not None:
            model = serving.rung.model
            targets = (model, *(target for target in targets if target != model))
            plan = replace(plan, targets=targets, reason="earned_tier")
            for item in record.inputs:
                item.reason = "earned_tier"
        return _Taken(plan, choice)

    def _asked(self, request: ChatRequest, record: RequestRecord, text: str, turns: int) -> Asked:
        # A limit of cost is one for a call, and a cascade makes several.
        is_free = record.context.options.max_cost_usd is None
        may_stream = not request.stream or self._planner.settings.cascade_streams

        def may_cascade(check: Check) -> bool:
            return is_free and may_stream and is_checkable(request, check)

        conversation = text if turns > 1 else None
        return Asked(record.context, question_of(request), conversation, may_cascade)

    async def _cascaded(
        self,
        request: ChatRequest,
        plan: FrontierPlan,
        choice: TierChoice,
        cascading: TierCandidate,
        record: RequestRecord,
    ) -> Outcome:
        """Return the cheaper answer where it is sure enough, else the reference's."""
        checked = await self._cascade.checked(request, plan, cascading, record)
        rung, events = cascading.rung, self._planner.events
        kept = checked.outcome
        if kept is None or not checked.is_kept(cascading.threshold):
            is_failed = checked.failed is not None or checked.confidence is None
            outcome: TierOutcome = "cascade_failed" if is_failed else "cascade_escalated"
            events.tier_chosen(choice.topic, rung.tier, outcome)
            set_aside(checked, rung.model, record)
            whole = replace(request, stream=False, include_usage=False)
            (found,) = await self._runner.whole(whole, plan, record)
            if isinstance(found.content, dict):
                self._explore(request, plan, choice, record, answer_text(found.content))
            return self._cascade_details(found, choice, checked, None)
        events.tier_chosen(choice.topic, rung.tier, "cascade_kept")
        assert kept.served is not None
        self._compare_kept(request, plan, choice, cascading, record, checked)
        self._explore(request, plan, choice, record, None)
        attempts = (*kept.served.attempts, *checked.attempts)
        served = replace(kept.served, reason="cascade", attempts=attempts)
        served = under_claim(served, cascading.ruling.name)
        return self._cascade_details(replace(kept, served=served), choice, checked, cascading)

    def _compare_kept(
        self,
        request: ChatRequest,
        plan: FrontierPlan,
        choice: TierChoice,
        cascading: TierCandidate,
        record: RequestRecord,
        checked: Checked,
    ) -> None:
        evidence = self._planner.evidence
        evidence.counts.accepted[cascading.ruling.name] += 1
        if not cascading.drawn or checked.outcome is None:
            return
        assert isinstance(checked.outcome.content, dict)
        one = ComparedChat(
            request, plan, choice, cascading, record.context, uuid4().hex, evidence.now(),
            checked.confidence,
        )  # fmt: skip
        self._auditor.audit(one, answer_text(checked.outcome.content))

    def _cascade_details(
        self,
        outcome: Outcome,
        choice: TierChoice,
        checked: Checked,
        kept: TierCandidate | None,
    ) -> Outcome:
        if not isinstance(outcome.content, dict):
            return outcome
        details = _details(choice, kept)
        details["tier"]["cascade"] = {
            "kept": kept is not None,
            "confidence": None if checked.confidence is None else round(checked.confidence, 4),
            "delay_s": round(checked.elapsed_s, 3),
        }
        merged = {**outcome.content.get("narrowgate", {}), **details}
        return replace(outcome, content={**outcome.content, "narrowgate": merged})

    def _answered(
        self,
        request: ChatRequest,
        plan: FrontierPlan,
        choice: TierChoice,
        record: RequestRecord,
        outcome: Outcome,
    ) -> Outcome:
        served, content = outcome.served, outcome.content
        if served is None or not isinstance(content, dict):
            return outcome
        candidate = _candidate(choice, served.model)
        self._count(choice, candidate)
        self._compare(request, plan, choice, candidate, record, answer_text(content))
        details = {**content.get("narrowgate", {}), **_details(choice, candidate)}
        return replace(
            outcome, content={**content, "narrowgate": details}, served=_under(served, candidate)
        )

    def _count(self, choice: TierChoice, candidate: TierCandidate | None) -> None:
        tier, outcome = choice.start.tier, "reference"
        if choice.serving is not None:
            tier = choice.serving.rung.tier
            outcome = "fallback" if candidate is None else "cheaper_tier"
        found: TierOutcome = outcome  # type: ignore[assignment]
        self._planner.events.tier_chosen(choice.topic, tier, found)

    def _compare(
        self,
        request: ChatRequest,
        plan: FrontierPlan,
        choice: TierChoice,
        candidate: TierCandidate | None,
        record: RequestRecord,
        text: str,
    ) -> None:
        evidence = self._planner.evidence
        now, context = evidence.now(), record.context
        if candidate is not None:
            evidence.counts.accepted[candidate.ruling.name] += 1
            if candidate.drawn:
                self._auditor.audit(
                    ComparedChat(request, plan, choice, candidate, context, uuid4().hex, now), text
                )
        # Where a cheaper tier or a fallback answered, the reference is asked apart.
        is_reference = candidate is None and choice.serving is None
        self._explore(request, plan, choice, record, text if is_reference else None)

    def _explore(
        self,
        request: ChatRequest,
        plan: FrontierPlan,
        choice: TierChoice,
        record: RequestRecord,
        reference: str | None,
    ) -> None:
        exploring, now = choice.exploring, self._planner.evidence.now()
        if exploring is not None and exploring.drawn:
            one = ComparedChat(request, plan, choice, exploring, record.context, uuid4().hex, now)
            self._auditor.explore(one, reference)


def _candidate(choice: TierChoice, model: str) -> TierCandidate | None:
    """Return the tier that answered in the reference's place; None where none did."""
    serving = choice.serving
    return serving if serving is not None and serving.rung.model == model else None


def _streamed(outcome: Outcome) -> Outcome | OutcomeStream:
    """Return a whole answer as the events of a stream."""
    document, served = outcome.content, outcome.served
    if not isinstance(document, dict) or served is None:
        return outcome
    return OutcomeStream(
        served.route, served.reason, served.model, _events(document), lambda: served
    )


async def _events(document: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    details = {"narrowgate": document["narrowgate"]}
    for chunk in document_chunks(document):
        yield {**chunk, **details}
        details = {}


def _reason(candidate: TierCandidate | None, reason: Any) -> Any:
    return "out_of_scope" if candidate is None and reason == "earned_tier" else reason


def _under(served: Served, candidate: TierCandidate | None) -> Served:
    if candidate is None:
        return replace(served, reason=_reason(candidate, served.reason))
    return under_claim(served, candidate.ruling.name)


def _details(choice: TierChoice, candidate: TierCandidate | None) -> dict[str, Any]:
    guarantee: Guarantee = NO_GUARANTEE
    tier = choice.start.tier
    if candidate is not None:
        guarantee, tier = candidate.ruling.standing.guarantee, candidate.rung.tier
    found: dict[str, Any] = {"cluster": choice.topic, "tier": tier}
    if candidate is not None:
        found["guarantee"] = guarantee.model_dump(mode="json")
    return {"tier": found}
