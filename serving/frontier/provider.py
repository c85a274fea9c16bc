"""One provider behind its wire format: concurrency limit, circuit breaker, deadlines, retries."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any, TypeVar

from serving.contracts.deadline import Deadline, deadline_exceeded
from serving.contracts.errors import (
    FrontierError,
    FrontierStreamBroken,
    FrontierUnavailable,
    NarrowgateError,
)
from serving.contracts.exits import Attempt
from serving.contracts.frontier_settings import ProviderSettings
from serving.contracts.ledger import CallEnd, Entry, OpenCall
from serving.contracts.openai import openai_usage
from serving.frontier.breaker import Breaker
from serving.frontier.events import FrontierEvents
from serving.frontier.failures import counts_for_breaker, may_retry
from serving.frontier.http_errors import timed_out, unreadable
from serving.frontier.provider_api import ProviderApi, StreamPart, WholeAnswer
from serving.frontier.retry_after import wait_s
from serving.frontier.spent import (
    NOTHING,
    UNKNOWN,
    Progress,
    RequestFacts,
    Spent,
    spent_on,
    spent_on_error,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TargetCall:
    """One request to one target.

    queue_timeout_s: longest wait for a place among the provider's concurrent calls. entry: the
    input's ledger entry. worst_case_usd: the most that a call may cost. attempts: failed calls are
    appended. prefix: digest of the prompt's part that conversations share, if it can be cached.
    """

    model: str
    request: dict[str, Any]
    deadline: Deadline
    queue_timeout_s: float
    entry: Entry
    worst_case_usd: Decimal
    facts: RequestFacts
    attempts: list[Attempt] = field(default_factory=list)
    prefix: str | None = None


class _Call:
    """One call in progress: holds a place and a breaker's ticket until it is closed, once."""

    def __init__(self, provider: "Provider", target_call: TargetCall, ticket: int) -> None:
        self._provider = provider
        self._target_call = target_call
        self._ticket = ticket
        self._recorded: OpenCall | None = None
        self._started_s = time.monotonic()
        self._closed = False

    @property
    def is_closed(self) -> bool:
        return self._closed

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    async def open(self) -> None:
        """Write the call to the ledger; it may be made only when this returns."""
        target_call = self._target_call
        target = f"{self._provider.name}/{target_call.model}"
        self._recorded = await target_call.entry.open_call(
            target, target_call.worst_case_usd, target_call.deadline
        )

    def began(self) -> None:
        """Record that the provider began to answer, which is the result of a probe."""
        breaker = self._provider.breaker
        if breaker.state == "half_open":
            breaker.succeeded(self._ticket)
            self._ticket = breaker.enter() or self._ticket

    def answered(self, spent: Spent) -> None:
        """Close the call after a whole answer."""
        self._provider.breaker.succeeded(self._ticket)
        self._close("ok", spent)

    def failed(self, error: FrontierError, spent: Spent) -> None:
        """Close the call after an error."""
        if counts_for_breaker(error):
            self._provider.breaker.failed(self._ticket)
        else:
            self._provider.breaker.succeeded(self._ticket)
        self._close(error.code, spent)

    def abandon(self, outcome: str = "cancelled", spent: Spent = UNKNOWN) -> None:
        """Close a call that was given up; does nothing where it is closed."""
        if not self._closed:
            self._provider.breaker.abandoned(self._ticket)
            self._close(outcome, spent)

    def _close(self, outcome: str, spent: Spent) -> None:
        assert not self._closed
        self._closed = True
        provider, elapsed_s = self._provider, self.elapsed_s
        provider.places.release()
        if self._recorded is not None:
            # The ledger holds the worst case of an unknown usage, not the part received.
            usage = None if spent.source == "unknown" else spent.usage
            prefix = self._target_call.prefix
            end = CallEnd(outcome, usage, spent.source, elapsed_s, spent.service_tier, prefix)
            self._recorded.close(end)
        provider.events.called(provider.name, self._target_call.model, outcome, elapsed_s)


