"""Runs tasks under their claims, as the table of states allows; draws audits before answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any
from uuid import uuid4

from serving.contracts.answer import Answer, TaskRequest
from serving.contracts.context import RequestContext
from serving.contracts.errors import (
    ClaimWithdrawn,
    FrontierInvalidResponse,
    FrontierUnavailable,
    LedgerUnavailable,
)
from serving.contracts.exits import NO_MODEL
from serving.contracts.requests import Request, TaskBatch
from serving.contracts.routing import Reason
from serving.evidence.candidates import label_of
from serving.evidence.pacing import coin
from serving.evidence.rulings import Ruling
from serving.evidence.standing import Standing
from serving.pipeline.after_reference import (
    answered_without_claim,
    is_reference_failure,
    note_failed,
    until_content,
)
from serving.pipeline.auditor import Auditor, Observed
from serving.pipeline.claimed_reading import answered_by_reference
from serving.pipeline.exit_recorder import Outcome, OutcomeStream, RequestRecord
from serving.pipeline.plan import TaskPlan
from serving.pipeline.runner import BoundTask, Runner
from serving.tasks.frontier_answer import read_frontier

_OF_THE_READING = ("shadow", "withdrawn")
"""Reasons for which a chat went to the reference although the task's own claim is held."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """A request under its claim."""

    plan: TaskPlan
    ruling: Ruling
    observed: tuple[Observed, ...]


