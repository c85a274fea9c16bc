"""Answers FrontierCalls: calls targets one after the other, or with hedging the second while the
first sends nothing.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Generic, TypeVar

from serving.contracts.answer import Usage
from serving.contracts.deadline import Deadline
from serving.contracts.errors import (
    BudgetExceeded,
    FrontierError,
    FrontierNotConfigured,
    FrontierRejected,
    NarrowgateError,
    UnsupportedParameter,
)
from serving.contracts.exits import Attempt
from serving.contracts.frontier import Completion, CompletionStream, FrontierCall, with_attempts
from serving.contracts.frontier_settings import FrontierSettings
from serving.contracts.prices import STANDARD_NAMES, ModelPrices, PriceList
from serving.frontier.bounds import batch_worst_case_usd, worst_case_usd
from serving.frontier.events import FrontierEvents
from serving.frontier.failures import may_fall_back
from serving.frontier.prefixes import PrefixWatch
from serving.frontier.prepared_call import PreparedCall, prepare
from serving.frontier.provider import OpenStream, Provider, TargetCall
from serving.frontier.provider_api import CachePlan
from serving.frontier.spent import RequestFacts, Spent

T = TypeVar("T")

Failure = FrontierError | BudgetExceeded
_FAILURES = (FrontierError, BudgetExceeded)


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A request that goes into a batch of a target's provider.

    body: the provider's own request. worst_case_usd: at batch prices. facts: to check its usage.
    """

    target: str
    body: dict[str, Any]
    worst_case_usd: Decimal
    facts: RequestFacts


@dataclass(frozen=True, slots=True)
class TargetCalls(Generic[T]):
    """How targets are called.

    call: calls one target. fell_back: called with (from, to, reason). discard: ends an answer that
    arrived together with the one that is used. lost: called with a target whose call was cancelled.
    after_timeout: a target that timed out is followed by the next, and both may be billed.
    """

    call: Callable[[str], Awaitable[T]]
    fell_back: Callable[[str, str, str], None]
    discard: Callable[[T], Awaitable[None]]
    lost: Callable[[str], None]
    after_timeout: bool = False

    def may_fall_back(self, error: "Failure") -> bool:
        """Return whether the next target may be called after an error."""
        return may_fall_back(error, after_timeout=self.after_timeout)


