"""One provider with everything around its wire format: room, breaker, deadlines, retries."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
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
from serving.frontier.failures import may_retry, says_ill, usage_of
from serving.frontier.http_errors import silent
from serving.frontier.provider_api import ProviderApi, StreamPart, WholeAnswer
from serving.frontier.retry_after import wait_s
from serving.frontier.spent import (
    NOTHING,
    UNKNOWN,
    Progress,
    Spent,
    spent_on,
    spent_on_error,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to one target.

    room_timeout_s: longest wait for room among the provider's calls. entry: the page in the books;
    worst_case_usd: what a call may cost at most. prompt_chars: counts what is sent, for answers
    whose provider does not tell their usage. attempts: where failed calls are noted.
    """

    model: str
    request: dict[str, Any]
    deadline: Deadline
    room_timeout_s: float
    entry: Entry
    worst_case_usd: Decimal
    prompt_chars: Callable[[], int]
    attempts: list[Attempt] = field(default_factory=list)


class _Call:
    """One call in flight: holds room and a ticket of the breaker until it is closed, once."""

    def __init__(self, provider: "Provider", ask: Ask, ticket: int) -> None:
        self._provider = provider
        self._ask = ask
        self._ticket = ticket
        self._booked: OpenCall | None = None
        self._started_s = time.monotonic()
        self._closed = False

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    async def book(self) -> None:
        """Write the call into the books; it may be made only when this returns."""
        ask = self._ask
        target = f"{self._provider.name}/{ask.model}"
        self._booked = await ask.entry.open_call(target, ask.worst_case_usd, ask.deadline)

    def answering(self) -> None:
        """The provider began to answer: a probe has its result before the stream's end."""
        breaker = self._provider.breaker
        if breaker.state == "half_open":
            breaker.succeeded(self._ticket)
            self._ticket = breaker.enter() or self._ticket

    def answered(self, spent: Spent) -> None:
        """The call ended with a whole answer."""
        self._provider.breaker.succeeded(self._ticket)
        self._leave("ok", spent)

    def failed(self, error: FrontierError, spent: Spent | None = None) -> None:
        """The call ended in an error. spent: where an answer had begun."""
        if says_ill(error):
            self._provider.breaker.failed(self._ticket)
        else:
            self._provider.breaker.succeeded(self._ticket)
        self._leave(error.code, spent or spent_on_error(error))

    def abandon(self, outcome: str = "cancelled", spent: Spent = UNKNOWN) -> None:
        """Nobody waits for the call any more; does nothing where it has ended."""
        if not self._closed:
            self._provider.breaker.abandoned(self._ticket)
            self._leave(outcome, spent)

    def _leave(self, outcome: str, spent: Spent) -> None:
        assert not self._closed
        self._closed = True
        self._provider.room.release()
        elapsed_s = self.elapsed_s
        if self._booked is not None:
            tier = spent.service_tier
            self._booked.close(CallEnd(outcome, spent.usage, spent.source, elapsed_s, tier))
        provider = self._provider
        provider.events.called(provider.name, self._ask.model, outcome, elapsed_s)


