"""Every configured provider behind one door: what FrontierCalls become and who answers them."""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, TypeVar

from serving.contracts.answer import Usage
from serving.contracts.deadline import deadline_exceeded
from serving.contracts.errors import FrontierNotConfigured, MaxCostExceeded, NarrowgateError
from serving.contracts.exits import Attempt
from serving.contracts.frontier import Completion, CompletionStream, FrontierCall, with_attempts
from serving.contracts.frontier_settings import FrontierSettings
from serving.contracts.prices import PriceList, TokenPrices, unpriced
from serving.frontier.bounds import bounded
from serving.frontier.cache_policy import CachePolicy
from serving.frontier.events import FrontierEvents
from serving.frontier.fallback import Way, hedged, in_order
from serving.frontier.prefix_lint import PrefixLinter, PrefixWarning
from serving.frontier.prefixes import PrefixWatch
from serving.frontier.prompt_cache import SplitPrompt, canonical, split_prompt
from serving.frontier.provider import Ask, OpenStream, Provider
from serving.frontier.spent import Spent
from serving.frontier.worst_case import worst_case_usd

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Charge:
    """What a target takes for a call. prices: of a short request."""

    prices: TokenPrices
    worst_case_usd: Decimal


@dataclass(frozen=True, slots=True)
class _Job:
    """One FrontierCall on its way.

    targets: those that may be asked, in order, each with its charge. attempts: failed calls so
    far. asked: when each target was first asked, monotonic seconds.
    """

    call: FrontierCall
    prompt: SplitPrompt
    targets: tuple[str, ...]
    charges: Mapping[str, _Charge]
    attempts: list[Attempt]
    asked: dict[str, float]

    def prompt_chars(self) -> int:
        """Return the length of the messages, of which usage is estimated where nobody tells."""
        return len(canonical(self.prompt.body["messages"]))

    def lost(self, target: str, usage: Usage | None = None) -> None:
        """Note a call of a hedged pair whose answer nobody takes; it may be billed."""
        if target in self.asked:
            elapsed_s = time.monotonic() - self.asked[target]
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

    @property
    def prefix_warnings(self) -> tuple[PrefixWarning, ...]:
        """Return the prefixes found to keep changing, with the text that changes: for people."""
        return self._prefixes.warnings

    def configured(self, targets: tuple[str, ...]) -> tuple[str, ...]:
        """Return those of the targets whose provider has a key (or needs none)."""
        return tuple(t for t in targets if t.partition("/")[0] in self._providers)

    async def complete(self, call: FrontierCall) -> Completion:
        """Return the answer of the first target that gives one. Raises as Frontier says."""
        job = self._job(call)

        async def ask(target: str) -> Completion:
            provider, request = self._request(job, target)
            answer = await provider.whole(request)
            assert answer.usage is not None
            return Completion(answer.body, target, answer.usage, service_tier=answer.service_tier)

        async def discard(completion: Completion) -> None:
            job.lost(completion.model, completion.usage)

        completion = await self._answered(job, ask, discard)
        self._prefixes.answered(job.prompt.prefixes, completion.usage)
        return replace(completion, attempts=tuple(job.attempts))

    async def stream(self, call: FrontierCall) -> CompletionStream:
        """Return the answer of the first target that begins one. Raises as `complete`."""
        job = self._job(call)

        async def ask(target: str) -> tuple[str, OpenStream]:
            provider, request = self._request(job, target)
            return target, await provider.stream(request)

        async def discard(opened: tuple[str, OpenStream]) -> None:
            job.lost(opened[0])
            await opened[1].aclose()

        target, opened = await self._answered(job, ask, discard)
        events = _Events(opened)
        stream = CompletionStream(target, events, tuple(job.attempts))
        events.tell(stream, lambda usage: self._prefixes.answered(job.prompt.prefixes, usage))
        return stream

    async def aclose(self) -> None:
        """Close every provider's connections."""
        for provider in self._providers.values():
            await provider.api.aclose()

    def _job(self, call: FrontierCall) -> _Job:
        """Bound, strip and choose. Raises FrontierNotConfigured, UnpricedModel, MaxCostExceeded."""
        targets = self.configured(call.targets)
        if not targets:
            raise FrontierNotConfigured(
                f"none of the providers of {', '.join(call.targets) or 'no target'} has a key",
                field="frontier.providers",
                fix="set a provider's key, or mark it keyless",
            )
        prompt = split_prompt(bounded(call.body, call.bounds), self._settings.prompt_cache.marker)
        charges = self._charges(targets, prompt.body)
        targets = _affordable(call, charges)
        if not call.deadline.remaining_s():
            raise deadline_exceeded()
        self._prefixes.came(call.purpose, prompt.prefixes)
        return _Job(call, prompt, targets, charges, [], {})

    def _charges(self, targets: tuple[str, ...], body: Mapping[str, Any]) -> dict[str, _Charge]:
        """Leave out targets whose price nobody knows: what they cost could not be booked."""
        found = {t: prices for t in targets if (prices := self._prices.of(t)) is not None}
        if not found:
            raise unpriced(targets, "model")
        return {t: _Charge(p.base, worst_case_usd(body, p)) for t, p in found.items()}

    def _request(self, job: _Job, target: str) -> tuple[Provider, Ask]:
        name, _, model = target.partition("/")
        provider = self._providers[name]
        charge = job.charges[target]
        plan = self._prefixes.plan(job.prompt.prefixes, charge.prices)
        remaining_s = job.call.deadline.remaining_s()
        job.asked[target] = time.monotonic()
        body = job.prompt.body
        if not job.call.bounds.thinking and provider.api.thinks_by_default:
            body = {"reasoning_effort": "none", **body}
        return provider, Ask(
            model,
            provider.api.request(body, model, plan),
            job.call.deadline,
            # Where another provider could answer, a full one may not use up all the time.
            remaining_s if target == job.targets[-1] else remaining_s / 2,
            job.call.entry,
            charge.worst_case_usd,
            job.prompt_chars,
            job.attempts,
        )

    async def _answered(
        self,
        job: _Job,
        ask: Callable[[str], Awaitable[T]],
        discard: Callable[[T], Awaitable[None]],
    ) -> T:
        way = Way(ask, self._events.fell_back, discard, job.lost)
        after_s = self._settings.hedge_after_s
        try:
            if after_s is not None and self._may_pay_twice(job):
                return await hedged(job.targets, way, job.call.deadline, after_s)
            return await in_order(job.targets, way, job.call.deadline)
        except NarrowgateError as error:
            with_attempts(error, tuple(job.attempts))
            raise

    def _may_pay_twice(self, job: _Job) -> bool:
        """Say whether the two dearest answers together stay within the client's limit."""
        if job.call.max_cost_usd is None:
            return True
        costs = sorted(job.charges[t].worst_case_usd for t in job.targets)
        return sum(costs[-2:]) <= job.call.max_cost_usd


