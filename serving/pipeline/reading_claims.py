"""The claims on reading: whether chats that were read as a task may be answered as that task."""

from collections.abc import Mapping
from dataclasses import dataclass

from serving.contracts.context import RequestContext
from serving.contracts.exits import NO_MODEL
from serving.evidence.rulings import Evidence, Ruling
from serving.evidence.shortcuts import ReadingRules
from serving.pipeline.runner import BoundTask


@dataclass(frozen=True, slots=True)
class ReadingClaims:
    """Rules on chats that were read as a task. tasks: by name. rules: of the router that reads.

    The claim on the task itself is the same for chats and for inputs that name the task: its audits
    send the task's prompt for both.
    """

    evidence: Evidence
    tasks: Mapping[str, BoundTask]
    rules: ReadingRules

    def ruling(self, task: str, context: RequestContext) -> Ruling:
        """Return the ruling on the reading. Raises LedgerUnavailable where tenants are unknown."""
        bound = self.tasks[task]
        spec, grant = bound.task.spec, bound.grant
        model = bound.engine.model_id if grant.refusal is None else NO_MODEL
        local = self.evidence.local_task(spec, model, grant)
        reading = self.evidence.narrow_reading(spec, self.rules)
        # The first to be left out where both targets exceed evidence.max_total_error.
        return self.evidence.ruling(reading, context, (local, reading))
