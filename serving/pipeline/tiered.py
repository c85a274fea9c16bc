"""Answers open-ended chats from the cheapest tier that has earned their cluster."""

import asyncio
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from serving.contracts.errors import NarrowgateError
from serving.contracts.evidence import NO_GUARANTEE, Guarantee
from serving.contracts.requests import ChatRequest
from serving.pipeline.auditor import Embed
from serving.pipeline.compared_text import FollowedEvents, answer_text, is_comparable, question_of
from serving.pipeline.exit_recorder import Outcome, OutcomeStream, RequestRecord, Served
from serving.pipeline.plan import FrontierPlan
from serving.pipeline.runner import Runner
from serving.pipeline.tier_auditor import ComparedChat, TierAuditor
from serving.tiers.clusters import clustered_text
from serving.tiers.planner import TierCandidate, TierChoice, TierOutcome, TierPlanner

_VECTOR_TIMEOUT_S = 0.5
"""The client waits for it; where it takes longer, the reference answers."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """A request with its choice. plan: of the model that answers."""

    plan: FrontierPlan
    choice: TierChoice | None = None


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

    async def whole(
        self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord
    ) -> list[Outcome]:
        """Return the other runner's answer; compare it behind the request where that is drawn."""
        taken = await self._take(request, plan, record)
        outcomes = await self._runner.whole(request, taken.plan, record)
        if taken.choice is None:
            return outcomes
        return [self._answered(request, plan, taken.choice, record, one) for one in outcomes]

    async def stream(
        self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord
    ) -> Outcome | OutcomeStream:
        """As `whole`; a streamed answer is compared once it has ended."""
        taken = await self._take(request, plan, record)
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
        choice = planner.choose(
            cluster, start, record.context, question_of(request), text if turns > 1 else None
        )
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
        exploring = choice.exploring
        if exploring is not None and exploring.drawn:
            one = ComparedChat(request, plan, choice, exploring, context, uuid4().hex, now)
            # Where a cheaper tier or a fallback answered, the reference is asked apart.
            is_reference = candidate is None and choice.serving is None
            self._auditor.explore(one, text if is_reference else None)


def _candidate(choice: TierChoice, model: str) -> TierCandidate | None:
    """Return the tier that answered in the reference's place; None where none did."""
    serving = choice.serving
    return serving if serving is not None and serving.rung.model == model else None


def _reason(candidate: TierCandidate | None, reason: Any) -> Any:
    return "out_of_scope" if candidate is None and reason == "earned_tier" else reason


def _under(served: Served, candidate: TierCandidate | None) -> Served:
    if candidate is None:
        return replace(served, reason=_reason(candidate, served.reason))
    return replace(served, claim=candidate.ruling.name, evidence="traffic")


def _details(choice: TierChoice, candidate: TierCandidate | None) -> dict[str, Any]:
    guarantee: Guarantee = NO_GUARANTEE
    tier = choice.start.tier
    if candidate is not None:
        guarantee, tier = candidate.ruling.standing.guarantee, candidate.rung.tier
    found: dict[str, Any] = {"cluster": choice.topic, "tier": tier}
    if candidate is not None:
        found["guarantee"] = guarantee.model_dump(mode="json")
    return {"tier": found}