class OpenStream:
    """A stream whose first part has arrived; iterate `chunks`, and close it."""

    def __init__(
        self,
        provider: "Provider",
        target_call: TargetCall,
        call: _Call,
        first: StreamPart,
        rest: AsyncGenerator[StreamPart, None],
    ) -> None:
        self._provider = provider
        self._target_call = target_call
        self._call = call
        self._first = first
        self._rest = rest
        self._reading: asyncio.Task[StreamPart | None] | None = None
        self._progress = Progress(target_call.facts)
        self._progress.take(first)
        self._is_ending = False
        self._rest_by_s: float | None = None

    @property
    def spent(self) -> Spent:
        """Return the usage of the answer so far."""
        return self._progress.spent()

    async def chunks(self) -> AsyncGenerator[dict[str, Any], None]:
        """Yield every chunk, then one with the usage and no choices.

        Raises FrontierStreamBroken, also after the idle time-out and the deadline.
        """
        try:
            last = self._first.chunk
            assert last is not None
            yield last
            while (part := await self._next()) is not None:
                self._progress.take(part)
                if part.chunk is not None:
                    last = part.chunk
                    yield part.chunk
            spent = self.spent
            self._call.answered(spent)
            if spent.usage is not None:
                yield {**last, "choices": [], "usage": openai_usage(spent.usage)}
        except FrontierError as error:
            self._call.failed(error, self.spent)
            raise
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """End the call; may be repeated.

        Where the client disconnected, the rest of the answer may be read in the background, so that
        its usage becomes known. Otherwise the connection is closed when this returns.
        """
        if self._is_ending:
            return
        self._is_ending = True
        drains = self._may_drain()
        ending = self._provider.in_background(
            self._end(drain_s=self._provider.settings.drain_s if drains else 0.0),
            lambda: self._call.abandon(spent=self.spent),
        )
        if not drains:
            # Shielded: where the client's task is cancelled, the connection is closed all the same.
            await asyncio.shield(ending)

    def _may_drain(self) -> bool:
        """Return whether to read the rest of the answer: it is short, and ends with the usage."""
        if self._call.is_closed or self.spent.source == "reported":
            return False
        settings, limits = self._provider.settings, self._target_call.facts.limits
        remaining = limits.output_tokens - self._progress.output_tokens
        is_short = self._progress.is_finished or remaining <= settings.drain_tokens
        return settings.drain_s > 0 and is_short and not self._provider.places.locked()

    async def _end(self, drain_s: float) -> None:
        try:
            if drain_s:
                async with asyncio.timeout(drain_s):
                    while (part := await self._read()) is not None:
                        self._progress.take(part)
        except (TimeoutError, FrontierError):
            # Its usage stays unknown.
            pass
        finally:
            if self._reading is not None:
                self._reading.cancel()
                await asyncio.gather(self._reading, return_exceptions=True)
            await self._rest.aclose()
            self._call.abandon(spent=self.spent)

    async def _next(self) -> StreamPart | None:
        deadline = self._target_call.deadline
        try:
            async with deadline.timeout(self._patience_s()):
                return await self._read()
        except TimeoutError:
            if self._progress.is_finished:
                # A complete answer stays complete; only its usage is missing.
                self._progress.take(StreamPart(None, is_finished=True, is_cut=True))
                return None
            what = "sent nothing for too long" if deadline.remaining_s() else "took too long"
            raise FrontierStreamBroken(
                f"the answer of provider {self._provider.name!r} {what} after it had begun",
                fix="raise idle_timeout_s or the request's timeout",
            ) from None

    def _patience_s(self) -> float:
        """Return how long to wait for a part. After the answer's end, parts do not extend it."""
        idle_s = self._provider.settings.idle_timeout_s
        if not self._progress.is_finished:
            return idle_s
        if self._rest_by_s is None:
            self._rest_by_s = time.monotonic() + idle_s
        return self._rest_by_s - time.monotonic()

    async def _read(self) -> StreamPart | None:
        """Return the next part, None at the end.

        It is read in a task of its own, so that a client whose task is cancelled does not close the
        connection before that is decided.
        """
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._read_part())
        part = await asyncio.shield(self._reading)
        self._reading = None
        return part

    async def _read_part(self) -> StreamPart | None:
        return await anext(self._rest, None)


