"""The provider's batches, apart from their wire formats: states, answers, and what is billed."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from .model import reply
from .script import BatchPlan, Fault, Reply, Script, Seen

Phase = Literal["validating", "in_progress", "finalizing", "cancelling", "ended"]
Outcome = Literal["completed", "expired", "failed", "cancelled"]
LineOutcome = Literal["succeeded", "errored", "expired", "cancelled"]

_LINES_A_TURN = 100
_WINDOW_S = 24 * 3600


@dataclass
class Line:
    """One request of a batch. answer, usage: of one that succeeded; fault: of one that erred."""

    custom_id: str
    seen: Seen
    number: int = 0
    outcome: LineOutcome | None = None
    answer: Reply | None = None
    usage: Any = None
    fault: Fault | None = None


@dataclass
class Batch:
    """One batch. asked: how often its state was asked for. times: when each phase began, Unix s.

    facts: what its wire format keeps of it.
    """

    id: str
    key: str
    api: Literal["openai", "anthropic"]
    lines: list[Line]
    plan: BatchPlan
    facts: dict[str, Any]
    created_at: float = field(default_factory=time.time)
    phase: Phase = "validating"
    ends: Outcome = "completed"
    errors: list[dict[str, Any]] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)
    asked: int = 0
    unlisted: int = 0
    lost: int = 0
    late_files: int = 0

    @property
    def expires_at(self) -> float:
        return self.created_at + _WINDOW_S

    def count(self, outcome: LineOutcome) -> int:
        return sum(line.outcome == outcome for line in self.lines)

    def enter(self, phase: Phase) -> None:
        self.phase = phase
        self.times[phase if phase != "ended" else self.ends] = time.time()

    def results(self) -> list[Line]:
        """Return the finished lines as results show them: unordered, some twice."""
        lines = [line for line in self.lines if line.outcome is not None]
        if self.plan.omits_unrun:
            lines = [line for line in lines if line.outcome in ("succeeded", "errored")]
        lines += [line for line in lines if line.outcome == "succeeded"][: self.plan.duplicated]
        if not self.plan.is_ordered:
            random.Random(self.id).shuffle(lines)  # noqa: S311
        return lines


class Batches:
    """All batches and files of all keys.

    usage: computes and notes the usage of an answer, by the provider's own count.
    """

    def __init__(self, script: Script, usage: Callable[[Seen, Reply], Any]) -> None:
        self._script = script
        self._usage = usage
        self._by_id: dict[str, Batch] = {}
        self._working: dict[str, asyncio.Task[None]] = {}
        self._numbers = 0

    def number(self) -> int:
        """Return the next number of an id; ids are no secret here."""
        self._numbers += 1
        return self._numbers

    def create(
        self,
        key: str,
        api: Literal["openai", "anthropic"],
        lines: list[tuple[str, Seen]],
        facts: dict[str, Any],
    ) -> Batch:
        script = self._script
        plan = script.batch_plans.popleft() if script.batch_plans else script.batch_plan
        prefix = "batch_" if api == "openai" else "msgbatch_"
        batch = Batch(f"{prefix}{self.number():08d}", key, api, [], plan, facts)
        for custom_id, seen in lines:
            seen.batch_id, seen.custom_id = batch.id, custom_id
            batch.lines.append(Line(custom_id, seen))
        batch.unlisted, batch.lost, batch.late_files = plan.unlisted, plan.lost, plan.late_files
        self._by_id[batch.id] = batch
        return batch

    def find(self, key: str, batch_id: str) -> Batch | None:
        """Return a batch of this key, as a request about it finds it."""
        batch = self._by_id.get(batch_id)
        if batch is None or batch.key != key:
            return None
        if batch.lost:
            batch.lost -= 1
            return None
        return batch

    def listed(self, key: str, api: str) -> list[Batch]:
        """Return the batches of this key, newest first, as a list shows them."""
        found = []
        for batch in reversed(self._by_id.values()):
            if batch.key == key and batch.api == api:
                if batch.unlisted:
                    batch.unlisted -= 1
                else:
                    found.append(batch)
        return found

    def of_results(self, key: str, file_id: str) -> Batch | None:
        """Return the batch whose output or error file has this id."""
        batches = self._by_id.values()
        return next((b for b in batches if b.key == key and file_id in file_ids(b)), None)

    def delete(self, batch: Batch) -> None:
        del self._by_id[batch.id]

    async def cancel(self, batch: Batch) -> bool:
        """Begin the cancellation, if the batch has not ended."""
        if batch.phase in ("ended", "finalizing"):
            return False
        if batch.phase != "cancelling":
            batch.ends, batch.asked = "cancelled", 0
            batch.enter("cancelling")
        return True

    async def poll(self, batch: Batch) -> None:
        """Move a batch on by one request of its state."""
        batch.asked += 1
        plan, elapsed_s = batch.plan, time.time() - batch.created_at
        if batch.phase == "ended":
            batch.late_files = max(0, batch.late_files - 1)
            return
        if batch.phase == "validating":
            if not batch.errors and plan.ends != "failed":
                batch.enter("in_progress")
                if batch.asked <= plan.polls:
                    return
            else:
                batch.errors = batch.errors or [
                    {"code": plan.code, "message": plan.message, "param": None, "line": None}
                ]
                batch.ends = "failed"
                batch.enter("ended")
                return
        # A cancellation takes one request more, not the time of the batch.
        polls = 1 if batch.phase == "cancelling" else plan.polls
        is_due = batch.phase == "cancelling" or elapsed_s >= plan.seconds
        if batch.asked > polls and is_due:
            working = self._working.get(batch.id)
            if working is None:
                working = asyncio.ensure_future(self._work(batch))
                self._working[batch.id] = working
            await asyncio.shield(working)

    async def _work(self, batch: Batch) -> None:
        if batch.phase != "cancelling":
            batch.ends = batch.plan.ends
        count = len(batch.lines)
        answered = count if batch.ends == "completed" else int(count * batch.plan.answered)
        for number, line in enumerate(batch.lines):
            if number % _LINES_A_TURN == 0:
                await asyncio.sleep(0)
            if number < answered:
                self._answer(line)
            else:
                line.outcome = "expired" if batch.ends == "expired" else "cancelled"
        batch.times["finalizing"] = time.time()
        batch.enter("ended")

    def _answer(self, line: Line) -> None:
        script, seen = self._script, line.seen
        script.seen.append(seen)
        line.number = len(script.seen)
        line.fault = (
            script.line_fault(seen) or script.always.get(seen.model) or script.always.get("*")
        )
        if line.fault is not None:
            line.outcome = "errored"
            return
        line.answer = reply(seen, script.answer(seen))
        line.usage = self._usage(seen, line.answer)
        seen.billed, seen.completed, line.outcome = seen.usage, True, "succeeded"


def file_ids(batch: Batch) -> tuple[str, str]:
    """Return the ids of a batch's output file and error file."""
    number = batch.id.rpartition("_")[2]
    return f"file-output-{number}", f"file-errors-{number}"
