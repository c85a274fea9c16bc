"""Checks a batch's file in one pass: every bad line is found before anything is spent."""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Literal

from serving.batch.lines import (
    BadLine,
    LineFormat,
    LineRequest,
    RawLine,
    bad,
    raw_lines,
    read_line,
)
from serving.contracts.batch import MAX_REPORTED, Checked, LineProblem, PlannedRoute
from serving.contracts.context import RequestContext
from serving.contracts.deadline import Deadline
from serving.contracts.errors import FrontierNotConfigured, InputTooLong, NarrowgateError
from serving.contracts.frontier import OutputBounds
from serving.contracts.ledger import Caller
from serving.contracts.requests import AUTO, ChatRequest, TaskBatch
from serving.pipeline.plan import FrontierPlan, LocalPlan, Policy, TaskPlan, choose_plan
from serving.pipeline.read import read_chat, read_tasks

logger = logging.getLogger(__name__)

Estimate = Callable[[ChatRequest | TaskBatch, FrontierPlan], Decimal | None]
"""Returns the worst case of a request at the first target of a plan, US dollars."""

Reference = Callable[[ChatRequest | TaskBatch, OutputBounds], Decimal | None]
"""Returns the worst case of a request at the reference model, asked synchronously, US dollars."""

EqualKey = Callable[[ChatRequest | TaskBatch, RequestContext], str | None]
"""Returns what equal requests have in common, whose answers the cache shares; None for none."""

_ANY_TIME_S = 3600.0
_SLICE_S = 0.002
"""Time of a check between two calls of `breathe`: less than Python's 5 ms between threads."""


@dataclass(frozen=True, slots=True)
class GoodLine:
    """A line that can be run. target: the provider's model that it names, None without one.

    worst_usd: its worst case, asked synchronously; None where no price is known, or no provider can
    be asked. batch_usd: in a provider's batch; None where it goes into none. same_as: the number of
    an earlier line whose answer is its own too.
    """

    number: int
    custom_id: str
    start: int
    length: int
    target: str | None = None
    worst_usd: Decimal | None = None
    batch_usd: Decimal | None = None
    same_as: int | None = None


@dataclass(frozen=True, slots=True)
class _Planned:
    """How a line will run. key: that of equal requests; None where it is not shared."""

    target: str | None
    worst_usd: Decimal | None
    batch_usd: Decimal | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class LineRules:
    """What a line is checked against.

    model_of: the local model of a task, None without one. longest: bytes of a line. max_lines: of a
    batch. estimate, reference: None where no worst case can be given. in_batch: as estimate, in a
    provider's batch. held: as estimate, as the ledger holds it; estimate by default. key_of: see
    EqualKey; None without a cache. breathe: called in a check's thread with the seconds that it has
    worked; waits for as long as other threads are to go first.
    """

    policy: Policy
    line_format: LineFormat
    model_of: Callable[[str], str | None]
    max_inputs: int
    longest: int
    max_lines: int
    estimate: Estimate | None = None
    reference: Reference | None = None
    in_batch: Estimate | None = None
    held: Estimate | None = None
    key_of: EqualKey | None = None
    breathe: Callable[[float], None] = lambda worked_s: None


