"""Whatever a provider does wrong ends in the right error, in time, paid at most once, keyless."""

import asyncio
import logging
import re
import time
import traceback
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest

from serving.contracts.errors import (
    DeadlineExceeded,
    FrontierAuthFailed,
    FrontierContextTooLong,
    FrontierError,
    FrontierInvalidResponse,
    FrontierQuotaExhausted,
    FrontierRateLimited,
    FrontierRejected,
    FrontierStreamBroken,
    FrontierTimeout,
    FrontierUnavailable,
    FrontierUnknownModel,
)
from serving.contracts.frontier import FrontierCall, attempts_of
from serving.contracts.frontier_settings import BreakerSettings
from serving.contracts.openai import usage_from_openai
from serving.frontier import retry_after
from serving.frontier.frontier import FrontierStack

from ..provider.script import Fault, rate_limited
from ..provider.server import ProviderServer
from .frontier_kit import (
    ANTHROPIC,
    KEY,
    OPENAI,
    OTHER,
    Recorder,
    call,
    frontier,
    settings,
)
from .patience import GUARD_S, until

ENDLESS_S = 600.0
"""Longer than pytest lets a test run: what ends in time ended because of something else."""

LEAK = "your key {key} is bad, Bearer {key}"


async def whole(stack: FrontierStack, request: FrontierCall) -> str:
    return (await stack.complete(request)).text


async def streamed(stack: FrontierStack, request: FrontierCall) -> str:
    stream = await stack.stream(request)
    texts = [
        choice["delta"].get("content") or ""
        async for chunk in stream.events
        for choice in chunk["choices"]
    ]
    return "".join(texts)


HOW = pytest.mark.parametrize("ask", [whole, streamed])
TARGET = pytest.mark.parametrize("target", [OPENAI, ANTHROPIC])
Ask = Callable[[FrontierStack, FrontierCall], Any]

# Fault, error, whether the next target may be asked.
REFUSALS: list[tuple[Fault, type[FrontierError], bool]] = [
    (Fault("status", 400, "", LEAK), FrontierRejected, False),
    (Fault("status", 422, "", LEAK), FrontierRejected, False),
    (Fault("status", 401, "invalid_api_key", LEAK), FrontierAuthFailed, True),
    (Fault("status", 403, "", LEAK), FrontierAuthFailed, True),
    (Fault("status", 402, "", LEAK), FrontierQuotaExhausted, True),
    (Fault("status", 404, "model_not_found", LEAK), FrontierUnknownModel, True),
    (Fault("status", 413, "", LEAK), FrontierContextTooLong, True),
    (Fault("status", 400, "context_length_exceeded", LEAK), FrontierContextTooLong, True),
    (
        Fault("status", 400, "", "prompt is too long: 9 tokens > 8 maximum"),
        FrontierContextTooLong,
        True,
    ),
    (Fault("status", 429, "insufficient_quota", LEAK), FrontierQuotaExhausted, True),
    (
        Fault("status", 400, "", "Your credit balance is too low"),
        FrontierQuotaExhausted,
        True,
    ),
    (rate_limited(), FrontierRateLimited, True),
    (rate_limited("900"), FrontierRateLimited, True),
    (Fault("status", 408, "", LEAK), FrontierUnavailable, True),
    (Fault("status", 409, "", LEAK), FrontierUnavailable, True),
    (Fault("status", 500, "", LEAK), FrontierUnavailable, True),
    (Fault("status", 502, "", LEAK), FrontierUnavailable, True),
    (Fault("status", 503, "", LEAK), FrontierUnavailable, True),
    (Fault("status", 529, "", LEAK), FrontierUnavailable, True),
    (Fault("hang"), FrontierTimeout, False),
    (Fault("hang_up"), FrontierInvalidResponse, False),
    (Fault("status", 504, worked=True), FrontierTimeout, False),
    (
        Fault("raw", 502, body=(b"<html>Bad gateway</html>",)),
        FrontierInvalidResponse,
        False,
    ),
    (Fault("raw", 503, body=(b"no server is available",)), FrontierUnavailable, True),
    (Fault("html"), FrontierInvalidResponse, False),
    (Fault("empty_choices"), FrontierInvalidResponse, False),
    (Fault("truncated"), FrontierInvalidResponse, False),
    (Fault("malformed"), FrontierInvalidResponse, False),
]


