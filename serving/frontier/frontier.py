"""Answers FrontierCalls: prepares each request and asks its targets in order."""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, TypeVar

from serving.contracts.answer import Usage
from serving.contracts.deadline import deadline_exceeded
from serving.contracts.errors import (
    FrontierNotConfigured,
    FrontierRejected,
    MaxCostExceeded,
    NarrowgateError,
    UnsupportedParameter,
)
from serving.contracts.exits import Attempt
from serving.contracts.frontier import Completion, CompletionStream, FrontierCall, with_attempts
from serving.contracts.frontier_settings import FrontierSettings
from serving.contracts.prices import PriceList, TokenPrices, unpriced
from serving.frontier.bounds import bounded, token_limits, worst_case_usd
from serving.frontier.cache_policy import CachePolicy
from serving.frontier.events import FrontierEvents
from serving.frontier.fallback import TargetCalls, hedged, in_order
from serving.frontier.prefix_lint import PrefixLinter
from serving.frontier.prefixes import PrefixWatch
from serving.frontier.prompt_cache import SplitPrompt, canonical, split_prompt
from serving.frontier.provider import OpenStream, Provider, TargetCall
from serving.frontier.request_fields import passed_fields
from serving.frontier.spent import RequestFacts, Spent
from serving.frontier.usage import quarter_tokens

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Charge:
    """The charge of a target for a call. prices: those of a short request."""

    prices: TokenPrices
    worst_case_usd: Decimal


@dataclass(frozen=True, slots=True)
class _PreparedCall:
    """One FrontierCall, bounded and without markers.

    targets: those that may be called, in order. charges: by target. attempts: failed calls so far.
    called_at_s: when each target was first called, monotonic seconds.
    """

    call: FrontierCall
    prompt: SplitPrompt
    facts: RequestFacts
    targets: tuple[str, ...]
    charges: Mapping[str, _Charge]
    attempts: list[Attempt]
    called_at_s: dict[str, float]

    def lost(self, target: str, usage: Usage | None = None) -> None:
        """Record a call of a hedged pair whose answer is not used; it may be billed."""
        if target in self.called_at_s:
            elapsed_s = time.monotonic() - self.called_at_s[target]
            self.attempts.append(Attempt(target, "hedge_lost", elapsed_s, usage))


