"""Compares served answers with the reference's, behind the requests."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.contracts.answer import Answer, TaskRequest, Value
from serving.contracts.context import RequestContext
from serving.contracts.errors import (
    DeadlineExceeded,
    NarrowgateError,
    TaskNotAttested,
)
from serving.contracts.evidence import AWAITED, BASELINE_PREFIX, PEOPLE, Audit, Origin, Verdict
from serving.contracts.requests import TaskBatch
from serving.contracts.task_spec import ClassificationSpec
from serving.evidence.appender import EvidenceAppender
from serving.evidence.candidates import LocalView, judged, label_of
from serving.evidence.heads.example_store import Source
from serving.evidence.heads.service import LabelledInput
from serving.evidence.kept_texts import KeptText, Proposed
from serving.evidence.rulings import Evidence, Ruling
from serving.pipeline.audit_work import OF_THE_INPUT, AuditWork, Drawn, loss_and_verdict
from serving.pipeline.deferred_audits import DeferredAudits, Keep, Learn
from serving.pipeline.exit_recorder import ExitRecorder, Outcome, RequestRecord
from serving.pipeline.plan import FrontierPlan, TaskPlan
from serving.pipeline.runner import BoundTask, Runner

logger = logging.getLogger(__name__)

Embed = Callable[[str], Awaitable[NDArray[np.float32]]]


@dataclass(frozen=True, slots=True)
class Observed:
    """One input of a request, as it was drawn at acceptance, before its answer was known.

    coin: whether the coin chose it. input: its name, drawn at random. is_affordable: the day's
    budget had room for an audit. baseline_coin: whether the baseline's own coin chose it.
    """

    request: TaskRequest
    context: RequestContext
    plan: TaskPlan
    ruling: Ruling
    coin: bool
    input: str
    drawn_at: datetime
    is_affordable: bool
    baseline_coin: bool = False

    @property
    def drawn(self) -> Drawn:
        """Return what its row says."""
        probability = self.ruling.rate if self.coin else None
        return Drawn(
            self.ruling, self.context, self.input, self.request.text, probability, self.drawn_at
        )


@dataclass(frozen=True, slots=True)
class AuditRunners:
    """What answers audited inputs.

    local: runs tasks on their local models. frontier_task: on a frontier model. baseline: on the
    16-bit model, None where none is configured.
    """

    local: Runner[TaskBatch, TaskPlan]
    frontier_task: Runner[TaskBatch, FrontierPlan]
    baseline: Runner[TaskBatch, TaskPlan] | None = None


class Auditor(AuditWork):
    """Runs audits with their own concurrency, deadline and queue. One for a process.

    embed: returns a text's vector, None without one.
    learn: stores an input with the reference's answer, from which heads learn; None where none do.
    keep: keeps the text of an audited input for people to label; None where none are kept.
    deferred: makes audits of accepted answers that wait for the reference's batch API; None where
    each is asked at once.
    """

    def __init__(
        self,
        evidence: Evidence,
        appender: EvidenceAppender,
        recorder: ExitRecorder,
        tasks: Mapping[str, BoundTask],
        runners: AuditRunners,
        embed: Embed | None = None,
        learn: Learn | None = None,
        keep: Keep | None = None,
        deferred: DeferredAudits | None = None,
    ) -> None:
        super().__init__(evidence, appender, recorder, "evidence.audit_failed")
        self._tasks = tasks
        self._runners = runners
        self._embed = embed
        self._learn = learn
        self._keep = keep
        self._deferred = deferred

    def learns(self, bound: BoundTask) -> bool:
        """Return whether a head may earn the claim of a task that no local model may answer."""
        refusal, spec = bound.grant.refusal, bound.task.spec
        is_ungated = isinstance(refusal, TaskNotAttested)
        return self._learn is not None and is_ungated and spec.kind == "classification"

    def shadowed(self, one: Observed, reference: Outcome, cost_usd: Decimal | None) -> None:
        """Compare the local candidates with the reference's answer, which the client got."""
        right = self._readable(one, reference)
        if right is not None:
            self._begin(one, "shadow", self._shadow(one, right, cost_usd))

    def accepted(self, one: Observed, answer: Answer, local: Answer | None) -> None:
        """Ask the reference about a local answer that the client got, where the coin chose it."""
        origin: Origin = "escalated" if answer.below_threshold else "accepted"
        if origin == "accepted":
            self.evidence.counts.accepted[one.ruling.name] += 1
        self._compare(one, local or answer)
        if not one.coin or one.ruling.reference is None:
            return
        if one.ruling.reference == PEOPLE:
            self._begin(one, origin, self._await_label(one, origin, answer, local), is_drawn=False)
            return
        is_free = one.ruling.reference.startswith(BASELINE_PREFIX)
        if not one.is_affordable and not is_free:
            self._drop(one, origin)
            return
        if self._deferred is None or is_free:
            self._begin(one, origin, self._ask(one, origin, answer, local))
        else:
            work = self._defer(self._deferred, one, origin, answer, local)
            self._begin(one, origin, work)

    def escalated(self, one: Observed, local: Answer | None, reference: Outcome) -> None:
        """Compare a local answer that was set aside with the reference's, which the client got."""
        right = self._readable(one, reference)
        if right is None:
            return
        if not one.is_affordable:
            # Accepted inputs are not audited now: a sample of escalated ones only would be biased.
            one = replace(one, coin=False)
        self._begin(one, "escalated", self._judge(one, "escalated", None, local, right, None))
        if local is not None:
            self._compare(one, local)

    def _compare(self, one: Observed, local: Answer) -> None:
        """Compare a local model's answer with the 16-bit baseline's, where its coin chose it."""
        by_baseline = one.ruling.baseline
        if not one.baseline_coin or by_baseline is None or self._runners.baseline is None:
            return
        # Under the baseline's claim the input is one more example, whoever answered the client.
        other = replace(
            one,
            ruling=replace(
                one.ruling,
                standing=replace(one.ruling.standing, action=None),
                name=by_baseline.claim,
                reference=by_baseline.reference,
                rate=by_baseline.rate,
            ),
            coin=True,
        )
        self._begin(other, "shadow", self._ask(other, "shadow", None, local))

    def _readable(self, one: Observed, reference: Outcome) -> "Value | _NoVerdict | None":
        """Return what the reference's answer says; None, counted, if it is not evidence."""
        right = _right(reference, one.ruling.reference)
        if isinstance(right, _NoVerdict) and right.verdict == "dropped":
            self.evidence.counts.unread[one.ruling.name] += 1
            return None
        return right

    def _begin(
        self,
        one: Observed,
        origin: Origin,
        work: Coroutine[Any, Any, None],
        *,
        is_drawn: bool = True,
    ) -> None:
        if not self._start(work):
            self._drop(one, origin)
        elif is_drawn:
            self._draw(one.drawn, origin)

    def _drop(self, one: Observed, origin: Origin, cost_usd: Decimal | None = None) -> None:
        self._append_drop(one.drawn, origin, cost_usd)

    async def _shadow(
        self, one: Observed, right: "Value | _NoVerdict", cost_usd: Decimal | None
    ) -> None:
        local: Answer | None = None
        if self._tasks[one.request.task].grant.refusal is None:
            outcome = await self._run(self._runners.local, one)
            local = outcome.content if isinstance(outcome.content, Answer) else None
        if local is not None:
            self._compare(one, local)
        await self._judge(one, "shadow", None, local, right, cost_usd)

    async def _ask(
        self, one: Observed, origin: Origin, served: Answer | None, local: Answer | None
    ) -> None:
        reference = one.ruling.reference
        assert reference is not None
        baseline = self._runners.baseline
        if baseline is not None and reference.startswith(BASELINE_PREFIX):
            outcome = await self._run(baseline, one)
        else:
            outcome = await self._run_reference(one, reference)
        right = _right(outcome, reference)
        if isinstance(right, _NoVerdict) and right.verdict == "dropped":
            self._drop(one, origin, outcome.cost_usd)
            return
        await self._judge(one, origin, served, local, right, outcome.cost_usd)

    async def _defer(
        self,
        deferred: DeferredAudits,
        one: Observed,
        origin: Origin,
        served: Answer,
        local: Answer | None,
    ) -> None:
        """Let an input wait for the reference's batch."""
        view = LocalView(local, await self._vector(one.request.text), len(one.request.text))
        row = self._row(one.drawn, origin, "dropped", None)
        try:
            found = deferred.pending(row, one.context, served, view, one.request)
        except NarrowgateError as error:
            logger.warning("evidence.not_deferred error=%s", error.code)
            self._drop(one, origin)
            return
        accepted = self.evidence.counts.take_accepted(row.claim)
        self._appender.defer(replace(found, audit=replace(row, accepted=accepted)))

    async def _run(self, runner: Runner[TaskBatch, TaskPlan], one: Observed) -> Outcome:
        """Return the outcome of an input on a local model, in the ledger as an audit."""
        context = self._context(one.context)
        plan = replace(
            one.plan,
            batch=TaskBatch(one.request.task, (one.request,)),
            local=True,
            deadline=context.deadline,
            reason="audit",
            decision=None,
            standing=None,
        )
        return await self._recorded(context, plan, lambda record: runner.whole(
            plan.batch, plan, record
        ))  # fmt: skip

    async def _run_reference(self, one: Observed, reference: str) -> Outcome:
        """Return the reference model's answer to an input, asked with the spec."""
        context = self._context(one.context)
        batch = TaskBatch(one.request.task, (one.request,))
        fallback = replace(
            one.plan.fallback,
            targets=(reference,),
            deadline=context.deadline,
            reason="audit",
            decision=None,
        )
        plan = replace(one.plan, batch=batch, reason="audit", fallback=fallback)
        return await self._recorded(context, plan, lambda record: self._runners.frontier_task.whole(
            batch, fallback, record
        ))  # fmt: skip

    async def _recorded(
        self,
        context: RequestContext,
        plan: TaskPlan,
        run: Callable[[RequestRecord], Awaitable[list[Outcome]]],
    ) -> Outcome:
        # An answer without a verdict may have been paid for: the budget counts it.
        costs: list[Decimal | None] = [None]
        try:
            async with asyncio.timeout(self.evidence.settings.deadline_s):
                async with self._recorder.open(context, "audit") as record:
                    record.planned(plan)
                    record.inputs[0].closed = costs.append
                    (outcome,) = await record.finish(await run(record))
                    return outcome
        except NarrowgateError as error:
            return Outcome(error, cost_usd=costs[-1])
        except TimeoutError:
            late = DeadlineExceeded("the audit took longer than evidence.deadline_s")
            return Outcome(late, cost_usd=costs[-1])

    async def _judge(
        self,
        one: Observed,
        origin: Origin,
        served: Answer | None,
        local: Answer | None,
        right: "Value | _NoVerdict",
        cost_usd: Decimal | None,
    ) -> None:
        """Append the verdict on an input. served: the local answer that the client got."""
        spec = self._tasks[one.request.task].task.spec
        vector = await self._vector(one.request.text)
        view = LocalView(local, vector, len(one.request.text))
        value = None if isinstance(right, _NoVerdict) else right
        candidates = judged(spec, self.evidence.candidates(one.ruling.name), view, value)
        if self._learn is not None and value is not None:
            context = one.context
            source = Source(
                context.caller.tenant, context.request_id, one.request.text,
                context.options.end_user, drawn_at=one.drawn.drawn_at,
            )  # fmt: skip
            scope = self.evidence.scope(one.ruling.name)
            await self._learn(LabelledInput(scope, spec, source, view, value))
        loss, verdict = loss_and_verdict(spec, served or local, value)
        row = self._row(one.drawn, origin, verdict, loss)
        shown = served or local
        row = replace(
            row,
            candidates=candidates,
            served=label_of(spec, None if shown is None else shown.value),
            label=label_of(spec, value),
            cost_usd=cost_usd,
            judged_at=self.evidence.now(),
        )
        self._append(row)
        if value is not None and shown is not None and one.coin:
            await self._keep_text(one, row, ())

    async def _await_label(
        self, one: Observed, origin: Origin, served: Answer, local: Answer | None
    ) -> None:
        """Keep an input for people, whose label is its verdict."""
        spec = self._tasks[one.request.task].task.spec
        view = LocalView(local, await self._vector(one.request.text), len(one.request.text))
        proposed = []
        for candidate in self.evidence.candidates(one.ruling.name):
            found = candidate.propose(view)
            if found is not None:
                value = str(found.value)
                proposed.append(Proposed(candidate.name, found.confidence, value, found.valid))
        row = replace(
            self._row(one.drawn, origin, "missing", None), served=label_of(spec, served.value)
        )
        if origin == "accepted" and row.hypothesis:
            # A claim must end where these stay without a label.
            self._append(replace(row, input=f"{row.input}{AWAITED}", verdict="awaited"))
        else:
            row = replace(row, accepted=self.evidence.counts.take_accepted(row.claim))
        await self._keep_text(one, row, tuple(proposed))

    async def _keep_text(self, one: Observed, row: Audit, proposed: tuple[Proposed, ...]) -> None:
        spec = self._tasks[one.request.task].task.spec
        is_kept = one.context.options.audit != "never"
        if self._keep is None or not is_kept or not isinstance(spec, ClassificationSpec):
            return
        labels = tuple(label.name for label in spec.labels)
        await self._keep(KeptText(row, one.request.text, labels, proposed))

    async def _vector(self, text: str) -> NDArray[np.float32] | None:
        if self._embed is None:
            return None
        try:
            return await self._embed(text)
        except NarrowgateError as error:
            logger.warning("evidence.no_vector error=%s", error.code)
            return None


@dataclass(frozen=True, slots=True)
class _NoVerdict:
    verdict: Verdict


def _right(outcome: Outcome, reference: str | None) -> "Value | _NoVerdict":
    """Return the reference's answer, or why there is none that counts."""
    content = outcome.content
    if isinstance(content, OF_THE_INPUT):
        return _NoVerdict("missing")
    if not isinstance(content, Answer) or outcome.served is None:
        return _NoVerdict("dropped")
    # The answer of a fallback model is not a reference.
    model = content.model if content.route == "frontier" else BASELINE_PREFIX + content.model
    if model != reference:
        return _NoVerdict("dropped")
    return content.value if content.valid else _NoVerdict("missing")
