"""The ledger's record of provider calls: each one before it is made, with the reported usage."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest

from serving.contracts.answer import Usage
from serving.contracts.errors import (
    BudgetExceeded,
    FrontierError,
    LedgerUnavailable,
    NarrowgateError,
    UnpricedModel,
)
from serving.contracts.frontier import FrontierCall
from serving.contracts.ledger import Caller
from serving.frontier.frontier import FrontierStack

from ..provider.billing import billed_classes
from ..provider.script import Fault, Reply, rate_limited
from ..provider.server import ProviderServer
from .frontier_kit import (
    ANTHROPIC,
    OPENAI,
    OTHER,
    PRICES,
    Recorder,
    call,
    frontier,
    page,
    settings,
)
from .memory_ledger import BookedCall, MemoryLedger, Page
from .patience import until

Ask = Callable[[FrontierStack, FrontierCall], Awaitable[None]]
LONG = {"messages": [{"role": "user", "content": "A preface to be kept. " * 400}]}


async def whole(stack: FrontierStack, request: FrontierCall) -> None:
    await stack.complete(request)


async def streamed(stack: FrontierStack, request: FrontierCall) -> None:
    stream = await stack.stream(request)
    async for _ in stream.events:
        pass


HOW = pytest.mark.parametrize("ask", [whole, streamed])
TARGET = pytest.mark.parametrize("target", [OPENAI, ANTHROPIC])


def billed(provider: ProviderServer, index: int = -1) -> Usage:
    """Return the provider's bill for a request, by its own records."""
    return Usage(**billed_classes(provider.script.seen[index]))


def only(entry: Page) -> BookedCall:
    (recorded,) = entry.calls
    return recorded


@HOW
@TARGET
async def test_an_answer_is_booked_as_the_provider_reports_it(
    provider: ProviderServer, ask: Ask, target: str
) -> None:
    tier = "batch"
    provider.script.answer = lambda _: Reply("a few words", reasoning_tokens=7, service_tier=tier)
    async with frontier(settings(provider)) as stack:
        for number in range(2):
            entry = page()
            # The second time the provider reads the beginning from its cache.
            await ask(stack, call(target, body=LONG, entry=entry))
            end = only(entry).end
            assert end is not None
            assert (end.outcome, end.usage_source, end.service_tier) == ("ok", "reported", tier)
            assert end.usage == billed(provider)
            assert end.usage.reasoning_tokens == 7
            if target == OPENAI:
                assert bool(end.usage.cache_read_tokens) == bool(number)


@HOW
@TARGET
@pytest.mark.parametrize(
    ("fault", "source"),
    [
        (Fault("status", 500), "reported"),
        (Fault("status", 401, "invalid_api_key"), "reported"),
        (rate_limited(), "reported"),
        (Fault("hang_up"), "unknown"),
        (Fault("raw", status=504, body=(b"upstream timed out",)), "unknown"),
        (Fault("raw", status=502, body=(b"<html>Bad gateway</html>",)), "unknown"),
        (Fault("raw", status=503, body=(b"no server",)), "reported"),
        (Fault("cut", after_events=0), "unknown"),
        (Fault("hang"), "unknown"),
        (Fault("html"), "unknown"),
        (Fault("no_usage"), "estimated"),
        (Fault("negative_usage"), "estimated"),
    ],
    ids=lambda value: f"{value.kind}-{value.status}" if isinstance(value, Fault) else value,
)
async def test_unreported_usage_is_recorded_as_unknown(
    provider: ProviderServer, ask: Ask, target: str, fault: Fault, source: str
) -> None:
    provider.script.next(fault)
    entry = page()
    patience = {"first_byte_timeout_s": 0.3} if fault.kind == "hang" else {}
    async with frontier(settings(provider, patience)) as stack:
        with suppress(FrontierError):
            await ask(stack, call(target, entry=entry))
    end = only(entry).end
    assert end is not None
    assert end.usage_source == source
    # Refused or failed: no usage. Unknown: no usage was reported.
    assert (end.usage is not None) == (source == "estimated")


