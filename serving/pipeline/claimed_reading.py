"""Runs chats that were read as a task under the claim on that reading."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any
from uuid import uuid4

from serving.contracts.answer import Answer
from serving.contracts.errors import ClaimWithdrawn
from serving.contracts.evidence import ClaimState, Guarantee, ReadingError
from serving.contracts.requests import ChatRequest, Request
from serving.contracts.routing import Reason
from serving.evidence.pacing import coin
from serving.evidence.standing import Standing
from serving.pipeline.after_reference import (
    answered_without_claim,
    is_reference_failure,
    note_failed,
    until_content,
)
from serving.pipeline.compared_text import FollowedEvents, answer_text, question_of
from serving.pipeline.exit_recorder import Outcome, OutcomeStream, RequestRecord
from serving.pipeline.plan import TaskPlan
from serving.pipeline.reading_auditor import ReadChat, ReadingAuditor
from serving.pipeline.runner import Runner


@dataclass(frozen=True, slots=True)
class _Read:
    """A chat and the plan that its claim allows."""

    chat: ReadChat
    plan: TaskPlan

    @property
    def standing(self) -> Standing:
        """Return how the chat is served under the claim on its reading."""
        return self.chat.ruling.standing


class ClaimedReading:
    """Implements Runner for tasks. runner: the one that may escalate. Other requests pass."""

    def __init__(self, runner: Runner[Any, TaskPlan], auditor: ReadingAuditor) -> None:
        self._runner = runner
        self._auditor = auditor

    async def whole(self, request: Request, plan: TaskPlan, record: RequestRecord) -> list[Outcome]:
        """Return the outcomes of the other runner. Raises its errors and ClaimWithdrawn."""
        read = self._read(request, plan, record)
        if read is None:
            return await self._runner.whole(request, plan, record)
        (outcome,) = await self._runner.whole(request, read.plan, record)
        if self._has_local(read) and is_reference_failure(outcome):
            return [await self._without_reference(read, outcome, record)]
        return [self._answered(read, outcome, record)]

    async def stream(
        self, request: Request, plan: TaskPlan, record: RequestRecord
    ) -> Outcome | OutcomeStream:
        """As `whole`; a streamed answer of the reference is evidence once it has ended.

        Until its first content has arrived, the local model may still answer in its place.
        """
        read = self._read(request, plan, record)
        if read is None:
            return await self._runner.stream(request, plan, record)
        outcome = await self._runner.stream(request, read.plan, record)
        if self._has_local(read):
            outcome = await until_content(outcome, record)
        if isinstance(outcome, Outcome):
            if self._has_local(read) and is_reference_failure(outcome):
                return await self._without_reference(read, outcome, record)
            return self._answered(read, outcome, record)
        if not self._is_evidence(read, outcome.model):
            return outcome
        ended = self._when_closed(read, record)
        return replace(outcome, events=FollowedEvents(outcome.events, None, ended))

    def _read(self, request: Request, plan: TaskPlan, record: RequestRecord) -> _Read | None:
        """Return a chat under its claim; None where none was read, or only thresholds decide."""
        if plan.decision is None or plan.standing is None or not isinstance(request, ChatRequest):
            return None
        context, auditor = record.context, self._auditor
        ruling = auditor.claims.ruling(plan.batch.task, context)
        chat = ReadChat(
            request, plan, ruling, context, coin(ruling.rate), uuid4().hex, auditor.evidence.now()
        )
        return _Read(chat, self._allowed(chat))

    def _allowed(self, chat: ReadChat) -> TaskPlan:
        """Return the chat's plan, as its standing lets it run. Raises ClaimWithdrawn."""
        plan, ruling, evidence = chat.plan, chat.ruling, self._auditor.evidence
        if not plan.local:
            return plan
        match ruling.standing.mode:
            case "claim":
                question = question_of(chat.request)
                if evidence.always_escalates(ruling.name, question):
                    return answered_by_reference(plan, evidence.reference, "shadow")
                return plan
            case "suite":
                # No reference may get the chat for evidence, as with an input of the task.
                return plan
            case "uncovered":
                assert plan.standing is not None
                return replace(plan, standing=replace(plan.standing, mode="uncovered"))
            case "refused":
                raise ClaimWithdrawn(
                    f"the claim {ruling.name} on reading chats as task {plan.batch.task!r} was "
                    "withdrawn",
                    field="model",
                    fix=f"send model: task/{plan.batch.task}",
                )
            case "shadow" | "reference":
                is_withdrawn = ruling.standing.state is ClaimState.WITHDRAWN
                reason: Reason = "withdrawn" if is_withdrawn else "shadow"
                return answered_by_reference(plan, evidence.reference, reason)

    def _has_local(self, read: _Read) -> bool:
        """Return whether the local model may answer where the reference fails.

        Only where this claim sent the chat to the reference; Claimed decides the same for its own.
        """
        is_moved = read.chat.plan.local and not read.plan.local
        return is_moved and self._auditor.evidence.settings.when_reference_fails == "local"

    async def _without_reference(
        self, read: _Read, outcome: Outcome, record: RequestRecord
    ) -> Outcome:
        """Return the local answer. outcome: the reference's error."""
        note_failed(outcome, record)
        local = answered_without_claim(read.chat.plan, read.standing)
        (found,) = await self._runner.whole(local.batch, local, record)
        return found

    def _is_evidence(self, read: _Read, model: str | None) -> bool:
        """Return whether an answer to the client's messages is the reference's, in shadow."""
        reference = read.chat.ruling.reference
        return read.standing.mode == "shadow" and reference is not None and model == reference

    def _answered(self, read: _Read, outcome: Outcome, record: RequestRecord) -> Outcome:
        content, served = outcome.content, outcome.served
        if isinstance(content, Answer):
            if read.standing.mode != "claim" or content.route != "local":
                return outcome
            self._auditor.served(read.chat, content)
            guarantee = _with_reading(content.guarantee, read.standing.guarantee)
            return replace(outcome, content=content.model_copy(update={"guarantee": guarantee}))
        model = None if served is None else served.model
        if isinstance(content, dict) and self._is_evidence(read, model):
            self._when_closed(read, record)(answer_text(content))
        return outcome

    def _when_closed(self, read: _Read, record: RequestRecord) -> Callable[[str], None]:
        """Return what takes the client's answer, which is evidence once its cost is known."""
        (item,) = record.inputs
        texts: list[str] = []

        def closed(cost_usd: Decimal) -> None:
            # A stream that broke, or that its client left, has no text.
            for text in texts:
                self._auditor.shadowed(read.chat, text, cost_usd)

        item.closed = closed
        return texts.append


def answered_by_reference(plan: TaskPlan, reference: str | None, reason: Reason) -> TaskPlan:
    """Return a plan with which the reference answers first. reason: why no local model does."""
    others = tuple(target for target in plan.fallback.targets if target != reference)
    targets = plan.fallback.targets if reference is None else (reference, *others)
    fallback = replace(plan.fallback, targets=targets, reason=reason)
    return replace(plan, local=False, fallback=fallback)


def _with_reading(guarantee: Guarantee, reading: Guarantee) -> Guarantee:
    """Return the guarantee of a task's answer, with that of reading the chat as the task."""
    if guarantee.evidence != "traffic" or guarantee.target_error is None:
        return guarantee
    assert reading.claim is not None
    assert reading.target_error is not None
    error = ReadingError(
        claim=reading.claim, target_error=reading.target_error,
        observed_error=reading.observed_error, interval=reading.interval, audits=reading.audits,
    )  # fmt: skip
    total = round(guarantee.target_error + reading.target_error, 6)
    return guarantee.model_copy(update={"target_error": total, "reading": error})