def name_of(value: object) -> str:
    if isinstance(value, Fault):
        return f"{value.kind}-{value.status}-{value.code}" if value.kind == "status" else value.kind
    return getattr(value, "__name__", str(value))


@TARGET
@pytest.mark.parametrize(("fault", "expected", "falls_back"), REFUSALS, ids=name_of)
async def test_each_failure_has_its_error_and_its_consequence(
    provider: ProviderServer,
    caplog: pytest.LogCaptureFixture,
    target: str,
    fault: Fault,
    expected: type[FrontierError],
    falls_back: bool,
) -> None:
    caplog.set_level(logging.DEBUG)
    patience = {"first_byte_timeout_s": 0.3} if fault.kind == "hang" else {}
    events = Recorder()
    async with frontier(settings(provider, patience), events) as stack:
        for ask in (whole, streamed):
            provider.reset()
            provider.script.next(fault, fault)
            with pytest.raises(FrontierError) as caught:
                await ask(stack, call(target, seconds=ENDLESS_S))
            assert type(caught.value) is expected
            (attempt,) = attempts_of(caught.value)
            assert (attempt.model, attempt.error) == (target, expected.code)
            assert events.calls[-1][2] == expected.code
            assert not re.search(r"openai\.|anthropic\.|[a-z]Error\b", caught.value.message)
            told = "".join(traceback.format_exception(caught.value)) + caplog.text
            told += repr([caught.value.field, caught.value.fix])
            assert KEY not in told
            assert KEY[:12] not in told
            if falls_back:
                assert await ask(stack, call(target, OTHER))
                assert events.fallbacks[-1] == (target, OTHER, expected.code)
            else:
                with pytest.raises(expected):
                    await ask(stack, call(target, OTHER, seconds=ENDLESS_S))
            assert len(provider.script.seen) == (3 if falls_back else 2)
            assert provider.script.completed <= (1 if falls_back else 2)


@HOW
async def test_no_server_at_all(provider: ProviderServer, ask: Ask) -> None:
    config = settings(provider, {"max_retries": 1})
    gone = config.providers["openai"].model_copy(update={"base_url": "http://127.0.0.1:9/v1"})
    config = config.model_copy(update={"providers": {**config.providers, "openai": gone}})
    async with frontier(config) as stack:
        with pytest.raises(FrontierUnavailable) as caught:
            await ask(stack, call(OPENAI))
        assert await ask(stack, call(OPENAI, ANTHROPIC))
    assert [attempt.model for attempt in attempts_of(caught.value)] == [OPENAI, OPENAI]


@TARGET
@pytest.mark.parametrize("kind", ["cut", "hang_mid_stream"])
async def test_a_whole_answer_that_breaks_off_was_paid(
    provider: ProviderServer, target: str, kind: Any
) -> None:
    provider.script.next(Fault(kind))
    patience = {"first_byte_timeout_s": 0.3} if kind == "hang_mid_stream" else {}
    async with frontier(settings(provider, {**patience, "max_retries": 3})) as stack:
        with pytest.raises((FrontierInvalidResponse, FrontierTimeout)) as caught:
            await stack.complete(call(target))
    # The SDK's read time-out is the same as the wait for the answer: either may come first.
    assert kind == "hang_mid_stream" or isinstance(caught.value, FrontierInvalidResponse)
    assert len(provider.script.seen) == 1


