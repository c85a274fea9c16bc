"""Records how every input of a request ended, once per input, in the ledger and the metrics.

There is one object for each lifetime. RequestRecord: a request, from its plan to the last byte of
its reply. InputRecord: one of its inputs, with the input's ledger entry. StreamRecord: a streamed
answer, which ends when its last event is out.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from serving.contracts.answer import Answer, CacheKind, Route, Usage
from serving.contracts.batch import deferred
from serving.contracts.context import RequestContext
from serving.contracts.errors import NarrowgateError
from serving.contracts.evidence import Evidence
from serving.contracts.exits import DEFERRED, Attempt, Endpoint, Exit, ExitObserver
from serving.contracts.frontier import attempts_of
from serving.contracts.ledger import Entry, Ledger
from serving.contracts.requests import ChatRequest, CompletionRequest, TaskBatch
from serving.contracts.routing import Reason
from serving.pipeline.plan import Plan, Planner, TaskPlan

ABANDONED = "client_closed"
"""Error code of an input whose client disconnected before it was answered."""


@dataclass(frozen=True, slots=True)
class Served:
    """The ledger's fields of a model's answer, in whole or in part. Fields as those of Exit."""

    route: Route
    reason: Reason
    model: str
    usage: Usage | None
    attempts: tuple[Attempt, ...] = ()
    replica_s: float | None = None
    service_tier: str | None = None
    valid: bool = True
    guaranteed: bool | None = None
    evidence: Evidence | None = None
    claim: str | None = None
    reference_usage: Usage | None = None
    cache_entry: str | None = None
    avoided_usd: Decimal | None = None
    cache_kind: CacheKind | None = None


def under_claim(served: Served, claim: str) -> Served:
    """Return what was served, with a claim beside those under which it was served already.

    An answer that took several shortcuts names the claim of each, comma-separated.
    """
    names = claim if served.claim is None else f"{served.claim},{claim}"
    return replace(served, claim=names, evidence="traffic")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one input.

    content: a task's answer, an OpenAI document, or the error. served: None where no model was
    used. finish_reason: of a task's answer, as OpenAI names it. attestation: digest of the
    attestation that covers the answer. cost_usd: set once the input is recorded; None where
    unknown.
    """

    content: Answer | dict[str, Any] | NarrowgateError
    served: Served | None = None
    finish_reason: str = "stop"
    attestation: str | None = None
    cost_usd: Decimal | None = None


@dataclass(frozen=True, slots=True)
class OutcomeStream:
    """An answer that has begun. events: OpenAI chunks; may raise NarrowgateError.

    served: returns what was served so far; final once the events have ended or are closed.
    """

    route: Route
    reason: Reason
    model: str
    events: AsyncIterator[dict[str, Any]]
    served: Callable[[], Served]


class _Runner(Protocol):
    """What a record calls of serving.pipeline.runner.Runner, whose module imports this one."""

    async def whole(self, request: Any, plan: Any, record: "RequestRecord") -> list[Outcome]: ...

    async def stream(
        self, request: Any, plan: Any, record: "RequestRecord"
    ) -> Outcome | OutcomeStream: ...


_Runners = Mapping[type[Plan], _Runner]


@dataclass(frozen=True, slots=True)
class PlannedOutcome:
    """The outcome of a request's only input, and the plan that was run for it."""

    plan: Plan
    outcome: Outcome | OutcomeStream


@dataclass(slots=True)
class _Request:
    """The state that the records of one request share. task: set when the plan is known.

    vectors: of its texts, by text, as far as they were embedded.
    """

    context: RequestContext
    endpoint: Endpoint
    ledger: Ledger
    observer: ExitObserver
    task: str | None = None
    last_entry: Entry | None = None
    vectors: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    async def written(self) -> None:
        """Return when no closed input can be lost, or after the ledger's longest wait.

        Inputs with paid calls are on disk before the calls are made.
        """
        if self.last_entry is not None:
            # Entries are written in the order in which they were closed.
            await self.last_entry.written()