class FrontierStack:
    """Implements serving.contracts.frontier.Frontier; build it with build_frontier."""

    def __init__(
        self,
        settings: FrontierSettings,
        providers: Mapping[str, Provider],
        prices: PriceList,
        events: FrontierEvents,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._providers = providers
        self._prices = prices
        self._events = events
        self._prefixes = PrefixWatch(settings.prompt_cache, events, clock)

    def configured(self, targets: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of the targets whose provider has a key (or needs none)."""
        return tuple(t for t in targets if t.partition("/")[0] in self._providers)

    async def complete(self, call: FrontierCall) -> Completion:
        """Return the answer of the first target that gives one. Raises as Frontier says."""
        prepared = self._prepared(call)

        async def call_target(target: str) -> Completion:
            provider, request = self._request(prepared, target)
            answer = await provider.whole(request)
            assert answer.usage is not None
            return Completion(answer.body, target, answer.usage, service_tier=answer.service_tier)

        async def discard(completion: Completion) -> None:
            prepared.lost(completion.model, completion.usage)

        completion = await self._answered(prepared, call_target, discard)
        self._prefixes.answered(prepared.prompt, completion.model, completion.usage)
        return replace(completion, attempts=tuple(prepared.attempts))

    async def stream(self, call: FrontierCall) -> CompletionStream:
        """Return the answer of the first target that begins one. Raises as `complete`."""
        prepared = self._prepared(call)

        async def call_target(target: str) -> tuple[str, OpenStream]:
            provider, request = self._request(prepared, target)
            return target, await provider.stream(request)

        async def discard(opened: tuple[str, OpenStream]) -> None:
            prepared.lost(opened[0])
            await opened[1].aclose()

        target, opened = await self._answered(prepared, call_target, discard)
        return _completion_stream(
            target,
            opened,
            tuple(prepared.attempts),
            lambda usage: self._prefixes.answered(prepared.prompt, target, usage),
        )

    def batch_targets(self, targets: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of the targets whose provider has a key and a batch API."""
        found = self.configured(targets)
        return tuple(t for t in found if self._providers[t.partition("/")[0]].settings.has_batches)

    def batch_request(self, call: FrontierCall) -> BatchRequest:
        """Return a call as a line of a batch of its first target that has a batch API.

        Nothing is sent or recorded. No prefix is cached: a batch's lines run at any time and in any
        order. Raises FrontierNotConfigured without such a target, UnsupportedParameter and
        InvalidRequest, UnpricedModel, MaxCostExceeded, DeadlineExceeded, FrontierRejected.
        """
        targets = self.batch_targets(call.targets)
        if not targets:
            raise FrontierNotConfigured(
                f"none of the providers of {', '.join(call.targets) or 'no target'} has a key and "
                "a batch API",
                field="frontier.providers",
                fix="set a provider's key, and its `batch: true` where it is at another address",
            )
        call = replace(call, body=_without_tier(call.body))
        prepared = self._checked(call, targets, batch_worst_case_usd)
        target = prepared.targets[0]
        body = self._provider_body(prepared, target, CachePlan())
        worst_usd = prepared.charges[target].worst_case_usd
        return BatchRequest(target, body, worst_usd, prepared.facts)

    async def aclose(self) -> None:
        """End abandoned streams and close every provider's connections."""
        for provider in self._providers.values():
            await provider.aclose()

    def _prepared(self, call: FrontierCall) -> PreparedCall:
        """Return the call for those of its targets that may be called.

        Raises FrontierNotConfigured, and what `prepare` raises.
        """
        targets = self.configured(call.targets)
        if not targets:
            raise FrontierNotConfigured(
                f"none of the providers of {', '.join(call.targets) or 'no target'} has a key",
                field="frontier.providers",
                fix="set a provider's key, or mark it keyless",
            )
        prepared = self._checked(call, targets)
        self._prefixes.observe(call.purpose, prepared.prompt)
        prices = prepared.charges[prepared.targets[0]].prices
        equal = [t for t in prepared.targets if prepared.charges[t].prices == prices]
        first = self._prefixes.warm_first(prepared.prompt, equal)
        others = (target for target in prepared.targets if target != first)
        return replace(prepared, targets=(first, *others))

    def _checked(
        self,
        call: FrontierCall,
        targets: tuple[str, ...],
        worst_case: Callable[[Mapping[str, Any], ModelPrices], Decimal] = worst_case_usd,
    ) -> PreparedCall:
        extra = {t: self._providers[t.partition("/")[0]].settings.extra_fields for t in targets}
        marker = self._settings.prompt_cache.marker
        return prepare(call, extra, self._prices, marker, worst_case)

    def _request(self, prepared: PreparedCall, target: str) -> tuple[Provider, TargetCall]:
        name, _, model = target.partition("/")
        provider = self._providers[name]
        charge = prepared.charges[target]
        plan = self._prefixes.plan(prepared.call.purpose, prepared.prompt, charge.prices, model)
        remaining_s = prepared.call.deadline.remaining_s()
        prepared.called_at_s[target] = time.monotonic()
        request = self._provider_body(prepared, target, plan)
        return provider, TargetCall(
            model,
            request,
            prepared.call.deadline,
            # Waiting for a place must leave time for the next target.
            math.inf if target == prepared.targets[-1] else remaining_s / 2,
            prepared.call.entry,
            charge.worst_case_usd,
            prepared.facts,
            prepared.attempts,
            self._prefixes.recorded(prepared.prompt, model),
        )

    def _provider_body(
        self, prepared: PreparedCall, target: str, plan: CachePlan
    ) -> dict[str, Any]:
        """Return the provider's own request. Raises FrontierRejected."""
        name, _, model = target.partition("/")
        provider, body = self._providers[name], prepared.prompt.body
        if not prepared.call.bounds.thinking and provider.api.thinks_by_default:
            body = {"reasoning_effort": "none", **body}
        try:
            return provider.api.request(body, model, plan)
        except FrontierRejected as error:
            # A directive may have been put before the client's messages.
            added = len(body["messages"]) - len(prepared.call.body.get("messages") or ())
            error.field = _clients_path(error.field, added)
            raise

    async def _answered(
        self,
        prepared: PreparedCall,
        call_target: Callable[[str], Awaitable[T]],
        discard: Callable[[T], Awaitable[None]],
    ) -> T:
        calls = TargetCalls(
            call_target,
            self._events.fell_back,
            discard,
            prepared.lost,
            self._settings.fall_back_after_timeout,
        )
        after_s = self._settings.hedge_after_s
        try:
            if after_s is not None and self._may_pay_twice(prepared):
                return await hedged(prepared.targets, calls, prepared.call.deadline, after_s)
            return await in_order(prepared.targets, calls, prepared.call.deadline)
        except NarrowgateError as error:
            with_attempts(error, tuple(prepared.attempts))
            raise

    def _may_pay_twice(self, prepared: PreparedCall) -> bool:
        """Return whether the two most expensive answers together stay within the client's limit."""
        if prepared.call.max_cost_usd is None:
            return True
        costs = sorted(prepared.charges[t].worst_case_usd for t in prepared.targets)
        return sum(costs[-2:]) <= prepared.call.max_cost_usd


def _without_tier(body: dict[str, Any]) -> dict[str, Any]:
    """Return a body without the standard service tier. Raises UnsupportedParameter for another."""
    tier = body.get("service_tier")
    if tier is not None and not (isinstance(tier, str) and tier in STANDARD_NAMES):
        raise UnsupportedParameter(
            f"service_tier is {tier!r}, and a batch is a tier of its own",
            field="service_tier",
            fix="leave it out",
        )
    return {name: value for name, value in body.items() if name != "service_tier"}


def _clients_path(field: str | None, added: int) -> str | None:
    """Return the path of a field in the client's own request. added: messages put before it."""
    name, _, rest = (field or "").partition(".")
    index, dot, inner = rest.partition(".")
    if name != "messages" or not index.isdecimal() or int(index) < added:
        return field
    return f"messages.{int(index) - added}{dot}{inner}"


def _completion_stream(
    target: str,
    opened: OpenStream,
    attempts: tuple[Attempt, ...],
    answered: Callable[[Usage], None],
) -> CompletionStream:
    """Return an opened stream for callers. answered: called with the reported usage."""
    events = _Chunks(opened, answered)
    stream = CompletionStream(target, events, attempts)
    events.stream = stream
    return stream


class _Chunks:
    """The chunks of a stream; sets the stream's usage and closes the connection at the end."""

    stream: CompletionStream

    def __init__(self, opened: OpenStream, answered: Callable[[Usage], None]) -> None:
        self._opened = opened
        self._chunks = opened.chunks()
        self._answered = answered

    def __aiter__(self) -> "_Chunks":
        return self

    async def __anext__(self) -> dict[str, Any]:
        try:
            return await anext(self._chunks)
        except BaseException as error:  # cancellation too: usage so far is recorded; re-raised
            spent = self._note_usage()
            if isinstance(error, StopAsyncIteration) and spent.source == "reported" and spent.usage:
                self._answered(spent.usage)
            raise

    async def aclose(self) -> None:
        """Close the connection to the provider, or drain it in the background. May be repeated."""
        self._note_usage()
        await self._chunks.aclose()
        # A generator that never started runs no `finally`.
        await self._opened.aclose()

    def _note_usage(self) -> Spent:
        spent = self._opened.spent
        self.stream.usage, self.stream.service_tier = spent.usage, spent.service_tier
        return spent


async def in_order(targets: Sequence[str], calls: TargetCalls[T], deadline: Deadline) -> T:
    """Return the first answer; call a target only when the one before it failed.

    Raises the error of the last target called, or at once one after which none may be called.
    """
    for target, following in zip(targets, [*targets[1:], None], strict=True):
        try:
            return await calls.call(target)
        except _FAILURES as error:
            if following is None or not calls.may_fall_back(error) or not deadline.remaining_s():
                raise
            calls.fell_back(target, following, error.code)
    raise AssertionError("at least one target")


async def hedged(
    targets: Sequence[str], calls: TargetCalls[T], deadline: Deadline, after_s: float
) -> T:
    """As `in_order`, but call the next target also when the first sends nothing for after_s.

    At most two calls are in progress. The first answer is used and the other call is cancelled;
    both may be billed.
    """
    waiting = list(targets)
    running: dict[asyncio.Task[T], str] = {}
    last: Failure | None = None
    try:
        while running or _go_on(last, waiting, deadline):
            if not running:
                _start(waiting, calls, running)
            may_hedge = bool(waiting) and len(running) == 1
            done, _ = await asyncio.wait(
                running,
                timeout=after_s if may_hedge else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not done:
                calls.fell_back(next(iter(running.values())), waiting[0], "hedge")
                _start(waiting, calls, running)
            for task in sorted(done, key=lambda task: task.exception() is not None):
                target = running.pop(task)
                try:
                    return task.result()
                except _FAILURES as error:
                    last = error
                    if not calls.may_fall_back(error):
                        waiting.clear()
                    if not running and _go_on(last, waiting, deadline):
                        calls.fell_back(target, waiting[0], error.code)
    finally:
        await _end(running, calls)
    assert last is not None
    raise last


def _go_on(last: Failure | None, waiting: Sequence[str], deadline: Deadline) -> bool:
    return bool(waiting) and (last is None or bool(deadline.remaining_s()))


def _start(waiting: list[str], calls: TargetCalls[T], running: dict[asyncio.Task[T], str]) -> None:
    target = waiting.pop(0)
    running[asyncio.ensure_future(calls.call(target))] = target


async def _end(running: dict[asyncio.Task[T], str], calls: TargetCalls[T]) -> None:
    """Cancel running calls and wait for them; end answers that are not used."""
    for task in running:
        task.cancel()
    results = await asyncio.gather(*running, return_exceptions=True)
    for target, result in zip(running.values(), results, strict=True):
        if isinstance(result, asyncio.CancelledError):
            calls.lost(target)
        elif not isinstance(result, BaseException):
            await calls.discard(result)