class FrontierStack:
    """Implements serving.contracts.frontier.Frontier; build it with build_frontier."""

    def __init__(
        self,
        settings: FrontierSettings,
        providers: Mapping[str, Provider],
        prices: PriceList,
        events: FrontierEvents,
    ) -> None:
        self._settings = settings
        self._providers = providers
        self._prices = prices
        self._events = events
        self._prefixes = PrefixWatch(
            CachePolicy(settings.prompt_cache),
            PrefixLinter(settings.prompt_cache.tracked_prefixes),
            events,
        )

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
        self._prefixes.answered(prepared.prompt.prefixes, completion.usage)
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
            lambda usage: self._prefixes.answered(prepared.prompt.prefixes, usage),
        )

    async def aclose(self) -> None:
        """End abandoned streams and close every provider's connections."""
        for provider in self._providers.values():
            await provider.aclose()

    def _prepared(self, call: FrontierCall) -> _PreparedCall:
        """Check, bound and price a call.

        Raises FrontierNotConfigured, UnsupportedParameter, InvalidRequest, UnpricedModel,
        MaxCostExceeded, DeadlineExceeded.
        """
        targets = self.configured(call.targets)
        if not targets:
            raise FrontierNotConfigured(
                f"none of the providers of {', '.join(call.targets) or 'no target'} has a key",
                field="frontier.providers",
                fix="set a provider's key, or mark it keyless",
            )
        targets, fields = self._accepting(targets, call.body)
        prompt = split_prompt(bounded(fields, call.bounds), self._settings.prompt_cache.marker)
        charges = self._charges(targets, prompt.body)
        targets = _affordable(call, charges)
        if not call.deadline.remaining_s():
            raise deadline_exceeded()
        self._prefixes.observe(call.purpose, prompt.prefixes)
        messages = prompt.body["messages"]
        facts = RequestFacts(token_limits(prompt.body), lambda: quarter_tokens(canonical(messages)))
        return _PreparedCall(call, prompt, facts, targets, charges, [], {})

    def _accepting(
        self, targets: tuple[str, ...], body: Mapping[str, Any]
    ) -> tuple[tuple[str, ...], dict[str, Any]]:
        """Return the targets to which every field may be passed on, and the fields."""
        extra = {t: self._providers[t.partition("/")[0]].settings.extra_fields for t in targets}
        refusal: UnsupportedParameter | None = None
        accepted: list[str] = []
        fields: dict[str, Any] = {}
        for target in targets:
            try:
                fields = passed_fields(body, extra[target])
                accepted.append(target)
            except UnsupportedParameter as error:
                refusal = error
        if not accepted:
            assert refusal is not None
            raise refusal
        return tuple(accepted), fields

    def _charges(self, targets: tuple[str, ...], body: Mapping[str, Any]) -> dict[str, _Charge]:
        """Return the charges of the targets that have a price; the others cannot be recorded."""
        found = {t: prices for t in targets if (prices := self._prices.of(t)) is not None}
        if not found:
            raise unpriced(targets, "model")
        return {t: _Charge(p.base, worst_case_usd(body, p)) for t, p in found.items()}

    def _request(self, prepared: _PreparedCall, target: str) -> tuple[Provider, TargetCall]:
        name, _, model = target.partition("/")
        provider = self._providers[name]
        charge = prepared.charges[target]
        plan = self._prefixes.plan(prepared.prompt.prefixes, charge.prices)
        remaining_s = prepared.call.deadline.remaining_s()
        prepared.called_at_s[target] = time.monotonic()
        body = prepared.prompt.body
        if not prepared.call.bounds.thinking and provider.api.thinks_by_default:
            body = {"reasoning_effort": "none", **body}
        try:
            request = provider.api.request(body, model, plan)
        except FrontierRejected as error:
            # A directive may have been put before the client's messages.
            added = len(body["messages"]) - len(prepared.call.body.get("messages") or ())
            error.field = _clients_path(error.field, added)
            raise
        return provider, TargetCall(
            model,
            request,
            prepared.call.deadline,
            # Waiting for a place must leave time for the next target.
            remaining_s if target == prepared.targets[-1] else remaining_s / 2,
            prepared.call.entry,
            charge.worst_case_usd,
            prepared.facts,
            prepared.attempts,
        )

    async def _answered(
        self,
        prepared: _PreparedCall,
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

    def _may_pay_twice(self, prepared: _PreparedCall) -> bool:
        """Return whether the two most expensive answers together stay within the client's limit."""
        if prepared.call.max_cost_usd is None:
            return True
        costs = sorted(prepared.charges[t].worst_case_usd for t in prepared.targets)
        return sum(costs[-2:]) <= prepared.call.max_cost_usd


def _clients_path(field: str | None, added: int) -> str | None:
    """Return the path of a field in the client's own request. added: messages put before it."""
    name, _, rest = (field or "").partition(".")
    index, dot, inner = rest.partition(".")
    if name != "messages" or not index.isdecimal() or int(index) < added:
        return field
    return f"messages.{int(index) - added}{dot}{inner}"


def _affordable(call: FrontierCall, charges: Mapping[str, _Charge]) -> tuple[str, ...]:
    """Return the targets that cannot cost more than the client allows."""
    limit = call.max_cost_usd
    if limit is None:
        return tuple(charges)
    kept = tuple(t for t, charge in charges.items() if charge.worst_case_usd <= limit)
    if not kept:
        least = min(charge.worst_case_usd for charge in charges.values())
        raise MaxCostExceeded(
            f"max_cost_usd is {limit:f} and the cheapest answer may cost {least:f}",
            field="max_cost_usd",
            fix="raise it, lower max_tokens, or shorten the messages",
        )
    return kept


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
