"""Audits that wait for a provider's batch: the call of the reference, and what its answer says."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from serving.contracts.answer import Answer, Usage, Value
from serving.contracts.context import RequestContext
from serving.contracts.deadline import Deadline
from serving.contracts.errors import FrontierInvalidResponse, NarrowgateError, NotFound
from serving.contracts.evidence import Audit, Candidate
from serving.contracts.frontier import Completion, FrontierCall, OutputBounds
from serving.contracts.ledger import Caller, Ledger
from serving.contracts.task_spec import ClassificationSpec
from serving.evidence.candidates import LocalView, label_of
from serving.evidence.heads.example_store import Source
from serving.evidence.heads.service import LabelledInput
from serving.evidence.kept_texts import KeptText
from serving.evidence.pending_audits import PendingAudit, ProposedValue
from serving.evidence.rulings import Evidence
from serving.pipeline.audit_work import OF_THE_INPUT, loss_and_verdict
from serving.pipeline.runner import BoundTask
from serving.tasks.frontier_answer import read_frontier
from serving.tasks.frontier_prompt import frontier_prompt
from serving.tasks.loss import loss_of
from serving.tasks.task import Task

logger = logging.getLogger(__name__)

Learn = Callable[[LabelledInput], Awaitable[None]]
Keep = Callable[[KeptText], Awaitable[None]]

_PREPARE_S = 60.0
_NO_USAGE = Usage(uncached_input_tokens=0, output_tokens=0)


@dataclass(frozen=True, slots=True)
class DeferredVerdict:
    """What the reference's answer says of a pending audit. value: None where it says nothing."""

    pending: PendingAudit
    audit: Audit
    value: Value | None


class DeferredAudits:
    """Makes pending audits of drawn inputs, and verdicts of the reference's answers to them.

    tasks: by name. ledger: makes entries; none is written before a line is sent. worst_usd: of a
    call in its provider's batch. learn, keep: as the Auditor's.
    """

    def __init__(
        self,
        evidence: Evidence,
        tasks: Mapping[str, BoundTask],
        ledger: Ledger,
        worst_usd: Callable[[FrontierCall], Decimal],
        learn: Learn | None = None,
        keep: Keep | None = None,
    ) -> None:
        self._evidence = evidence
        self._tasks = tasks
        self._ledger = ledger
        self._worst_usd = worst_usd
        self._learn = learn
        self._keep = keep

    def pending(
        self, audit: Audit, context: RequestContext, served: Answer, view: LocalView, one: Any
    ) -> PendingAudit:
        """Return a drawn input that waits. audit: its row, without a verdict. one: the TaskRequest.

        Raises what preparing its call raises, as Frontier.complete does.
        """
        task = self._tasks[one.task].task
        proposed = []
        for candidate in self._evidence.candidates(audit.claim):
            found = candidate.propose(view)
            if found is not None:
                proposed.append(
                    ProposedValue(candidate.name, found.confidence, found.value, found.valid)
                )
        pending = PendingAudit(
            audit, one, task.spec.digest(), served, view.answer, view.vector, tuple(proposed),
            context.caller.key_id, Decimal(0),
        )  # fmt: skip
        call = self.call(pending, context.caller, context.request_id)
        return replace(pending, worst_usd=self._worst_usd(call))

    def call(self, one: PendingAudit, caller: Caller, request_id: str) -> FrontierCall:
        """Return the call that asks the reference. Raises InvalidRequest, NotFound."""
        task = self._task(one)
        if task is None:
            raise NotFound("the task has changed since the input was drawn")
        prompt = frontier_prompt(task, one.request)
        return FrontierCall(
            body=prompt.body,
            targets=(one.audit.reference,),
            bounds=OutputBounds(prompt.max_tokens, thinking=False),
            deadline=Deadline.after(_PREPARE_S),
            request_id=request_id,
            entry=self._ledger.entry(caller, request_id, "audit", one.request.task, 0),
            purpose=one.request.task,
        )

    def may_send(self, one: PendingAudit) -> bool:
        """Return whether the input may still go to the reference, and its answer be read.

        Raises LedgerUnavailable where tenants are unknown.
        """
        is_allowed = self._evidence.may_still_send(one.audit.tenant, one.audit.reference)
        return is_allowed and self._task(one) is not None

    def verdict(
        self,
        one: PendingAudit,
        content: Mapping[str, Any] | NarrowgateError | None,
        cost_usd: Decimal | None,
    ) -> DeferredVerdict:
        """Return what an answer, an error, or the lack of both says.

        content: an OpenAI chat completion of the reference. cost_usd: of its call.
        """
        task = self._task(one)
        row = replace(one.audit, cost_usd=cost_usd, judged_at=self._evidence.now())
        value = None
        if task is not None and isinstance(content, Mapping):
            value = _read(task, one, content)
        elif task is None or not isinstance(content, OF_THE_INPUT):
            return DeferredVerdict(one, replace(row, verdict="dropped"), None)
        spec = task.spec
        loss, verdict = loss_and_verdict(spec, one.served, value)
        candidates = tuple(
            Candidate(
                p.name, p.confidence,
                1.0 if value is None else loss_of(spec, p.value, value, valid=p.valid),
                label_of(spec, p.value),
            )
            for p in one.proposed
        )  # fmt: skip
        judged = replace(
            row, verdict=verdict, loss=loss, candidates=candidates,
            served=label_of(spec, one.served.value), label=label_of(spec, value),
        )  # fmt: skip
        return DeferredVerdict(one, judged, value)

    async def settled(self, found: DeferredVerdict) -> None:
        """Learn from an input whose verdict was written, and keep its text for people."""
        one, value, task = found.pending, found.value, self._task(found.pending)
        if found.audit.verdict == "dropped":
            self._evidence.counts.dropped[found.audit.claim] += 1
        if value is None or task is None:
            return
        spec, audit = task.spec, found.audit
        claim = self._evidence.snapshot.find(audit.claim)
        if self._learn is not None and claim is not None:
            text = one.request.text
            source = Source(
                audit.tenant, audit.request_id, text, audit.end_user, drawn_at=audit.drawn_at
            )
            view = LocalView(one.local, one.vector, len(text))
            await self._learn(LabelledInput(claim.scope, spec, source, view, value))
        if self._keep is not None and isinstance(spec, ClassificationSpec):
            await self._keep(KeptText(audit, one.request.text, _labels(spec)))

    def _task(self, one: PendingAudit) -> Task | None:
        """Return the task as it was when the input was drawn; None where it is another one now."""
        bound = self._tasks.get(one.request.task)
        if bound is None or bound.task.spec.digest() != one.spec:
            return None
        return bound.task


def _read(task: Task, one: PendingAudit, document: Mapping[str, Any]) -> Value | None:
    """Return the reference's answer; None where it is no answer to the task."""
    text = Completion(dict(document), one.audit.reference, _NO_USAGE).text
    finish_reason = str(document["choices"][0].get("finish_reason"))
    try:
        reading = read_frontier(task, one.request, text, finish_reason)
    except FrontierInvalidResponse:
        return None
    return reading.value if reading.valid else None


def _labels(spec: ClassificationSpec) -> tuple[str, ...]:
    return tuple(label.name for label in spec.labels)