class OpenStream:
    """A stream whose first part is there; iterate `parts`, and close it."""

    def __init__(self, provider: "Provider", ask: Ask, call: _Call, first: StreamPart) -> None:
        self._provider = provider
        self._ask = ask
        self._call = call
        self._first = first
        self._progress = Progress(ask.prompt_chars)
        self._progress.take(first)
        self._rest: AsyncGenerator[StreamPart, None] | None = None

    def continued_by(self, rest: AsyncGenerator[StreamPart, None]) -> "OpenStream":
        """Say where the parts after the first come from."""
        self._rest = rest
        return self

    @property
    def spent(self) -> Spent:
        """Return what the answer used so far: told by the provider once it is whole."""
        return self._progress.spent()

    async def parts(self) -> AsyncGenerator[StreamPart, None]:
        """Yield every part. Raises FrontierStreamBroken, also for silence and the deadline."""
        assert self._rest is not None
        try:
            yield self._first
            while True:
                try:
                    part = await self._next(self._rest)
                except StopAsyncIteration:
                    self._call.answered(self.spent)
                    return
                self._progress.take(part)
                yield part
        except FrontierError as error:
            self._call.failed(error, self.spent)
            raise
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Close the connection and give the room back; harmless when repeated."""
        try:
            if self._rest is not None:
                await self._rest.aclose()
        finally:
            self._call.abandon(spent=self.spent)

    async def _next(self, rest: AsyncGenerator[StreamPart, None]) -> StreamPart:
        idle_s = self._provider.settings.idle_timeout_s
        try:
            async with asyncio.timeout(min(idle_s, self._ask.deadline.remaining_s())):
                return await anext(rest)
        except TimeoutError:
            what = (
                "was silent for too long" if self._ask.deadline.remaining_s() else "took too long"
            )
            raise FrontierStreamBroken(
                f"the answer of provider {self._provider.name!r} {what} after it had begun",
                fix="raise idle_timeout_s or the request's timeout",
            ) from None


class Provider:
    """Asks one provider, again where that may help. Calls beyond max_concurrent wait their turn."""

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
        self.room = asyncio.Semaphore(settings.max_concurrent)
        self.breaker = Breaker(settings.breaker, lambda state: events.breaker_changed(name, state))
        self._rng = rng

    async def whole(self, ask: Ask) -> WholeAnswer:
        """Return a whole answer; its usage is an estimate where the provider told none.

        Raises the last call's FrontierError, DeadlineExceeded, BudgetExceeded, LedgerUnavailable.
        """

        async def once(call: _Call) -> WholeAnswer:
            answer = await self._within(ask, self.api.whole(ask.request))
            spent = spent_on(answer, ask.prompt_chars)
            call.answered(spent)
            if spent.source == "reported":
                return answer
            assert spent.usage is not None
            body = {**answer.body, "usage": openai_usage(spent.usage)}
            return replace(answer, body=body, usage=spent.usage)

        return await self._retried(ask, once)

    async def stream(self, ask: Ask) -> OpenStream:
        """Return a stream that has begun. Raises as `whole`."""

        async def once(call: _Call) -> OpenStream:
            parts = self.api.stream(ask.request)
            try:
                first = await self._within(ask, anext(parts))
            except StopAsyncIteration:
                raise FrontierUnavailable(f"provider {self.name!r} sent an empty stream") from None
            except BaseException:
                await parts.aclose()
                raise
            call.answering()
            return OpenStream(self, ask, call, first).continued_by(parts)

        return await self._retried(ask, once)

    async def _retried(self, ask: Ask, once: Callable[[_Call], Awaitable[T]]) -> T:
        last: FrontierError | None = None
        retry = 0
        while True:
            call = await self._enter(ask, last)
            try:
                await call.book()
            except BaseException as error:
                code = error.code if isinstance(error, NarrowgateError) else "cancelled"
                call.abandon(code, NOTHING)
                raise
            try:
                return await once(call)
            except FrontierError as error:
                call.failed(error)
                ask.attempts.append(
                    Attempt(f"{self.name}/{ask.model}", error.code, call.elapsed_s, usage_of(error))
                )
                pause_s = self._pause_s(error, retry, ask.deadline)
                if pause_s is None:
                    raise
                last = error
            except BaseException:
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

    async def _enter(self, ask: Ask, last: FrontierError | None) -> _Call:
        """Wait for room and the breaker's leave. last: the error to repeat where there is none."""
        try:
            async with asyncio.timeout(min(ask.room_timeout_s, ask.deadline.remaining_s())):
                await self.room.acquire()
        except TimeoutError:
            if last is not None:
                raise last from None
            if not ask.deadline.remaining_s():
                raise deadline_exceeded() from None
            raise FrontierUnavailable(
                f"provider {self.name!r} has {self.settings.max_concurrent} calls in flight",
                fix="retry later, or raise max_concurrent",
                retry_after_s=1,
            ) from None
        ticket = self.breaker.enter()
        if ticket is None:
            self.room.release()
            raise last or FrontierUnavailable(
                f"provider {self.name!r} kept failing and is left alone for now",
                fix="retry later",
                retry_after_s=self.breaker.retry_after_s(),
            )
        return _Call(self, ask, ticket)

    async def _within(self, ask: Ask, answer: Awaitable[T]) -> T:
        """Await an answer's begin; where it is late, close its connection before raising."""
        limit_s = min(self.settings.first_byte_timeout_s, ask.deadline.remaining_s())
        try:
            async with asyncio.timeout(limit_s):
                return await answer
        except TimeoutError:
            raise silent(self.name, f"waited {limit_s:.1f} s") from None
