"""The request path: read, look up, plan, run, write.

Each step is entered once. The record is open from the plan to the last byte of the reply: it
closes every input's ledger entry, however the request ends.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from serving.contracts.answer import Answer
from serving.contracts.context import RequestContext
from serving.contracts.frontier import Frontier
from serving.contracts.requests import AUTO, ChatRequest, CompletionRequest, TaskBatch
from serving.contracts.routing import Decision, DecisionLog, Router
from serving.evidence.rulings import Evidence
from serving.pipeline.admission import AdmissionQueue, Admitted, every_unit, one_call
from serving.pipeline.auditor import Auditor, AuditRunners, Embed
from serving.pipeline.bounded import Bounded, Learning
from serving.pipeline.cache_access import CacheAccess
from serving.pipeline.cached_chat import Asked, CachedChat
from serving.pipeline.cached_task import CachedTask
from serving.pipeline.claimed import Claimed
from serving.pipeline.claimed_local import ClaimedLocal
from serving.pipeline.escalating import Escalating
from serving.pipeline.exit_recorder import ExitRecorder, Outcome, OutcomeStream, RequestRecord
from serving.pipeline.frontier_model import FrontierModelRunner
from serving.pipeline.frontier_task import FrontierTaskRunner
from serving.pipeline.local_model import LocalModelRunner
from serving.pipeline.local_task import LocalTaskRunner
from serving.pipeline.plan import (
    FrontierPlan,
    LocalPlan,
    Plan,
    Policy,
    TaskPlan,
    choose_plan,
)
from serving.pipeline.pruned import Pruned, Pruning
from serving.pipeline.read import read_chat, read_completion, read_tasks
from serving.pipeline.replica_meter import ReplicaMeter
from serving.pipeline.runner import (
    BoundTask,
    Engine,
    Runner,
)
from serving.pipeline.similar_chat import SimilarChats
from serving.pipeline.tier_auditor import TierAuditor
from serving.pipeline.tiered import Tiered
from serving.pipeline.write import Reply, TaskReply, write_reply, write_tasks
from serving.tiers.planner import TierPlanner


@dataclass(frozen=True, slots=True)
class RequestPath:
    """The steps, wired in serving.app.

    runners: by kind of plan. max_inputs: of one request. cache: None where nothing is cached.
    similar: looks chats up by meaning; None where nothing is.
    """

    policy: Policy
    router: Router
    recorder: ExitRecorder
    runners: Mapping[type[Plan], Runner[Any, Any]]
    max_inputs: int
    cache: CacheAccess | None = None
    similar: SimilarChats | None = None

    @asynccontextmanager
    async def chat(self, body: Any, context: RequestContext) -> AsyncIterator[Reply]:
        """Answer a chat completion; send the reply inside the context. Raises NarrowgateError."""
        request = read_chat(body, self.max_inputs)
        if self.cache is not None:
            cached = CachedChat(self.cache, self.recorder, self._ask, self.similar)
            async with cached.answered(request, context) as reply:
                yield reply
            return
        async with self.recorder.open(context, "chat") as record:
            asked = await self._ask(request, record)
            yield write_reply(request, asked.plan, asked.outcome, context)

    @asynccontextmanager
    async def completion(self, body: Any, context: RequestContext) -> AsyncIterator[Reply]:
        """Continue a prompt on the local model that the body names. As `chat`."""
        request = read_completion(body, self.max_inputs)
        async with self.recorder.open(context, "completions") as record:
            plan = choose_plan(request, context, self.policy)
            yield write_reply(request, plan, await self._run(request, plan, record), context)

    @asynccontextmanager
    async def tasks(
        self, task: str, body: Any, context: RequestContext
    ) -> AsyncIterator[TaskReply]:
        """Answer the inputs of one task, each with an answer or an error. As `chat`."""
        batch = read_tasks(task, body, self.policy.specs, self.max_inputs)
        if self.cache is not None:
            cached = CachedTask(self.cache, self.recorder, self._ask_task, self._note_hit)
            async with cached.answered(batch, context) as task_reply:
                yield task_reply
            return
        async with self.recorder.open(context, "task", batch.units) as record:
            outcomes = await self._ask_task(batch, record)
            yield write_tasks(batch, await record.finish(outcomes))

    async def _ask(self, request: ChatRequest, record: RequestRecord) -> Asked:
        plan = await self._planned(request, record)
        return Asked(plan, await self._run(request, plan, record))

    async def _ask_task(self, batch: TaskBatch, record: RequestRecord) -> list[Outcome]:
        plan = choose_plan(batch, record.context, self.policy)
        record.planned(plan)
        return await self.runners[TaskPlan].whole(batch, plan, record)

    def _note_hit(self, batch: TaskBatch, answer: Answer, context: RequestContext) -> None:
        plan, runner = choose_plan(batch, context, self.policy), self.runners[TaskPlan]
        if isinstance(runner, Claimed) and isinstance(plan, TaskPlan):
            runner.cached(plan, answer, context)

    async def _planned(self, request: ChatRequest, record: RequestRecord) -> Plan:
        context = record.context
        if request.model != AUTO:
            return choose_plan(request, context, self.policy)
        # Awaited once, here; all later steps that compare texts share them.
        vectors = await self.router.vectors(request, record.vectors)
        decision = self.router.decide(request, vectors)
        return choose_plan(request, context, self.policy, decision)

    async def _run(
        self, request: ChatRequest | CompletionRequest, plan: Plan, record: RequestRecord
    ) -> Outcome | OutcomeStream:
        runner: Runner[Any, Any] = self.runners[type(plan)]
        record.planned(plan)
        if request.stream:
            return await record.follow(await runner.stream(request, plan, record))
        (outcome,) = await record.finish(await runner.whole(request, plan, record))
        return outcome


class DecisionLogged:
    """Runs another runner and logs the requests that the router sent to it."""

    def __init__(self, runner: Runner[ChatRequest, FrontierPlan], decisions: DecisionLog) -> None:
        self._runner = runner
        self._decisions = decisions

    async def whole(
        self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord
    ) -> list[Outcome]:
        """Log the request, then run the other runner."""
        self._keep(request, plan, record)
        return await self._runner.whole(request, plan, record)

    async def stream(
        self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord
    ) -> Outcome | OutcomeStream:
        """Log the request, then run the other runner."""
        self._keep(request, plan, record)
        return await self._runner.stream(request, plan, record)

    def _keep(self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord) -> None:
        if plan.decision is not None:
            self._decisions.record(_row(request, plan, plan.decision, record.context.request_id))


@dataclass(frozen=True, slots=True)
class Audited:
    """What running under claims needs. auditor: makes the auditor of the runners.

    baseline: the tasks of the 16-bit model with which local answers are compared.
    """

    evidence: Evidence
    auditor: Callable[[AuditRunners], Auditor]
    embed: Embed | None = None
    baseline: Mapping[str, BoundTask] | None = None


@dataclass(frozen=True, slots=True)
class Tiering:
    """What tiers need. auditor: makes the auditor, from a runner that asks a model with the whole
    request and one that asks it as clients are served."""

    planner: TierPlanner
    auditor: Callable[
        [Runner[ChatRequest, FrontierPlan], Runner[ChatRequest, FrontierPlan]], TierAuditor
    ]
    embed: Embed


def build_runners(
    tasks: Mapping[str, BoundTask],
    engines: Mapping[str, Engine],
    meters: Mapping[str, ReplicaMeter],
    frontier: Frontier,
    decisions: DecisionLog,
    local: AdmissionQueue,
    remote: AdmissionQueue,
    audited: Audited | None = None,
    pruning: Pruning | None = None,
    learning: Learning | None = None,
    tiering: Tiering | None = None,
) -> Mapping[type[Plan], Runner[Any, Any]]:
    """Return the runners by kind of plan: each model's runner, wrapped in those it needs.

    local: limit on work for local models. remote: limit on calls of frontier models. audited: with
    what tasks run under claims; None where only attested thresholds decide. pruning: of contexts;
    None where they are always sent whole. learning: of output bounds; None where those of the
    settings hold. tiering: of open-ended chats by their clusters; None where the router's rules
    decide alone.
    """
    local_task: Runner[TaskBatch, TaskPlan] = Admitted(
        LocalTaskRunner(tasks, meters), local, every_unit
    )
    frontier_task: Runner[TaskBatch, FrontierPlan] = Admitted(
        FrontierTaskRunner(tasks, frontier), remote, one_call
    )
    baseline: Runner[TaskBatch, TaskPlan] | None = None
    if audited is not None and audited.baseline is not None:
        baseline = Admitted(LocalTaskRunner(audited.baseline, meters), local, every_unit)
    asked = AuditRunners(local_task, frontier_task, baseline)
    model: Runner[ChatRequest, FrontierPlan] = FrontierModelRunner(frontier)
    reference: Runner[ChatRequest, FrontierPlan] = Admitted(model, remote, one_call)
    if learning is not None:
        # Within admission: a continuation belongs to its request.
        model = Bounded(model, learning)
    asking: Runner[ChatRequest, FrontierPlan] = Admitted(model, remote, one_call)
    if pruning is not None:
        asking = Pruned(asking, pruning)
    if tiering is not None:
        auditor = tiering.auditor(reference, asking)
        asking = Tiered(asking, tiering.planner, auditor, tiering.embed)
    frontier_model = DecisionLogged(asking, decisions)
    return {
        LocalPlan: Admitted(LocalModelRunner(engines, meters), local, every_unit),
        FrontierPlan: frontier_model,
        TaskPlan: _task_runner(tasks, asked, frontier_model, audited),
    }


def _task_runner(
    tasks: Mapping[str, BoundTask],
    asked: AuditRunners,
    frontier_model: Runner[ChatRequest, FrontierPlan],
    audited: Audited | None,
) -> Runner[Any, TaskPlan]:
    if audited is None:
        return Escalating(asked.local, asked.frontier_task, frontier_model, tasks)
    claimed = ClaimedLocal(asked.local, tasks, audited.evidence, audited.embed)
    escalating = Escalating(claimed, asked.frontier_task, frontier_model, tasks)
    return Claimed(escalating, tasks, audited.auditor(asked))


def _row(
    request: ChatRequest, plan: FrontierPlan, decision: Decision, request_id: str
) -> Mapping[str, Any]:
    # Only the messages: the router trains on them.
    return {
        "request_id": request_id,
        "body": {"messages": [message.body() for message in request.messages]},
        "task": decision.task.task if decision.task else None,
        "certainty": decision.certainty,
        "complexity": decision.complexity,
        "tier": decision.tier,
        "because": decision.because,
        "reason": plan.reason,
    }