@TARGET
@pytest.mark.parametrize(
    "kind", ["cut", "hang_mid_stream", "malformed", "end_early", "error_event"]
)
async def test_a_broken_stream_is_not_followed_by_a_second_answer(
    provider: ProviderServer, target: str, kind: Any
) -> None:
    provider.script.answer = lambda _: "one two three four five six seven"
    provider.script.next(Fault(kind, after_events=5, message=LEAK))
    events = Recorder()
    got = []
    patience = {"idle_timeout_s": 1.0} if kind == "hang_mid_stream" else {}
    async with frontier(settings(provider, {**patience, "max_retries": 3}), events) as stack:
        stream = await stack.stream(call(target, OTHER))
        with pytest.raises(FrontierStreamBroken) as caught:  # noqa: PT012
            async for chunk in stream.events:
                got += [c["delta"].get("content") or "" for c in chunk["choices"]]
        assert await whole(stack, call(target))
    assert "".join(got).startswith("one two")
    assert len(provider.script.seen) == 2
    assert events.calls[0][2] == "frontier_stream_broken"
    assert KEY not in str(caught.value)


@TARGET
@pytest.mark.parametrize(
    "fault",
    [
        Fault("hang_up"),
        Fault("cut", after_events=0),
        Fault("raw", status=504, body=(b"timeout",)),
        Fault("raw", status=520, body=(b"",)),
        Fault("raw", 200, body=(b": keep-alive\n\n",)),
        Fault("raw", 200, body=(b"data: [DONE]\n\n",)),
    ],
    ids=["hang_up", "cut", "504", "520", "keep_alives", "only_done"],
)
async def test_a_call_that_may_be_billed_is_made_once(
    provider: ProviderServer, target: str, fault: Fault
) -> None:
    async with frontier(settings(provider, {"max_retries": 3})) as stack:
        for ask in (whole, streamed):
            provider.reset()
            provider.script.next(fault)
            with pytest.raises((FrontierTimeout, FrontierInvalidResponse)):
                await ask(stack, call(target, OTHER))
            assert len(provider.script.seen) == 1


async def test_an_overload_told_inside_the_stream_before_it_began(provider: ProviderServer) -> None:
    provider.script.next(Fault("error_event", code="overloaded_error", message=LEAK))
    provider.script.next(Fault("error_event", code="rate_limit_exceeded", message=LEAK))
    async with frontier(settings(provider)) as stack:
        stream = await stack.stream(call(ANTHROPIC, OPENAI, OTHER))
        assert [chunk async for chunk in stream.events]
    codes = [attempt.error for attempt in stream.attempts]
    assert codes == ["frontier_unavailable", "frontier_rate_limited"]


@HOW
@TARGET
@pytest.mark.parametrize("kind", ["no_usage", "negative_usage", "inconsistent_usage"])
async def test_a_paid_answer_with_wrong_usage_is_not_lost(
    provider: ProviderServer, ask: Ask, target: str, kind: Any
) -> None:
    provider.script.answer = lambda _: "the whole answer"
    provider.script.next(Fault(kind), Fault(kind))
    async with frontier(settings(provider)) as stack:
        assert await ask(stack, call(target)) == "the whole answer"
        if ask is whole:
            done = await stack.complete(call(target))
            assert done.usage.uncached_input_tokens >= 0
            assert done.body["usage"]["total_tokens"] >= 0
        else:
            stream = await stack.stream(call(target))
            chunks = [chunk async for chunk in stream.events]
            # Unreported usage is estimated; the ledger states the source.
            assert stream.usage is not None
            assert stream.usage.output_tokens + stream.usage.reasoning_tokens > 0
            assert chunks[-1]["choices"] == []
            assert usage_from_openai(chunks[-1]["usage"]) == stream.usage


async def test_retry_after_is_waited_for(provider: ProviderServer) -> None:
    events = Recorder()
    provider.script.next(
        rate_limited("0.2"), rate_limited(retry_after_ms="150"), rate_limited("0.1")
    )
    async with frontier(settings(provider, {"max_retries": 3}), events) as stack:
        began = time.monotonic()
        done = await stack.complete(call(OPENAI))
        took = time.monotonic() - began
    assert took >= 0.45
    assert events.retries == [("openai", "frontier_rate_limited")] * 3
    assert [attempt.error for attempt in done.attempts] == ["frontier_rate_limited"] * 3