def _affordable(call: FrontierCall, charges: Mapping[str, _Charge]) -> tuple[str, ...]:
    """Leave out targets that may cost more than the client allows."""
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


class _Events:
    """The chunks of a stream; sets the stream's usage and closes the connection at its end."""

    def __init__(self, opened: OpenStream) -> None:
        self._opened = opened
        self._parts = opened.parts()
        self._stream: CompletionStream | None = None
        self._ended: Callable[[Usage], None] = lambda _: None

    def tell(self, stream: CompletionStream, ended: Callable[[Usage], None]) -> None:
        """Say whose usage to set and whom to tell it at the end."""
        self._stream, self._ended = stream, ended

    def __aiter__(self) -> "_Events":
        return self

    async def __anext__(self) -> dict[str, Any]:
        assert self._stream is not None
        try:
            part = await anext(self._parts)
        except BaseException as error:
            spent = self._tell_spent()
            told = spent.usage if spent.source == "reported" else None
            if isinstance(error, StopAsyncIteration) and told is not None:
                self._ended(told)
            raise
        return part.chunk

    async def aclose(self) -> None:
        """Hang up: the provider sees the connection close. Harmless when repeated."""
        self._tell_spent()
        await self._parts.aclose()
        # A generator that never started runs no `finally`.
        await self._opened.aclose()

    def _tell_spent(self) -> Spent:
        assert self._stream is not None
        spent = self._opened.spent
        self._stream.usage, self._stream.service_tier = spent.usage, spent.service_tier
        return spent