@dataclass(slots=True)
class FileCheck:
    """One pass over a file. problems: the first MAX_REPORTED; others are counted."""

    rules: LineRules
    endpoint: str
    caller: Caller
    problems: list[LineProblem] = field(default_factory=list)
    more_problems: int = 0
    good: int = 0
    _seen: dict[str, int] = field(default_factory=dict)
    _equal: dict[bytes, int] = field(default_factory=dict)
    _lines: Counter[tuple[Literal["local", "frontier", "auto"], str]] = field(
        default_factory=Counter
    )
    _usd: dict[tuple[str, str], Decimal | None] = field(default_factory=dict)
    _reference_usd: dict[tuple[str, str], Decimal | None] = field(default_factory=dict)
    _batch_usd: dict[tuple[str, str], Decimal | None] = field(default_factory=dict)

    def good_lines(self, pieces: Iterable[bytes]) -> Iterator[GoodLine]:
        """Yield the good lines of a file, and keep what is wrong with the others."""
        return (line for line in self.found(pieces) if line is not None)

    def found(self, pieces: Iterable[bytes]) -> Iterator[GoodLine | None]:
        """As `good_lines`, with None for each line that is wrong: those take time, too."""
        count, began_s = 0, time.perf_counter()
        for raw in raw_lines(pieces, self.rules.longest):
            count += 1
            worked_s = time.perf_counter() - began_s
            if worked_s >= _SLICE_S:
                self.rules.breathe(worked_s)
                began_s = time.perf_counter()
            if count > self.rules.max_lines:
                self._note("too_many_lines", f"the file holds more than {self.rules.max_lines} "
                           "lines; split it into several files", None)  # fmt: skip
                return
            try:
                found = self._checked(raw)
            except BadLine as problem:
                self._note(problem.code, problem.message, raw.number, problem.param)
                yield None
                continue
            self.good += 1
            yield found
        if not count:
            self._note("empty_file", "the file holds no line", None)

    def steps(self, pieces: Iterable[bytes]) -> Iterator[None]:
        """Check a file, a line with each step, and keep nothing of its good lines."""
        for _ in self.found(pieces):
            yield

    def give_up(self, problem: LineProblem) -> None:
        """Forget what was found: this problem is that of the whole file."""
        self.good, self.more_problems = 0, 0
        self.problems[:] = [problem]
        self._lines.clear()

    def result(self) -> Checked:
        """Return what was found."""
        problems = list(self.problems)
        if self.more_problems:
            text = f"{self.more_problems} more lines are wrong; the first {MAX_REPORTED} are named"
            problems.append(LineProblem("more_problems", text))
        plan = tuple(
            PlannedRoute(
                route,
                model,
                count,
                self._usd[route, model],
                self._reference_usd[route, model],
                self._batch_usd[route, model],
            )
            for (route, model), count in sorted(self._lines.items())
        )
        return Checked(self.good, tuple(problems), plan)

    def _note(self, code: str, message: str, line: int | None, param: str | None = None) -> None:
        if len(self.problems) < MAX_REPORTED:
            self.problems.append(LineProblem(code, message, line, param))
        else:
            self.more_problems += 1

    def _checked(self, raw: RawLine) -> GoodLine:
        """Return a line that can be run. Raises BadLine."""
        try:
            return self._good(raw)
        except BadLine:
            raise
        except Exception as error:
            # The edge of a line: a defect that one line shows must not keep its batch from an end.
            # Only the kind of error: its message may hold the line's text.
            logger.error("batch.line_unchecked error=%s", type(error).__name__)  # noqa: TRY400
            raise BadLine("internal_error", "the line could not be checked") from error

    def _good(self, raw: RawLine) -> GoodLine:
        if raw.data is None:
            raise BadLine("line_too_long", f"the line has over {self.rules.longest} bytes")
        if not raw.data.strip():
            raise BadLine("empty_line", "the line is empty; only the last may be")
        line = read_line(raw.data, self.endpoint, self.rules.line_format)
        first = self._seen.setdefault(line.custom_id, raw.number)
        if first != raw.number:
            message = f"custom_id {line.custom_id[:60]!r} is that of line {first}"
            raise BadLine("duplicate_custom_id", message, "custom_id")
        planned = self._planned(line)
        return GoodLine(
            raw.number, line.custom_id, raw.start, len(raw.data), planned.target,
            planned.worst_usd, planned.batch_usd, self._same_as(raw.number, planned.key),
        )  # fmt: skip

    def _same_as(self, number: int, key: str | None) -> int | None:
        """Return the number of the first line that is the same request; None for the first."""
        if key is None:
            return None
        digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
        first = self._equal.setdefault(digest, number)
        return None if first == number else first

    def _planned(self, line: LineRequest) -> _Planned:
        """Return how a line will run. Raises BadLine."""
        try:
            return self._plan(line)
        except NarrowgateError as error:
            raise bad(error) from error

    def _plan(self, line: LineRequest) -> _Planned:
        rules = self.rules
        context = RequestContext("check", self.caller, line.options, Deadline.after(_ANY_TIME_S))
        request: ChatRequest | TaskBatch
        if line.task is None:
            request = read_chat(line.body, rules.max_inputs)
        else:
            request = read_tasks(line.task, line.body, rules.policy.specs, rules.max_inputs)
            if request.refused:
                raise next(iter(request.refused.values()))
        found = self._routed(request, context)
        key = None if rules.key_of is None else rules.key_of(request, context)
        return replace(found, key=key)

    def _routed(self, request: ChatRequest | TaskBatch, context: RequestContext) -> _Planned:
        rules, bounds = self.rules, self.rules.policy.bounds["frontier"]
        if isinstance(request, ChatRequest) and request.model == AUTO:
            return self._counted("auto", AUTO, None, self._reference(request, bounds))
        plan = choose_plan(request, context, rules.policy)
        match plan:
            case LocalPlan(model=model):
                reference = self._reference(request, bounds)
                return self._counted("local", model, Decimal(0), reference)
            case FrontierPlan():
                return self._paid(request, plan)
            case TaskPlan():
                return self._task(plan)

    def _task(self, plan: TaskPlan) -> _Planned:
        batch, rules = plan.batch, self.rules
        model = rules.model_of(batch.task)
        if model is None or not plan.local:
            return self._paid(batch, plan.fallback)
        longest = max(len(one.text) for one in batch.requests)
        limit = rules.policy.local_models.get(model)
        if limit is not None and longest > limit and not plan.escalate_on:
            raise InputTooLong(
                f"the input is {longest} characters long, and at most {limit} can fit the window "
                f"of {model!r}",
                field="input",
                fix="shorten the text",
            )
        escalated = self._worst(batch, plan.fallback) if plan.escalate_on else Decimal(0)
        reference = self._reference(batch, plan.fallback.bounds)
        found = self._counted("local", model, escalated, reference)
        if not plan.escalate_on:
            return found
        held = self._held(batch, plan.fallback)
        return replace(found, worst_usd=held, batch_usd=self._in_batch(batch, plan.fallback))

    def _paid(self, request: ChatRequest | TaskBatch, plan: FrontierPlan) -> _Planned:
        targets = self.rules.policy.configured(plan.targets)
        if not targets:
            raise FrontierNotConfigured(
                f"none of the providers of {', '.join(plan.targets)} has a key",
                field="model",
                fix="set a provider's key, or name another model",
            )
        reference = self._reference(request, plan.bounds)
        worst, in_batch = self._worst(request, plan), self._in_batch(request, plan)
        self._counted("frontier", targets[0], worst, reference, in_batch)
        target = targets[0] if isinstance(request, ChatRequest) else None
        return _Planned(target, self._held(request, plan), in_batch)

    def _in_batch(self, request: ChatRequest | TaskBatch, plan: FrontierPlan) -> Decimal | None:
        # Lines of several inputs are asked synchronously: some of them may be answered before.
        is_one = isinstance(request, ChatRequest) or not request.is_list
        if self.rules.in_batch is None or not is_one:
            return None
        return self.rules.in_batch(request, plan)

    def _worst(self, request: ChatRequest | TaskBatch, plan: FrontierPlan) -> Decimal | None:
        return None if self.rules.estimate is None else self.rules.estimate(request, plan)

    def _held(self, request: ChatRequest | TaskBatch, plan: FrontierPlan) -> Decimal | None:
        held = self.rules.held or self.rules.estimate
        return None if held is None else held(request, plan)

    def _reference(self, request: ChatRequest | TaskBatch, bounds: OutputBounds) -> Decimal | None:
        rules = self.rules
        return None if rules.reference is None else rules.reference(request, bounds)

    def _counted(
        self,
        route: Literal["local", "frontier", "auto"],
        model: str,
        worst: Decimal | None,
        reference: Decimal | None,
        in_batch: Decimal | None = None,
    ) -> _Planned:
        self._lines[route, model] += 1
        known = (
            (self._usd, worst), (self._reference_usd, reference), (self._batch_usd, in_batch),
        )  # fmt: skip
        for sums, usd in known:
            before = sums.get((route, model), Decimal(0))
            sums[route, model] = None if before is None or usd is None else before + usd
        return _Planned(None, worst)