class InputRecord:
    """One input.

    reason: why it goes to its current model; None before the plan. serving: returns what the
    current model served so far; for an input that is abandoned. local_answer: the local model's,
    whichever answer is sent; evidence compares it. vector: of its text, where one was computed.
    closed: called with the cost of all its calls once it is recorded; where one is unknown, with
    the most that they can have cost.
    lookup_s: time of the cache's lookup, seconds. cost_usd: of all its calls, once it is recorded;
    None where unknown. left_as: error code of a request that ended before its answer, which is made
    for others; None elsewhere.
    refined_route: of the answer just before, where it repeats or corrects that question.
    cluster: of an open-ended chat, None elsewhere.
    """

    def __init__(self, request: _Request, index: int) -> None:
        self._request = request
        self._index = index
        self._entry: Entry | None = None
        self._attempts: tuple[Attempt, ...] = ()
        self.reason: Reason | None = None
        self.serving: Callable[[], Served] | None = None
        self.local_answer: Answer | None = None
        self.vector: NDArray[np.float32] | None = None
        self.closed: Callable[[Decimal], None] | None = None
        self.lookup_s: float | None = None
        self.refined_route: Route | None = None
        self.cost_usd: Decimal | None = None
        self.cluster: str | None = None
        self.is_open = True
        self.left_as: str | None = None

    @property
    def entry(self) -> Entry:
        """Return the ledger's entry, made at its first use; the task must be known by then."""
        if self._entry is None:
            request = self._request
            context = request.context
            self._entry = request.ledger.entry(
                context.caller,
                context.request_id,
                request.endpoint,
                request.task,
                self._index,
                context.arrived_at,
            )
        return self._entry

    def set_aside(self, attempt: Attempt | None, reason: Reason) -> None:
        """Record that the input goes to another model. attempt: the answer that is not used."""
        self._attempts = (*self._attempts, *([] if attempt is None else [attempt]))
        self.reason = reason
        self.serving = None

    def finish(self, outcome: Outcome) -> Outcome:
        """Record an outcome; return it with its cost."""
        content = outcome.content
        if isinstance(content, NarrowgateError):
            self.failed(content.code, attempts_of(content), outcome.served)
            return outcome
        assert outcome.served is not None
        cost_usd = self.answered(outcome.served)
        if isinstance(content, Answer):
            content = content.model_copy(update={"cost_usd": cost_usd})
        return replace(outcome, content=content, cost_usd=cost_usd)

    def answered(self, served: Served) -> Decimal | None:
        """Record an input that was answered; return its cost, US dollars, where known."""
        request = self._request
        if self.left_as is not None:
            return self.failed(self.left_as, served=served)
        return self._close(
            Exit(
                request.context.request_id, request.endpoint, request.task, served.route,
                served.reason, served.model, served.usage, request.context.elapsed_s,
                (*self._attempts, *served.attempts), served.valid, replica_s=served.replica_s,
                service_tier=served.service_tier, guaranteed=served.guaranteed,
                reference_usage=served.reference_usage,
                evidence=served.evidence, claim=served.claim, lookup_s=self.lookup_s,
                cache_entry=served.cache_entry, avoided_usd=served.avoided_usd,
                cache_kind=served.cache_kind, refined_route=self.refined_route,
                cluster=self.cluster,
            )
        )  # fmt: skip

    def failed(
        self, code: str, attempts: tuple[Attempt, ...] = (), served: Served | None = None
    ) -> Decimal | None:
        """Record an input that ended in an error; return its cost, US dollars, where known.

        served: the part of an answer that was made.
        """
        request = self._request
        reason, model, usage, replica_s, tier = self.reason, None, None, None, None
        if served is not None:
            reason, model, usage = reason or served.reason, served.model, served.usage
            replica_s, tier = served.replica_s, served.service_tier
            attempts = (*served.attempts, *attempts)
        return self._close(
            Exit(
                request.context.request_id, request.endpoint, request.task, "none", reason, model,
                usage, request.context.elapsed_s, (*self._attempts, *attempts), valid=False,
                error=code, replica_s=replica_s, service_tier=tier, lookup_s=self.lookup_s,
                refined_route=self.refined_route,
                cluster=self.cluster,
            )
        )  # fmt: skip

    def _close(self, exit_: Exit) -> Decimal | None:
        assert self.is_open, "an input was recorded twice"
        self.is_open = False
        entry = self.entry
        if not entry.is_recorded:
            self._request.last_entry = entry
        self.cost_usd = cost_usd = entry.close(exit_)
        self._request.observer.input_finished(exit_, cost_usd)
        if self.closed is not None:
            self.closed(entry.most_usd if cost_usd is None else cost_usd)
        return cost_usd