# Far from the collection of the tests, which may be an hour before the last of them.
_FAR_S = time.time() + 86_400


@pytest.mark.parametrize(
    "headers",
    [
        {"retry-after": f"{GUARD_S:.0f}"},
        {"retry-after": formatdate(_FAR_S, usegmt=True)},
        {"retry-after-ms": f"{1000 * GUARD_S:.0f}"},
        {
            "anthropic-ratelimit-tokens-remaining": "0",
            "anthropic-ratelimit-tokens-reset": "2999-01-01T00:00:00Z",
        },
    ],
)
async def test_a_wait_beyond_the_deadline_goes_straight_to_the_next_target(
    provider: ProviderServer, headers: dict[str, str]
) -> None:
    provider.script.next(Fault("status", 429, "rate_limit_exceeded", headers=headers))
    async with frontier(settings(provider, {"max_retries": 5})) as stack:
        done = await stack.complete(call(ANTHROPIC, OTHER, seconds=GUARD_S - 1))
    assert done.model == OTHER


async def test_the_last_error_has_its_retry_after(provider: ProviderServer) -> None:
    provider.script.next(rate_limited(f"{GUARD_S:.0f}"))
    async with frontier(settings(provider, {"max_retries": 5})) as stack:
        with pytest.raises(FrontierRateLimited) as caught:
            await stack.complete(call(OPENAI, seconds=GUARD_S - 1))
    assert caught.value.retry_after_s == GUARD_S


async def test_retries_stop_at_their_number(provider: ProviderServer) -> None:
    provider.script.on("*", Fault("status", 503, headers={"retry-after": "0"}))
    async with frontier(settings(provider, {"max_retries": 2})) as stack:
        with pytest.raises(FrontierUnavailable) as caught:
            await stack.complete(call(OPENAI, ANTHROPIC))
    tried = [attempt.model for attempt in attempts_of(caught.value)]
    assert tried == [OPENAI] * 3 + [ANTHROPIC] * 3


@HOW
async def test_a_silent_provider_is_asked_once_and_left(provider: ProviderServer, ask: Ask) -> None:
    provider.script.on("gpt-4.1", Fault("hang"))
    config = settings(provider, {"max_retries": 3}, fall_back_after_timeout=True)
    hasty = config.providers["openai"].model_copy(update={"first_byte_timeout_s": 0.4})
    config = config.model_copy(update={"providers": {**config.providers, "openai": hasty}})
    async with frontier(config) as stack:
        assert await ask(stack, call(OPENAI, OTHER))
    first, second = provider.script.seen
    assert first.disconnected
    assert not first.completed
    assert second.completed


@HOW
async def test_the_deadline_ends_everything(provider: ProviderServer, ask: Ask) -> None:
    provider.script.on("*", Fault("hang"))
    config = settings(provider, {"first_byte_timeout_s": ENDLESS_S, "max_retries": 3})
    async with frontier(config) as stack:
        with pytest.raises(FrontierTimeout):
            await ask(stack, call(OPENAI, ANTHROPIC, seconds=0.4))
        with pytest.raises(DeadlineExceeded):
            await ask(stack, call(OPENAI, seconds=0))
    assert len(provider.script.seen) == 1


async def test_the_deadline_ends_a_stream(provider: ProviderServer) -> None:
    provider.script.on("*", Fault("slow", delay_s=0.1))
    provider.script.answer = lambda _: "word " * 100
    async with frontier(settings(provider)) as stack:
        stream = await stack.stream(call(OPENAI, seconds=2))
        with pytest.raises(FrontierStreamBroken, match="took too long"):
            [chunk async for chunk in stream.events]
    await until(lambda: provider.script.seen[0].disconnected)