class Claimed:
    """Implements Runner for tasks. runner: the one that may escalate. tasks: by name."""

    def __init__(
        self, runner: Runner[Any, TaskPlan], tasks: Mapping[str, BoundTask], auditor: Auditor
    ) -> None:
        self._runner = runner
        self._tasks = tasks
        self._auditor = auditor

    async def whole(self, request: Request, plan: TaskPlan, record: RequestRecord) -> list[Outcome]:
        """Return the outcomes of the other runner. Raises its errors and ClaimWithdrawn."""
        taken = self._take(plan, record)
        if taken is None:
            return await self._runner.whole(request, plan, record)
        outcomes = await self._runner.whole(request, taken.plan, record)
        if taken.ruling.standing.mode == "shadow":
            self._shadowed(taken, record, outcomes)
            return [
                await self._without_reference(request, taken, record, index, outcome)
                for index, outcome in enumerate(outcomes)
            ]
        self._served(taken, record, outcomes)
        return outcomes

    async def stream(
        self, request: Request, plan: TaskPlan, record: RequestRecord
    ) -> Outcome | OutcomeStream:
        """As `whole`, for the only input. A streamed answer in free form is not evidence."""
        taken = self._take(plan, record)
        if taken is None:
            return await self._runner.stream(request, plan, record)
        outcome = await self._runner.stream(request, taken.plan, record)
        if taken.ruling.standing.mode == "shadow" and self._has_local(taken):
            outcome = await until_content(outcome, record)
        if isinstance(outcome, OutcomeStream):
            self._auditor.evidence.counts.unread[taken.ruling.name] += 1
            return outcome
        if taken.ruling.standing.mode == "shadow":
            self._shadowed(taken, record, [outcome])
            return await self._without_reference(request, taken, record, 0, outcome)
        self._served(taken, record, [outcome])
        return outcome

    def cached(self, plan: TaskPlan, answer: Answer, context: RequestContext) -> None:
        """Make evidence of a cached answer to the plan's only input, where the coin draws it.

        The claim under which it was made answers the input again: it is watched as any other.
        """
        evidence = self._auditor.evidence
        bound, (one,) = self._tasks[plan.batch.task], plan.batch.requests
        model = bound.engine.model_id if bound.grant.refusal is None else NO_MODEL
        shortcut = evidence.local_task(bound.task.spec, model, bound.grant)
        try:
            ruling = evidence.ruling(shortcut, context)
        except LedgerUnavailable:
            return
        if ruling.standing.mode != "claim":
            return
        observed = Observed(
            one, context, plan, ruling, coin(ruling.rate), uuid4().hex, evidence.now(),
            evidence.is_affordable(),
        )  # fmt: skip
        self._auditor.accepted(observed, answer, None)

    def _take(self, plan: TaskPlan, record: RequestRecord) -> _Taken | None:
        """Return the request under its claim; None where only the attested threshold decides."""
        evidence, context = self._auditor.evidence, record.context
        options = context.options
        if not evidence.settings.enabled or options.deterministic:
            return None
        if options.route == "frontier_only":
            return None
        bound = self._tasks[plan.batch.task]
        has_model = bound.grant.refusal is None
        may_learn = self._auditor.learns(bound) and "not_attested" in plan.escalate_on
        if not has_model and not may_learn:
            # No local answer to compare: the model is being prepared, or did not pass its gate.
            return None
        model = bound.engine.model_id if has_model else NO_MODEL
        ruling = evidence.ruling(evidence.local_task(bound.task.spec, model, bound.grant), context)
        if not has_model:
            ruling = self._without_model(ruling)
            if ruling.standing.mode not in ("shadow", "claim", "reference"):
                return None
        if ruling.standing.mode == "refused":
            raise ClaimWithdrawn(
                f"the claim {ruling.name} on task {plan.batch.task!r} was withdrawn",
                field="task",
                fix="send route: auto where a reference is configured, or gate the model again",
            )
        now, is_affordable = evidence.now(), evidence.is_affordable()
        beside = 0.0 if ruling.baseline is None else ruling.baseline.rate
        observed = tuple(
            Observed(
                one, context, plan, ruling, coin(ruling.rate), uuid4().hex, now, is_affordable,
                coin(beside),
            )
            for one in plan.batch.requests
        )  # fmt: skip
        return _Taken(
            _planned(plan, ruling.standing, evidence.reference, has_model=has_model),
            ruling,
            observed,
        )

    def _without_model(self, ruling: Ruling) -> Ruling:
        """Return the ruling; the reference answers where the claimed head is not loaded here."""
        standing = ruling.standing
        action = standing.action
        if standing.mode != "claim" or action is None:
            return ruling
        if self._auditor.evidence.candidate(ruling.name, action.candidate) is not None:
            return ruling
        return replace(ruling, standing=replace(standing, mode="reference", action=None))

    def _shadowed(self, taken: _Taken, record: RequestRecord, outcomes: list[Outcome]) -> None:
        """Make evidence of the reference's answers, once their costs are known."""
        for item, one, outcome in zip(record.inputs, taken.observed, outcomes, strict=True):
            if not one.coin:
                continue
            read = self._read(one.request, outcome)

            def judge(
                cost_usd: Decimal,
                one: Observed = one,
                read: Outcome = read,
                before: Callable[[Decimal], None] | None = item.closed,
            ) -> None:
                if before is not None:
                    before(cost_usd)
                self._auditor.shadowed(one, read, cost_usd)

            item.closed = judge

    def _read(self, request: TaskRequest, outcome: Outcome) -> Outcome:
        """Return an answer to the client's own messages as the task's, where it reads as one."""
        content, served = outcome.content, outcome.served
        if not isinstance(content, dict) or served is None or served.usage is None:
            return outcome
        message = content["choices"][0]
        text = message.get("message", {}).get("content")
        try:
            reading = read_frontier(
                self._tasks[request.task].task, request, text if isinstance(text, str) else "",
                str(message.get("finish_reason")),
            )  # fmt: skip
        except FrontierInvalidResponse:
            # The client asked in its own words: an answer that is not a label is not evidence.
            return Outcome(FrontierUnavailable("no label was read"))
        answer = Answer(
            task=request.task, value=reading.value, label_probabilities=None, confidence=None,
            valid=reading.valid, notes=(), route="frontier", reason=served.reason,
            model=served.model, usage=served.usage, request_id="",
        )  # fmt: skip
        return replace(outcome, content=answer)

    async def _without_reference(
        self, request: Request, taken: _Taken, record: RequestRecord, index: int, outcome: Outcome
    ) -> Outcome:
        """Return the local answer where the reference failed and the settings allow that."""
        if not is_reference_failure(outcome) or not self._has_local(taken):
            return outcome
        one, only = taken.observed[index], record.only(index)
        note_failed(outcome, only)
        batch = TaskBatch(one.request.task, (one.request,))
        local = answered_without_claim(replace(taken.plan, batch=batch), taken.ruling.standing)
        (found,) = await self._runner.whole(local.batch, local, only)
        return found

    def _has_local(self, taken: _Taken) -> bool:
        """Return whether a local model may answer where the reference fails."""
        settings, task = self._auditor.evidence.settings, taken.plan.batch.task
        return settings.when_reference_fails == "local" and self._tasks[task].grant.refusal is None

    def _served(self, taken: _Taken, record: RequestRecord, outcomes: list[Outcome]) -> None:
        """Make evidence of local answers, by the coin, and of those that were set aside."""
        standing, spec = taken.ruling.standing, self._tasks[taken.plan.batch.task].task.spec
        if standing.claim is None:
            return
        for item, one, outcome in zip(record.inputs, taken.observed, outcomes, strict=True):
            content = outcome.content
            if item.reason in _OF_THE_READING:
                # The task's claim did not decide: it says nothing about its inputs.
                continue
            if standing.mode == "claim":
                accepted = None
                if isinstance(content, Answer) and content.below_threshold is False:
                    accepted = label_of(spec, content.value) or ""
                self._auditor.evidence.drift.observe(
                    standing.claim, standing.hypothesis, accepted, item.vector
                )
            if isinstance(content, Answer) and content.route == "local":
                self._auditor.accepted(one, content, item.local_answer)
            elif item.reason == "below_threshold":
                read = self._read(one.request, outcome)
                self._auditor.escalated(one, item.local_answer, read)


def _planned(
    plan: TaskPlan, standing: Standing, reference: str | None, *, has_model: bool
) -> TaskPlan:
    """Return a plan as its standing lets it run. has_model: a local model may answer the task."""
    if standing.mode not in ("shadow", "reference"):
        return replace(plan, standing=standing)
    reason: Reason = "shadow" if has_model else "not_attested"
    if standing.state == "withdrawn":
        reason = "withdrawn"
    return replace(answered_by_reference(plan, reference, reason), standing=standing)