class Provider:
    """Calls one provider, with retries. Calls beyond max_concurrent wait for a place."""

    def __init__(
        self,
        name: str,
        settings: ProviderSettings,
        api: ProviderApi,
        events: FrontierEvents,
        rng: random.Random,
    ) -> None:
        self.name = name
        self.settings = settings
        self.api = api
        self.events = events
        self.places = asyncio.Semaphore(settings.max_concurrent)
        self.breaker = Breaker(settings.breaker, lambda state: events.breaker_changed(name, state))
        self._rng = rng
        self._background: set[asyncio.Task[None]] = set()

    def in_background(
        self, work: Coroutine[Any, Any, None], ended: Callable[[], None]
    ) -> asyncio.Task[None]:
        """Run the end of a stream outside of its request, until `aclose` at the latest.

        ended: called when the work has ended, also where it was cancelled before it began.
        """
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        task.add_done_callback(lambda _: ended())
        return task

    async def aclose(self) -> None:
        """End background tasks and close every connection."""
        running = list(self._background)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self.api.aclose()

    async def whole(self, target_call: TargetCall) -> WholeAnswer:
        """Return a whole answer; its usage is an estimate where none was reported.

        Raises the last call's FrontierError, DeadlineExceeded, BudgetExceeded, LedgerUnavailable.
        """

        async def once(call: _Call) -> WholeAnswer:
            answer = await self._within(target_call, self.api.whole(target_call.request))
            spent = spent_on(answer, target_call.facts)
            call.answered(spent)
            assert spent.usage is not None
            # In our shape, as a stream's: providers' own have other fields whole and streamed.
            body = {**answer.body, "usage": openai_usage(spent.usage)}
            return replace(answer, body=body, usage=spent.usage)

        return await self._retried(target_call, once)

    async def stream(self, target_call: TargetCall) -> OpenStream:
        """Return a stream that has begun. Raises as `whole`."""

        async def once(call: _Call) -> OpenStream:
            parts = self.api.stream(target_call.request)
            try:
                first = await self._within(target_call, anext(parts))
                while first.chunk is None:
                    # Each sign of life begins the wait anew; the request's deadline ends it.
                    first = await self._within(target_call, anext(parts))
            except StopAsyncIteration:
                raise unreadable(self.name, "the stream is empty") from None
            except BaseException:  # cancellation too: the connection must be closed
                await parts.aclose()
                raise
            call.began()
            return OpenStream(self, target_call, call, first, parts)

        return await self._retried(target_call, once)

    async def _retried(self, target_call: TargetCall, once: Callable[[_Call], Awaitable[T]]) -> T:
        last: FrontierError | None = None
        retry = 0
        while True:
            call = await self._enter(target_call, last)
            try:
                await call.open()
            except BaseException as error:  # cancellation too: the place must be released
                code = error.code if isinstance(error, NarrowgateError) else "cancelled"
                call.abandon(code, NOTHING)
                raise
            try:
                return await once(call)
            except FrontierError as error:
                spent = spent_on_error(error, target_call.facts.limits)
                call.failed(error, spent)
                target_call.attempts.append(
                    Attempt(
                        f"{self.name}/{target_call.model}", error.code, call.elapsed_s, spent.usage
                    )
                )
                pause_s = self._pause_s(error, retry, target_call.deadline)
                if pause_s is None:
                    raise
                last = error
            except BaseException:  # cancellation too: the call's row must be closed
                call.abandon()
                raise
            retry += 1
            self.events.retried(self.name, last.code)
            await asyncio.sleep(pause_s)

    def _pause_s(self, error: FrontierError, retry: int, deadline: Deadline) -> float | None:
        """Return how long to wait before a retry; None where none is due or no time is left."""
        if not may_retry(error) or retry >= self.settings.max_retries:
            return None
        pause_s = wait_s(retry, error.retry_after_s, self._rng)
        return pause_s if pause_s < deadline.remaining_s() else None

    async def _enter(self, target_call: TargetCall, last: FrontierError | None) -> _Call:
        """Wait for a place and a breaker's ticket. last: the error to raise where there is none."""
        try:
            async with target_call.deadline.timeout(target_call.queue_timeout_s):
                await self.places.acquire()
        except TimeoutError:
            if last is not None:
                raise last from None
            if not target_call.deadline.remaining_s():
                raise deadline_exceeded() from None
            raise FrontierUnavailable(
                f"provider {self.name!r} has {self.settings.max_concurrent} calls in progress",
                fix="retry later, or raise max_concurrent",
                retry_after_s=1,
            ) from None
        ticket = self.breaker.enter()
        if ticket is None:
            self.places.release()
            raise last or FrontierUnavailable(
                f"the circuit breaker of provider {self.name!r} is open",
                fix="retry later",
                retry_after_s=self.breaker.retry_after_s(),
            )
        return _Call(self, target_call, ticket)

    async def _within(self, target_call: TargetCall, answer: Awaitable[T]) -> T:
        """Await the beginning of an answer; where it is late, close the connection, then raise."""
        began_s = time.monotonic()
        try:
            async with target_call.deadline.timeout(self.settings.first_byte_timeout_s):
                return await answer
        except TimeoutError:
            raise timed_out(self.name, f"waited {time.monotonic() - began_s:.1f} s") from None