@TARGET
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_client_that_leaves_cancels_upstream(
    provider: ProviderServer, target: str, when: str
) -> None:
    events = Recorder()
    provider.script.answer = lambda _: "one two three four five"
    provider.script.next(Fault("hang_mid_stream", after_events=5))
    async with frontier(settings(provider, {"drain_s": 0.0}), events) as stack:
        stream = await stack.stream(call(target))
        if when == "after":
            await anext(stream.events)
            await anext(stream.events)
        await stream.events.aclose()  # type: ignore[attr-defined]
        await until(lambda: provider.script.seen[0].disconnected)
        with pytest.raises(StopAsyncIteration):
            await anext(stream.events)
        assert stack._providers[target.partition("/")[0]].places._value == 64
    assert events.calls[-1][2] == "cancelled"


@HOW
@TARGET
async def test_a_cancelled_task_cancels_upstream(
    provider: ProviderServer, ask: Ask, target: str
) -> None:
    provider.script.next(Fault("hang"))
    async with frontier(settings(provider)) as stack:
        task = asyncio.create_task(ask(stack, call(target)))
        await until(lambda: bool(provider.script.seen))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: provider.script.seen[0].disconnected)


@HOW
async def test_hedging_asks_two_and_takes_the_first(provider: ProviderServer, ask: Ask) -> None:
    provider.script.on("gpt-4.1", Fault("hang"))
    events = Recorder()
    # The first one hangs for longer than pytest waits.
    config = settings(provider, {"first_byte_timeout_s": ENDLESS_S}, hedge_after_s=0.1)
    async with frontier(config, events) as stack:
        assert await ask(stack, call(OPENAI, OTHER, seconds=ENDLESS_S))
        await until(lambda: provider.script.seen[0].disconnected)
        assert ("openai", "gpt-4.1", "cancelled") in events.calls
        done = await stack.complete(call(OPENAI, OTHER))
    assert [(a.model, a.error) for a in done.attempts] == [(OPENAI, "hedge_lost")]
    assert events.fallbacks[0] == (OPENAI, OTHER, "hedge")


async def test_hedging_pays_both_where_both_answer(provider: ProviderServer) -> None:
    provider.script.on("gpt-4.1", Fault("slow", delay_s=0.25))
    provider.script.on("gpt-4.1-mini", Fault("slow", delay_s=0.25))
    async with frontier(settings(provider, hedge_after_s=0.1)) as stack:
        done = await stack.complete(call(OPENAI, OTHER))
    assert done.model == OPENAI
    assert len(provider.script.seen) == 2


async def test_hedging_falls_back_on_failures_at_once(provider: ProviderServer) -> None:
    provider.script.next(Fault("status", 500), Fault("status", 500))
    async with frontier(settings(provider, hedge_after_s=5.0)) as stack:
        done = await stack.complete(call(OPENAI, ANTHROPIC, OTHER))
        assert done.model == OTHER
        provider.script.next(Fault("status", 400))
        with pytest.raises(FrontierRejected):
            await stack.complete(call(OPENAI, OTHER))
    assert len(provider.script.seen) == 4


async def test_hedging_does_not_exceed_the_clients_limit(provider: ProviderServer) -> None:
    from decimal import Decimal

    provider.script.on("gpt-4.1", Fault("slow", delay_s=0.3))
    async with frontier(settings(provider, hedge_after_s=0.05)) as stack:
        request = call(OPENAI, ANTHROPIC, max_cost_usd=Decimal("0.0012"))
        done = await stack.complete(request)
    assert done.model == OPENAI
    assert len(provider.script.seen) == 1


