"""Compares answers to chats that were read as a task with the reference's, behind the requests.

An audit of the task asks the reference what the router made of the chat. This one asks it what the
client wrote, so that it also finds a chat that was read wrongly.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

from serving.contracts.answer import Answer
from serving.contracts.context import RequestContext
from serving.contracts.errors import DeadlineExceeded, FrontierInvalidResponse, NarrowgateError
from serving.contracts.evidence import Candidate, Origin, Verdict
from serving.contracts.requests import ChatRequest, TaskBatch
from serving.evidence.appender import EvidenceAppender
from serving.evidence.candidates import MODEL
from serving.evidence.judge import JudgedAnswers, JudgePrompt, JudgeReply, judge
from serving.evidence.rulings import Ruling
from serving.pipeline.audit_work import OF_THE_INPUT, AuditWork, Drawn, judge_call
from serving.pipeline.compared_reading import ReadTask, loss_in_form
from serving.pipeline.compared_text import answer_text, question_of
from serving.pipeline.exit_recorder import ExitRecorder
from serving.pipeline.plan import FrontierPlan, TaskPlan
from serving.pipeline.reading_claims import ReadingClaims
from serving.pipeline.runner import Runner
from serving.pipeline.write import task_text
from serving.tiers.shortcut import cascade_loss


@dataclass(frozen=True, slots=True)
class ReadChat:
    """A chat that was read as a task, as it was drawn before its answer was known.

    plan: of the task; its fallback asks a frontier model with the client's messages. coin: whether
    the coin chose it. input: its name, drawn at random.
    """

    request: ChatRequest
    plan: TaskPlan
    ruling: Ruling
    context: RequestContext
    coin: bool
    input: str
    drawn_at: datetime

    @property
    def reference(self) -> str:
        """Return the model that judges; only what may be sent to it is drawn."""
        assert self.ruling.reference is not None
        return self.ruling.reference

    @property
    def drawn(self) -> Drawn:
        """Return what its row says."""
        rate, text = self.ruling.rate if self.coin else None, question_of(self.request)
        return Drawn(self.ruling, self.context, self.input, text, rate, self.drawn_at)


class ReadingAuditor(AuditWork):
    """Runs audits of readings with their own concurrency, queue and deadline. One for a process.

    asked: runs a task on a frontier model. asked_chat: asks one with the client's own messages: no
    cache, no pruning, no directive. The judge is the reference, as of cached answers.
    """

    def __init__(
        self,
        claims: ReadingClaims,
        appender: EvidenceAppender,
        recorder: ExitRecorder,
        asked: Runner[TaskBatch, FrontierPlan],
        asked_chat: Runner[ChatRequest, FrontierPlan],
    ) -> None:
        super().__init__(claims.evidence, appender, recorder, "routing.audit_failed")
        self.claims = claims
        self._asked_task = asked
        self._asked_chat = asked_chat

    def shadowed(self, one: ReadChat, text: str, cost_usd: Decimal) -> None:
        """Compare the reference's answer to a chat, which the client got, with one to its task.

        text, cost_usd: of the client's answer.
        """
        if one.coin:
            work = self._compared(one, "shadow", None, text, cost_usd)
            self._begin(one, "shadow", work, is_affordable=self.evidence.may_judge())

    def served(self, one: ReadChat, answer: Answer) -> None:
        """Ask the reference the chat that a client got a local answer to, where it was drawn."""
        self.evidence.counts.accepted[one.ruling.name] += 1
        if one.coin:
            work = self._compared(one, "accepted", answer)
            self._begin(one, "accepted", work, is_affordable=self.evidence.is_affordable())

    def _begin(
        self,
        one: ReadChat,
        origin: Origin,
        work: Coroutine[None, None, None],
        *,
        is_affordable: bool,
    ) -> None:
        if not is_affordable:
            work.close()
            self._append_drop(one.drawn, origin)
        elif self._start(work):
            self._draw(one.drawn, origin)
        else:
            self._append_drop(one.drawn, origin)

    async def _compared(
        self,
        one: ReadChat,
        origin: Origin,
        served: Answer | None,
        text: str | None = None,
        cost_usd: Decimal | None = None,
    ) -> None:
        costs: list[Decimal] = []
        loss: float | None = None
        try:
            if text is None:
                text = await self._chat_answer(one, costs)
            loss = await self._loss(one, served, text, costs)
        except NarrowgateError as error:
            if not isinstance(error, OF_THE_INPUT):
                usd = self._spent(origin, costs)
                self._append_drop(one.drawn, origin, None if origin == "shadow" else usd or None)
                return
        usd = self._spent(origin, costs)
        verdict: Verdict = "missing" if loss is None else "different" if loss else "same"
        known = 1.0 if loss is None else loss
        self._append(
            replace(
                self._row(one.drawn, origin, verdict, known),
                candidates=(Candidate(MODEL, 1.0, known),),
                cost_usd=cost_usd if origin == "shadow" else usd,
                judge_usd=usd if origin == "shadow" else None,
            )
        )

    def _spent(self, origin: Origin, costs: list[Decimal]) -> Decimal:
        usd = sum(costs, Decimal(0))
        if origin == "shadow":
            self.evidence.judged(usd)
        return usd

    async def _loss(
        self, one: ReadChat, served: Answer | None, right: str, costs: list[Decimal]
    ) -> float | None:
        """Return the loss of the reading; None where there is no verdict.

        right: the reference's answer to the chat. Where the local answer differs from it, the
        reference's own answer to the task tells whether the reading is wrong or the local model:
        the latter counts against the claim on the task.
        """
        loss = None if served is None else await self._difference(one, served, right, costs)
        if loss == 0.0:
            return loss
        try:
            asked = await self._task_answer(one, costs)
        except FrontierInvalidResponse:
            return loss
        if served is not None and asked.value == served.value:
            return loss
        losses = (loss, await self._difference(one, asked, right, costs))
        return min((found for found in losses if found is not None), default=None)

    async def _difference(
        self, one: ReadChat, answer: Answer, right: str, costs: list[Decimal]
    ) -> float | None:
        """Return the loss of a task's answer against the reference's to the chat; None: unknown."""
        decision, (request,) = one.plan.decision, one.plan.batch.requests
        labels = None if decision is None else decision.labels
        task = self.claims.tasks[request.task].task
        if not right.strip() or not answer.valid:
            return None
        loss = loss_in_form(ReadTask(task, request, labels), answer.value, right)
        if loss is not None:
            return loss

        async def ask(prompt: JudgePrompt) -> JudgeReply:
            context = self._context(one.context)
            chat, plan = judge_call(
                prompt, one.reference, context.deadline, tier=one.plan.fallback.tier, reason="judge"
            )
            document = await self._asked(self._asked_chat, context, chat, plan, costs)
            return JudgeReply(answer_text(document))

        answers = JudgedAnswers(question_of(one.request), task_text(answer.value, labels), right)
        pair = (await judge(answers, ask)).pair
        return None if pair is None else cascade_loss(pair)

    async def _chat_answer(self, one: ReadChat, costs: list[Decimal]) -> str:
        """Return the reference's answer to the client's own messages. Raises NarrowgateError."""
        context = self._context(one.context)
        request = replace(one.request, stream=False, include_usage=False)
        plan = self._plan(one, context)
        return answer_text(await self._asked(self._asked_chat, context, request, plan, costs))

    async def _task_answer(self, one: ReadChat, costs: list[Decimal]) -> Answer:
        """Return the reference's answer to the task's prompt. Raises NarrowgateError."""
        context = self._context(one.context)
        plan = self._plan(one, context)
        try:
            async with (
                asyncio.timeout(self.evidence.settings.deadline_s),
                self._recorder.open(context, "audit") as record,
            ):
                record.planned(replace(one.plan, reason="audit", fallback=plan))
                record.inputs[0].closed = costs.append
                ran = await self._asked_task.whole(one.plan.batch, plan, record)
                (outcome,) = await record.finish(ran)
        except TimeoutError as error:
            raise DeadlineExceeded("the audit took longer than evidence.deadline_s") from error
        if isinstance(outcome.content, NarrowgateError):
            raise outcome.content
        assert isinstance(outcome.content, Answer)
        return outcome.content

    def _plan(self, one: ReadChat, context: RequestContext) -> FrontierPlan:
        """Return the plan of asking the reference: as a client would, within the tier's bounds."""
        fallback = one.plan.fallback
        return replace(
            fallback,
            targets=(one.reference,),
            bounds=replace(fallback.bounds, directive=None),
            deadline=context.deadline,
            reason="audit",
            decision=None,
        )