class RequestRecord:
    """One request, or the inputs of one that may outlive it.

    resources: released first at the end of its lifetime, in reverse order: admission and streams
    that last as long as the reply.
    """

    def __init__(
        self,
        request: _Request,
        inputs: Sequence[InputRecord],
        resources: AsyncExitStack,
        context: RequestContext,
    ) -> None:
        self._request = request
        self.context = context
        self.inputs = tuple(inputs)
        self.resources = resources
        self._detached: set[InputRecord] = set()

    @property
    def vectors(self) -> dict[str, NDArray[np.float32]]:
        """Return the vectors of the request's texts, by text; a step adds what it embeds."""
        return self._request.vectors

    def only(self, index: int) -> "RequestRecord":
        """Return the record of one input, for a runner of a single input."""
        return self.some((index,))

    @property
    def is_audit(self) -> bool:
        """Return whether no client asked: what is made is compared behind another request."""
        return self._request.endpoint == "audit"

    def some(self, indices: Sequence[int]) -> "RequestRecord":
        """Return the record of some inputs, for a runner of those."""
        chosen = [self.inputs[index] for index in indices]
        return RequestRecord(self._request, chosen, self.resources, self.context)

    def detached(self, indices: Sequence[int]) -> "RequestRecord":
        """Return the record of some inputs that may outlive the request: a lifetime of its own.

        Its deadline can be extended.
        """
        chosen = [self.inputs[index] for index in indices]
        self._detached.update(chosen)
        context = replace(self.context, deadline=self.context.deadline.extensible())
        return RequestRecord(self._request, chosen, AsyncExitStack(), context)

    def apart(self) -> "RequestRecord":
        """Return this record with resources of its own, for an attempt that may be given up.

        They are released with the request's own, or earlier by whoever closes them.
        """
        resources = AsyncExitStack()
        self.resources.push_async_callback(resources.aclose)
        return RequestRecord(self._request, self.inputs, resources, self.context)

    def abandon(self, code: str = ABANDONED) -> None:
        """Record that the request ended with a code, and that its answers are made for others.

        The first code counts.
        """
        for item in self.inputs:
            item.left_as = item.left_as or code

    def close(self) -> None:
        """Record the inputs that are still open as abandoned by their client."""
        self._record_open(None)

    def looked_up(self, lookup_s: float | None) -> None:
        """Record the time of the cache's lookup; None where nothing was looked up."""
        for item in self.inputs:
            item.lookup_s = lookup_s

    def belongs_to(self, task: str | None) -> None:
        """Record the task of the inputs; None where they belong to none."""
        self._request.task = task

    def planned(self, plan: Plan) -> None:
        """Record the plan: the task of the inputs, and the reason for the plan's model."""
        self.belongs_to(plan.batch.task if isinstance(plan, TaskPlan) else None)
        for item in self.inputs:
            item.reason = plan.reason

    async def run(
        self, planner: Planner, runners: _Runners, request: ChatRequest | CompletionRequest
    ) -> PlannedOutcome:
        """Plan the only input and run the plan; record its outcome, or follow its stream.

        runners: by kind of plan. The outcome has its cost. Raises what the planner and the runner
        raise; the end of the record's lifetime records it.
        """
        plan = await self._plan(planner, request)
        runner = runners[type(plan)]
        if request.stream:
            stream = await runner.stream(request, plan, self)
            return PlannedOutcome(plan, await self.follow(stream))
        (outcome,) = await self.finish(await runner.whole(request, plan, self))
        return PlannedOutcome(plan, outcome)

    async def run_batch(
        self, planner: Planner, runners: _Runners, batch: TaskBatch
    ) -> list[Outcome]:
        """Plan all inputs, run the plan, and record the outcomes. As `run`."""
        plan = await self._plan(planner, batch)
        return await self.finish(await runners[type(plan)].whole(batch, plan, self))

    async def _plan(
        self, planner: Planner, request: ChatRequest | CompletionRequest | TaskBatch
    ) -> Plan:
        plan = await planner.plan(request, self.context, self.vectors)
        self.planned(plan)
        return plan

    async def finish(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Record the inputs' outcomes and wait for the ledger; return them with their costs."""
        finished = [
            item.finish(outcome) for item, outcome in zip(self.inputs, outcomes, strict=True)
        ]
        await self._request.written()
        return finished

    async def follow(self, stream: Outcome | OutcomeStream) -> Outcome | OutcomeStream:
        """Return a stream that records its end; record an outcome that is already whole."""
        (item,) = self.inputs
        if isinstance(stream, Outcome):
            return (await self.finish([stream]))[0]
        record = StreamRecord(self._request, item, stream)
        item.serving = stream.served
        # Both: a generator that was never started cleans nothing up when it is closed.
        self.resources.push_async_callback(_close, stream.events)
        self.resources.push_async_callback(_close, record.events)
        return replace(stream, events=record.events)

    @asynccontextmanager
    async def lifetime(self) -> AsyncIterator[Self]:
        """Record every input that the body leaves open, whatever ends it. Once."""
        try:
            yield self
        except BaseException as error:  # cancellation too; re-raised
            await self._end(error)
            raise
        await self._end(None)

    async def _end(self, error: BaseException | None) -> None:
        """Release the resources, record open inputs, and wait for the ledger if a client waits.

        Without an error, an input that is still open was abandoned by its client.
        """
        try:
            # First: a call's usage is known when its connection is closed.
            await self.resources.aclose()
        finally:
            self._record_open(error)
        if error is None or isinstance(error, Exception):
            await self._request.written()

    def _record_open(self, error: BaseException | None) -> None:
        attempts: tuple[Attempt, ...] = ()
        match error:
            case NarrowgateError():
                code, attempts = error.code, attempts_of(error)
            case Exception() if deferred(error) is not None:
                code = DEFERRED
            case Exception():
                code = NarrowgateError.code
            case _:
                code = ABANDONED
        for item in self.inputs:
            if item.is_open and item not in self._detached:
                served = item.serving() if item.serving else None
                item.failed(item.left_as or code, attempts, served)


class StreamRecord:
    """One streamed answer: passes its events on and records its end."""

    def __init__(self, request: _Request, item: InputRecord, stream: OutcomeStream) -> None:
        self._request = request
        self._item = item
        self._stream = stream
        self.events = self._passed()

    async def _passed(self) -> AsyncIterator[dict[str, Any]]:
        try:
            async for event in self._stream.events:
                yield event
        except NarrowgateError as error:
            self._item.failed(error.code, attempts_of(error), self._stream.served())
            raise
        self._item.answered(self._stream.served())
        await self._request.written()


@dataclass(frozen=True, slots=True)
class ExitRecorder:
    """Opens the record of each request. One for the process."""

    ledger: Ledger
    observer: ExitObserver

    def open(
        self, context: RequestContext, endpoint: Endpoint, inputs: int = 1
    ) -> AbstractAsyncContextManager[RequestRecord]:
        """Return the record of a request with that many inputs, to be entered with `async with`."""
        request = _Request(context, endpoint, self.ledger, self.observer)
        items = [InputRecord(request, index) for index in range(inputs)]
        return RequestRecord(request, items, AsyncExitStack(), context).lifetime()


async def _close(events: AsyncIterator[Any]) -> None:
    # Closing cancels the call upstream; the garbage collector would do it too late.
    close = getattr(events, "aclose", None)
    if close is not None:
        await close()
