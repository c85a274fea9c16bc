"""What auditors share: audits in progress, the rows that they write, and the call of a judge."""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from serving.contracts.answer import Answer, Value
from serving.contracts.context import RequestContext
from serving.contracts.deadline import Deadline
from serving.contracts.errors import (
    DeadlineExceeded,
    FrontierContextTooLong,
    FrontierInvalidResponse,
    FrontierRejected,
    FrontierTimeout,
    InvalidRequest,
    NarrowgateError,
)
from serving.contracts.evidence import Audit, Origin, Verdict
from serving.contracts.frontier import OutputBounds
from serving.contracts.requests import ChatRequest, Message
from serving.contracts.routing import Reason, RequestOptions, Tier
from serving.contracts.task_spec import TaskSpec
from serving.evidence.appender import EvidenceAppender
from serving.evidence.judge import JudgePrompt
from serving.evidence.rulings import Evidence, Ruling
from serving.pipeline.exit_recorder import ExitRecorder
from serving.pipeline.plan import FrontierPlan
from serving.pipeline.runner import Runner
from serving.tasks.loss import loss_of

logger = logging.getLogger(__name__)

OF_THE_INPUT = (
    FrontierInvalidResponse, FrontierRejected, FrontierContextTooLong, FrontierTimeout,
    DeadlineExceeded, InvalidRequest,
)  # fmt: skip
"""Errors for which a verdict is missing because of the input: a loss of 1. Others are dropped."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a row says of an input before its verdict.

    input: its name, drawn at random. text: that is digested. coin: its probability where the fair
    coin chose the input, None where it did not.
    """

    ruling: Ruling
    context: RequestContext
    input: str
    text: str
    coin: float | None
    drawn_at: datetime


class AuditWork:
    """Audits in progress: a bounded queue, a limit on how many run, and a sure end.

    defect: name of the log event of an audit that ended by a defect of the program.
    """

    def __init__(
        self,
        evidence: Evidence,
        appender: EvidenceAppender,
        recorder: ExitRecorder,
        defect: str,
    ) -> None:
        self.evidence = evidence
        self._appender = appender
        self._recorder = recorder
        self._defect = defect
        self._places = asyncio.Semaphore(evidence.settings.concurrency)
        self._running: set[asyncio.Task[None]] = set()

    @property
    def waiting(self) -> int:
        """Return how many audits wait or run."""
        return len(self._running)

    async def settled(self) -> None:
        """Return when every audit that was begun has its verdict."""
        while self._running:
            await asyncio.wait(set(self._running))

    async def aclose(self) -> None:
        """Cancel audits in progress: their inputs are counted as dropped later."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> bool:
        """Run the work when a place is free; return False, with the work closed, if too many wait.

        Its first step comes after the caller's next await, so the caller may still write the draw.
        """
        if len(self._running) >= self.evidence.settings.queue:
            work.close()
            return False
        task = asyncio.create_task(self._placed(work))
        self._running.add(task)
        task.add_done_callback(lambda ended: self._ended(ended, work))
        return True

    async def _placed(self, work: Coroutine[Any, Any, None]) -> None:
        async with self._places:
            await work

    def _ended(self, task: asyncio.Task[None], work: Coroutine[Any, Any, None]) -> None:
        # A task that is cancelled before it begins has not awaited it.
        work.close()
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            # No request waits for this task. Its draw is counted as dropped later.
            logger.error(self._defect, exc_info=error)

    def _draw(self, drawn: Drawn, origin: Origin) -> None:
        """Write that an input is to be audited, before its verdict is known."""
        self._appender.draw(self._row(drawn, origin, "dropped", None))

    def _append_drop(
        self,
        drawn: Drawn,
        origin: Origin,
        cost_usd: Decimal | None = None,
        *,
        has_row: bool = True,
    ) -> None:
        """Count an audit that has no verdict, and write it.

        cost_usd: of what was asked before it failed. The day's budget counts it.
        """
        self.evidence.counts.dropped[drawn.ruling.name] += 1
        if has_row:
            self._append(replace(self._row(drawn, origin, "dropped", None), cost_usd=cost_usd))

    def _append(self, row: Audit) -> None:
        self._appender.append(replace(row, accepted=self.evidence.counts.take_accepted(row.claim)))

    def _row(self, drawn: Drawn, origin: Origin, verdict: Verdict, loss: float | None) -> Audit:
        ruling, context = drawn.ruling, drawn.context
        return Audit(
            claim=ruling.name,
            input=drawn.input,
            group=ruling.group,
            text=self.evidence.text_digest(ruling.name, drawn.text),
            origin=origin,
            coin=drawn.coin,
            verdict=verdict,
            loss=loss,
            reference=ruling.reference or "",
            tenant=context.caller.tenant,
            request_id=context.request_id,
            end_user=context.options.end_user,
            hypothesis=ruling.standing.hypothesis,
            drawn_at=drawn.drawn_at,
            judged_at=self.evidence.now(),
        )

    async def _asked(
        self,
        runner: Runner[ChatRequest, FrontierPlan],
        context: RequestContext,
        request: ChatRequest,
        plan: FrontierPlan,
        costs: list[Decimal],
        cluster: str | None = None,
    ) -> dict[str, Any]:
        """Return what a model answers for a comparison, as its plan says. Raises NarrowgateError.

        costs: gets what the call can have cost. cluster: of the request that is compared.
        """
        try:
            async with (
                asyncio.timeout(self.evidence.settings.deadline_s),
                self._recorder.open(context, "audit") as record,
            ):
                record.planned(plan)
                record.inputs[0].cluster = cluster
                record.inputs[0].closed = costs.append
                (outcome,) = await record.finish(await runner.whole(request, plan, record))
        except TimeoutError as error:
            raise DeadlineExceeded("a comparison took longer than evidence.deadline_s") from error
        if isinstance(outcome.content, NarrowgateError):
            raise outcome.content
        assert isinstance(outcome.content, dict)
        return outcome.content

    def _context(
        self, audited: RequestContext, options: RequestOptions | None = None
    ) -> RequestContext:
        """Return the context of a call for an audit: a deadline of its own, else no options."""
        deadline = Deadline.after(self.evidence.settings.deadline_s)
        return RequestContext(
            audited.request_id, audited.caller, options or RequestOptions(), deadline
        )


def loss_and_verdict(
    spec: TaskSpec, answer: Answer | None, right: Value | None
) -> tuple[float | None, Verdict]:
    """Return the loss of an answer and the verdict on it.

    answer: as served, None where nothing local answered. right: the reference's, None where it gave
    none for reasons of the input.
    """
    if right is None:
        return 1.0, "missing"
    if answer is None:
        return None, "different"
    loss = loss_of(spec, answer.value, right, valid=answer.valid)
    return loss, "same" if loss == 0.0 else "different"


def judge_call(
    prompt: JudgePrompt, model: str, deadline: Deadline, *, tier: Tier, reason: Reason
) -> tuple[ChatRequest, FrontierPlan]:
    """Return the request that asks a judge, and its plan. model: `provider/model`."""
    body = dict(prompt.body)
    messages = tuple(Message(m["role"], m["content"]) for m in body.pop("messages"))
    request = ChatRequest(model, messages, max_tokens=prompt.max_tokens, fields=body)
    bounds = OutputBounds(prompt.max_tokens, thinking=False)
    return request, FrontierPlan((model,), tier, bounds, deadline, reason)