async def test_no_answer_is_paid_twice_without_hedging(
    provider: ProviderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each pair of faults, one after the other: one answer is paid."""
    monkeypatch.setattr(retry_after, "_FIRST_WAIT_S", 0.001)
    kinds = [
        None,
        Fault("status", 500, headers={"retry-after": "0"}),
        rate_limited("0"),
        Fault("malformed"),
        Fault("status", 529, headers={"retry-after": "0"}),
        Fault("truncated"),
    ]
    answered = failed = 0
    async with frontier(settings(provider, {"max_retries": 1})) as stack:
        for first in kinds:
            for second in kinds:
                provider.script.reset()
                provider.script.next(first, second)
                try:
                    await stack.complete(call(OPENAI, ANTHROPIC, OTHER))
                    answered += 1
                except FrontierInvalidResponse:
                    failed += 1
                assert provider.script.completed == 1
    assert answered
    assert failed


async def test_calls_in_flight_are_limited(provider: ProviderServer) -> None:
    provider.script.on("*", Fault("slow", delay_s=0.01))
    async with frontier(settings(provider, {"max_concurrent": 8})) as stack:
        request = (call(OPENAI) for _ in range(200))
        answers = await asyncio.gather(*(stack.complete(one) for one in request))
    assert len(answers) == 200
    assert max(seen.in_flight for seen in provider.script.seen) <= 8


async def test_a_full_provider_is_waited_for_within_the_deadline(provider: ProviderServer) -> None:
    provider.script.on("gpt-4.1", Fault("hang"))
    async with frontier(settings(provider, {"max_concurrent": 1})) as stack:
        busy = asyncio.create_task(stack.complete(call(OPENAI, seconds=ENDLESS_S)))
        await until(lambda: bool(provider.script.seen))
        with pytest.raises(DeadlineExceeded) as caught:
            await stack.complete(call(OPENAI, seconds=0.2))
        assert attempts_of(caught.value) == ()
        done = await stack.complete(call(OPENAI, OTHER, seconds=0.6))
        assert done.model == OTHER
        busy.cancel()
        with pytest.raises(asyncio.CancelledError):
            await busy


async def test_a_failing_provider_is_skipped_and_probed_by_one_request(
    provider: ProviderServer,
) -> None:
    events = Recorder()
    breaker = BreakerSettings(failures=3, open_s=30)
    provider.script.on("gpt-4.1", Fault("status", 500))
    async with frontier(settings(provider, {"breaker": breaker}), events) as stack:
        for _ in range(3):
            with pytest.raises(FrontierUnavailable):
                await stack.complete(call(OPENAI))
        with pytest.raises(FrontierUnavailable, match="circuit breaker") as caught:
            await stack.complete(call(OPENAI))
        assert attempts_of(caught.value) == ()
        assert 0 < (caught.value.retry_after_s or 0) <= 30
        assert (await stack.complete(call(OPENAI, OTHER))).model == OTHER
        assert len(provider.script.seen) == 4
        stack._providers["openai"].breaker._open_until_s = time.monotonic()
        provider.script.on("gpt-4.1", Fault("slow", delay_s=0.5))
        request = [stack.complete(call(OPENAI, OTHER)) for _ in range(5)]
        models = [done.model for done in await asyncio.gather(*request)]
    assert sorted(models) == [OPENAI] + [OTHER] * 4
    assert events.breakers == [("openai", s) for s in ("open", "half_open", "closed")]


async def test_refusals_do_not_open_the_breaker(provider: ProviderServer) -> None:
    events = Recorder()
    breaker = BreakerSettings(failures=2, open_s=30)
    async with frontier(settings(provider, {"breaker": breaker}), events) as stack:
        for status in (400, 401, 404, 429, 400, 429):
            provider.script.next(Fault("status", status))
            with pytest.raises(FrontierError):
                await stack.complete(call(OPENAI))
    assert events.breakers == []


async def test_a_probe_whose_client_leaves_leaves_room_for_another(
    provider: ProviderServer,
) -> None:
    breaker = BreakerSettings(failures=1, open_s=0.05)
    config = settings(provider, {"breaker": breaker})
    provider.script.next(Fault("status", 500), Fault("hang"))
    async with frontier(config) as stack:
        with pytest.raises(FrontierUnavailable):
            await stack.complete(call(OPENAI))
        await asyncio.sleep(0.06)
        probe = asyncio.create_task(stack.complete(call(OPENAI)))
        await until(lambda: len(provider.script.seen) == 2)
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        assert (await stack.complete(call(OPENAI))).text