@TARGET
@pytest.mark.parametrize("kind", ["cut", "end_early", "hang_mid_stream", "error_event"])
async def test_a_stream_that_breaks_before_its_usage_holds_its_worst_case(
    provider: ProviderServer, target: str, kind: Any
) -> None:
    provider.script.answer = lambda _: "one two three four five six seven eight nine ten"
    provider.script.next(Fault(kind, after_events=6))
    entry = page()
    patience = {"idle_timeout_s": 1.0} if kind == "hang_mid_stream" else {}
    async with frontier(settings(provider, patience)) as stack:
        stream = await stack.stream(call(target, OTHER, entry=entry))
        with pytest.raises(FrontierError):
            async for _ in stream.events:
                pass
    end = only(entry).end
    assert end is not None
    assert (end.outcome, end.usage, end.usage_source) == ("frontier_stream_broken", None, "unknown")
    # The received part is known.
    assert stream.usage is not None
    assert stream.usage.output_tokens >= 3
    if target == ANTHROPIC:
        # Its first event tells the input.
        assert stream.usage.uncached_input_tokens == billed(provider).uncached_input_tokens


async def hung_up(stack: FrontierStack, request: FrontierCall, after: int = 2) -> None:
    """Take the first chunks of a stream and close it."""
    stream = await stack.stream(request)
    for _ in range(after):
        await anext(stream.events)
    await stream.events.aclose()  # type: ignore[attr-defined]


@TARGET
async def test_the_rest_of_a_short_stream_is_read_for_its_usage(
    provider: ProviderServer, target: str
) -> None:
    provider.script.answer = lambda _: Reply("word " * 50, reasoning_tokens=9)
    provider.script.on("*", Fault("slow", delay_s=0.002))
    entry = page()
    async with frontier(settings(provider)) as stack:
        await hung_up(stack, call(target, entry=entry))
        assert only(entry).end is None
        await until(lambda: only(entry).end is not None)
    end = only(entry).end
    assert end is not None
    assert (end.outcome, end.usage_source) == ("cancelled", "reported")
    assert end.usage == billed(provider)
    assert end.usage.reasoning_tokens == 9


@TARGET
async def test_a_task_that_is_cancelled_within_a_stream_leaves_the_rest_to_be_read(
    provider: ProviderServer, target: str
) -> None:
    provider.script.answer = lambda _: "word " * 20
    provider.script.on("*", Fault("slow", delay_s=0.05))
    entry = page()
    async with frontier(settings(provider)) as stack:
        task = asyncio.ensure_future(streamed(stack, call(target, entry=entry)))
        await until(lambda: bool(provider.script.seen and provider.script.seen[0].sent_tokens > 2))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: only(entry).end is not None)
    end = only(entry).end
    assert end is not None
    assert (end.outcome, end.usage_source, end.usage) == ("cancelled", "reported", billed(provider))


@TARGET
@pytest.mark.parametrize("drain", [{"drain_tokens": 10}, {"drain_s": 0.05}, {"drain_s": 0}])
async def test_a_client_that_hangs_up_on_a_long_or_slow_stream_holds_its_worst_case(
    provider: ProviderServer, target: str, drain: dict[str, float]
) -> None:
    provider.script.answer = lambda _: "word " * 50
    provider.script.on("*", Fault("slow", delay_s=0.05))
    provider.script.run_ahead_tokens = 20
    entry = page()
    async with frontier(settings(provider, drain)) as stack:
        await hung_up(stack, call(target, entry=entry))
        await until(lambda: provider.script.seen[0].disconnected)
    recorded = only(entry)
    assert recorded.end is not None
    assert (recorded.end.outcome, recorded.end.usage_source) == ("cancelled", "unknown")
    assert PRICES[target].cost(billed(provider)) <= recorded.worst_case_usd


async def test_closing_the_frontier_ends_what_is_read_in_the_background(
    provider: ProviderServer,
) -> None:
    provider.script.answer = lambda _: "word " * 50
    provider.script.on("*", Fault("slow", delay_s=0.2))
    entry = page()
    async with frontier(settings(provider)) as stack:
        await hung_up(stack, call(OPENAI, entry=entry))
        assert only(entry).end is None
    end = only(entry).end
    assert end is not None
    assert (end.outcome, end.usage_source) == ("cancelled", "unknown")


