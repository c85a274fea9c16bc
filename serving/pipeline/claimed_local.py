"""Runs a task on the candidate that its claim names, not always on the attested model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from serving.contracts.answer import Answer, TaskRequest, Usage
from serving.contracts.evidence import NO_GUARANTEE
from serving.contracts.exits import HEAD_PREFIX
from serving.contracts.requests import TaskBatch
from serving.evidence.candidates import MODEL, CandidateModel, LocalView, under_standing
from serving.evidence.rulings import Evidence
from serving.pipeline.auditor import Embed
from serving.pipeline.exit_recorder import Outcome, RequestRecord, Served
from serving.pipeline.plan import TaskPlan
from serving.pipeline.runner import BoundTask, Runner
from serving.tasks.frontier_prompt import estimated_usage


class ClaimedLocal:
    """Implements Runner for tasks. runner: of the attested model. embed: a text's vector."""

    def __init__(
        self,
        runner: Runner[TaskBatch, TaskPlan],
        tasks: Mapping[str, BoundTask],
        evidence: Evidence,
        embed: Embed | None,
    ) -> None:
        self._runner = runner
        self._tasks = tasks
        self._evidence = evidence
        self._embed = embed

    async def whole(
        self, request: TaskBatch, plan: TaskPlan, record: RequestRecord
    ) -> list[Outcome]:
        """Return the candidate's answers; a head needs no engine."""
        standing = plan.standing
        action = None if standing is None or standing.mode != "claim" else standing.action
        if action is None:
            return await self._runner.whole(request, plan, record)
        assert standing is not None
        assert standing.claim is not None
        if action.candidate == MODEL:
            outcomes = await self._runner.whole(request, plan, record)
            return self._unlisted(outcomes, request.requests, standing.claim)
        candidate = self._evidence.candidate(standing.claim, action.candidate)
        if candidate is None or self._embed is None:
            # Its file is not loaded here: no claim is in force in this replica.
            uncovered = replace(plan, standing=replace(standing, mode="uncovered"))
            return await self._runner.whole(request, uncovered, record)
        vectors = [await self._embed(one.text) for one in request.requests]
        if candidate.needs_model:
            outcomes = await self._runner.whole(request, replace(plan, standing=None), record)
        else:
            outcomes = self._without_engine(request.requests, candidate, record)
        found = []
        for item, one, vector, outcome in zip(
            record.inputs, request.requests, vectors, outcomes, strict=True
        ):
            item.vector = vector
            view = LocalView(item.local_answer, vector, len(one.text))
            answered = _under(outcome, plan, candidate, view)
            found.append(answered if candidate.needs_model else self._priced(answered, one))
        return self._unlisted(found, request.requests, standing.claim)

    async def stream(self, request: TaskBatch, plan: TaskPlan, record: RequestRecord) -> Outcome:
        """Return the answer to the only input: a task answers whole."""
        (outcome,) = await self.whole(request, plan, record)
        return outcome

    def _unlisted(
        self, outcomes: Sequence[Outcome], requests: Sequence[TaskRequest], claim: str
    ) -> list[Outcome]:
        """Return the outcomes; a frequent text that was answered wrongly is below its threshold."""
        return [
            _uncovered(outcome) if self._evidence.always_escalates(claim, one.text) else outcome
            for one, outcome in zip(requests, outcomes, strict=True)
        ]

    def _priced(self, outcome: Outcome, request: TaskRequest) -> Outcome:
        """Return a head's outcome with what the reference would have used: a head uses no token."""
        if not isinstance(outcome.content, Answer) or outcome.served is None:
            return outcome
        task = self._tasks[request.task].task
        usage = estimated_usage(task, request, str(outcome.content.value))
        return replace(outcome, served=replace(outcome.served, reference_usage=usage))

    def _without_engine(
        self, requests: Sequence[TaskRequest], candidate: CandidateModel, record: RequestRecord
    ) -> list[Outcome]:
        """Return empty answers in the candidate's name, for the candidate to fill."""
        outcomes = []
        version = candidate.name.partition("@")[2]
        for one in requests:
            model = f"{HEAD_PREFIX}{one.task}@{version}"
            usage = Usage(uncached_input_tokens=0, output_tokens=0)
            answer = Answer(
                task=one.task, value="", label_probabilities=None, confidence=0.0, valid=True,
                notes=(), route="local", reason="narrow", model=model, usage=usage,
                request_id=record.context.request_id,
            )  # fmt: skip
            outcomes.append(Outcome(answer, Served("local", "narrow", model, usage)))
        return outcomes


def _uncovered(outcome: Outcome) -> Outcome:
    if not isinstance(outcome.content, Answer) or outcome.served is None:
        return outcome
    answer = outcome.content.model_copy(update={"below_threshold": True, "guarantee": NO_GUARANTEE})
    served = replace(outcome.served, guaranteed=False, evidence="none", claim=None)
    return replace(outcome, content=answer, served=served)


def _under(outcome: Outcome, plan: TaskPlan, candidate: CandidateModel, view: LocalView) -> Outcome:
    if not isinstance(outcome.content, Answer) or outcome.served is None:
        return outcome
    proposal = candidate.propose(view)
    if proposal is None:
        standing = None if plan.standing is None else replace(plan.standing, mode="uncovered")
        answer = under_standing(outcome.content, standing)
    else:
        answer = under_standing(outcome.content, plan.standing, proposal)
    served = replace(
        outcome.served,
        guaranteed=answer.below_threshold is False,
        evidence=answer.guarantee.evidence,
        claim=answer.guarantee.claim,
    )
    return replace(outcome, content=answer, served=served)
