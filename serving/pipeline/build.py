"""Builds the runners of a gateway: each model's runner, wrapped in those that the settings name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serving.contracts.frontier import Frontier
from serving.contracts.requests import ChatRequest, TaskBatch
from serving.contracts.routing import Decision, DecisionLog
from serving.evidence.rulings import Evidence
from serving.pipeline.admission import AdmissionQueue, Admitted, every_unit, one_call
from serving.pipeline.auditor import Auditor, AuditRunners, Embed
from serving.pipeline.bounded import Bounded, Learning
from serving.pipeline.claimed import Claimed
from serving.pipeline.claimed_local import ClaimedLocal
from serving.pipeline.claimed_reading import ClaimedReading
from serving.pipeline.escalating import Escalating
from serving.pipeline.exit_recorder import Outcome, OutcomeStream, RequestRecord
from serving.pipeline.frontier_model import FrontierModelRunner
from serving.pipeline.frontier_task import FrontierTaskRunner
from serving.pipeline.local_model import LocalModelRunner
from serving.pipeline.local_task import LocalTaskRunner
from serving.pipeline.plan import FrontierPlan, LocalPlan, Plan, TaskPlan
from serving.pipeline.pruned import Pruned, Pruning
from serving.pipeline.reading_auditor import ReadingAuditor
from serving.pipeline.replica_meter import ReplicaMeter
from serving.pipeline.runner import BoundTask, Engine, Runner, Where
from serving.pipeline.tier_auditor import TierAuditor
from serving.pipeline.tiered import Tiered
from serving.tiers.planner import TierPlanner


class DecisionLogged:
    """Runs another runner and logs the requests, which the router sent to it."""

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
        assert plan.decision is not None
        self._decisions.record(_row(request, plan, plan.decision, record.context.request_id))


@dataclass(frozen=True, slots=True)
class Audited:
    """What running under claims needs. auditor: makes the auditor of the runners.

    baseline: the tasks of the 16-bit model with which local answers are compared. reading: makes
    the auditor of chats that were read as a task, from a runner of tasks on a frontier model and
    one that asks a model with the whole request; None where readings have no claim.
    """

    evidence: Evidence
    auditor: Callable[[AuditRunners], Auditor]
    embed: Embed | None = None
    baseline: Mapping[str, BoundTask] | None = None
    reading: (
        Callable[
            [Runner[TaskBatch, FrontierPlan], Runner[ChatRequest, FrontierPlan]], ReadingAuditor
        ]
        | None
    ) = None


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
        brevity = None if learning.auditor is None else learning.auditor(reference)
        # Within admission: a continuation belongs to its request.
        model = Bounded(model, learning, brevity)
    asking: Runner[ChatRequest, FrontierPlan] = Admitted(model, remote, one_call)
    if pruning is not None:
        pruned = Pruned(asking, pruning)
        asking = Where(pruned.concerns, pruned, asking)
    routed = asking
    if tiering is not None:
        auditor = tiering.auditor(reference, asking)
        routed = Tiered(asking, tiering.planner, auditor, tiering.embed)
    frontier_model = Where(_is_routed, DecisionLogged(routed, decisions), asking)
    return {
        LocalPlan: Admitted(LocalModelRunner(engines, meters), local, every_unit),
        FrontierPlan: frontier_model,
        TaskPlan: _task_runner(tasks, asked, frontier_model, reference, audited),
    }


def _task_runner(
    tasks: Mapping[str, BoundTask],
    asked: AuditRunners,
    frontier_model: Runner[ChatRequest, FrontierPlan],
    reference: Runner[ChatRequest, FrontierPlan],
    audited: Audited | None,
) -> Runner[Any, TaskPlan]:
    if audited is None:
        return Escalating(asked.local, asked.frontier_task, frontier_model, tasks)
    claimed = ClaimedLocal(asked.local, tasks, audited.evidence, audited.embed)
    runner: Runner[Any, TaskPlan] = Escalating(claimed, asked.frontier_task, frontier_model, tasks)
    if audited.reading is not None:
        runner = ClaimedReading(runner, audited.reading(asked.frontier_task, reference))
    return Claimed(runner, tasks, audited.auditor(asked))


def _is_routed(_request: ChatRequest, plan: FrontierPlan) -> bool:
    """Return whether the router chose the plan."""
    return plan.decision is not None


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