async def test_a_call_nobody_waits_for_may_have_been_billed(provider: ProviderServer) -> None:
    provider.script.next(Fault("hang"))
    entry = page()
    async with frontier(settings(provider)) as stack:
        task = asyncio.ensure_future(stack.complete(call(OPENAI, entry=entry)))
        while not provider.script.seen:  # noqa: ASYNC110  # filled on another thread
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    end = only(entry).end
    assert end is not None
    assert (end.outcome, end.usage, end.usage_source) == ("cancelled", None, "unknown")


@HOW
async def test_every_call_of_a_request_is_booked_retries_and_fallbacks_too(
    provider: ProviderServer, ask: Ask
) -> None:
    provider.script.next(rate_limited("0.01"), Fault("status", 500), None)
    entry = page()
    async with frontier(settings(provider, {"max_retries": 1})) as stack:
        await ask(stack, call(OPENAI, OTHER, entry=entry))
    assert [recorded.model for recorded in entry.calls] == [OPENAI, OPENAI, OTHER]
    assert len(provider.script.seen) == 3
    ends = [recorded.end for recorded in entry.calls]
    assert all(end is not None for end in ends)
    outcomes = [end.outcome for end in ends if end]
    assert outcomes == ["frontier_rate_limited", "frontier_unavailable", "ok"]


async def test_both_calls_of_a_hedged_pair_are_booked(provider: ProviderServer) -> None:
    provider.script.next(Fault("slow", delay_s=1.0))
    entry = page()
    async with frontier(settings(provider, hedge_after_s=0.05)) as stack:
        await stack.complete(call(OPENAI, OTHER, entry=entry))
    recorded = {c.model: c.end.usage_source for c in entry.calls if c.end is not None}
    assert recorded == {OPENAI: "unknown", OTHER: "reported"}


@HOW
@pytest.mark.parametrize("error", [BudgetExceeded("no money"), LedgerUnavailable("no books")])
async def test_calls_that_cannot_be_recorded_are_not_sent(
    provider: ProviderServer, ask: Ask, error: NarrowgateError
) -> None:
    ledger, events = MemoryLedger(), Recorder()
    ledger.refuse.append(error)
    entry = ledger.entry(Caller("acme"), "r", "chat", None, 0)
    async with frontier(settings(provider, {"max_concurrent": 1}), events) as stack:
        with pytest.raises(type(error)):
            await ask(stack, call(OPENAI, entry=entry))
        assert provider.script.seen == []
        assert events.calls == [("openai", "gpt-4.1", error.code)]
        # The room among the provider's calls was given back.
        await ask(stack, call(OPENAI, entry=entry))
    assert len(provider.script.seen) == 1


async def test_a_target_beyond_the_budget_leaves_it_to_the_next(provider: ProviderServer) -> None:
    ledger = MemoryLedger()
    ledger.refuse.append(BudgetExceeded("no money for that one"))
    entry = ledger.entry(Caller("acme"), "r", "chat", None, 0)
    async with frontier(settings(provider)) as stack:
        done = await stack.complete(call(OTHER, OPENAI, entry=entry))
    assert done.model == OPENAI
    assert [seen.model for seen in provider.script.seen] == ["gpt-4.1"]


@HOW
async def test_a_model_without_a_price_is_not_asked(provider: ProviderServer, ask: Ask) -> None:
    async with frontier(settings(provider)) as stack:
        with pytest.raises(UnpricedModel):
            await ask(stack, call("openai/never-heard-of"))
    assert provider.script.seen == []


async def test_no_answer_costs_more_than_was_held_for_it(provider: ProviderServer) -> None:
    provider.script.answer = lambda _: Reply("word " * 30, reasoning_tokens=4)
    entry = page()
    async with frontier(settings(provider)) as stack:
        await stack.complete(call(OPENAI, body=LONG, entry=entry))
    recorded = only(entry)
    assert recorded.end is not None
    assert recorded.end.usage is not None
    usage = recorded.end.usage
    paid = usage.uncached_input_tokens * 2 + (usage.output_tokens + usage.reasoning_tokens) * 8
    assert Decimal(paid) / 10**6 <= recorded.worst_case_usd
