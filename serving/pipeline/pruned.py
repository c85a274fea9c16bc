"""Prunes a chat's context before its frontier call; sends it whole where that fails."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from serving.context.detection import Place, context_places, question_of, texts_of
from serving.context.pruning import Part, Pruner, pays_to_prune
from serving.contracts.context_settings import ContextSettings, PruningMode
from serving.contracts.errors import NarrowgateError
from serving.contracts.prices import MIN_CACHED_TOKENS, PriceList
from serving.contracts.requests import ChatRequest, Message
from serving.contracts.text_length import quarter_tokens
from serving.pipeline.exit_recorder import Outcome, OutcomeStream, RequestRecord
from serving.pipeline.plan import FrontierPlan
from serving.pipeline.runner import Runner

logger = logging.getLogger(__name__)

_AT_ONCE = 2
"""Contexts that are pruned at once: the largest take 4 s and 600 MiB each."""
_LONGEST_WAIT_S = 2.0

PruningOutcome = Literal["pruned", "no_question", "too_short", "too_long", "no_saving", "failed"]


class PruningEvents(Protocol):
    """Counts prunings; the gateway's metrics implement it."""

    def context_seen(
        self, outcome: PruningOutcome, before: int, after: int, elapsed_s: float
    ) -> None:
        """Count one request with a context. before, after: tokens of the context, estimated."""
        ...


@dataclass(frozen=True, slots=True)
class Pruning:
    """What pruning needs. load: returns the pruner; blocking, called in a thread.

    marker: ends a prefix that the provider is to cache.
    """

    settings: ContextSettings
    load: Callable[[], Pruner]
    prices: PriceList
    marker: str
    events: PruningEvents


@dataclass(frozen=True, slots=True)
class _Result:
    request: ChatRequest
    mode: PruningMode
    outcome: PruningOutcome
    before: int
    after: int

    def details(self) -> dict[str, Any]:
        return {
            "context": {
                "mode": self.mode,
                "outcome": self.outcome,
                "tokens_before": self.before,
                "tokens_after": self.after,
                "guarantee": "none",
            }
        }


class Pruned:
    """Implements Runner: another runner gets the request with its context pruned."""

    def __init__(self, runner: Runner[ChatRequest, FrontierPlan], pruning: Pruning) -> None:
        self._runner = runner
        self._pruning = pruning
        self._slots = asyncio.Semaphore(_AT_ONCE)

    def concerns(self, request: ChatRequest, _plan: FrontierPlan) -> bool:
        """Return whether a request may hold a context to prune; takes microseconds."""
        settings = self._pruning.settings
        is_off = (request.pruning.mode or settings.mode) == "off"
        return not is_off and _may_hold_context(request, settings.tools)

    async def whole(
        self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord
    ) -> list[Outcome]:
        """Run with what is left; the answer states the tokens before and after."""
        result = await self._pruned(request, plan)
        if result is None:
            return await self._runner.whole(request, plan, record)
        outcomes = await self._runner.whole(result.request, plan, record)
        return [
            replace(one, content={**one.content, "narrowgate": result.details()})
            if isinstance(one.content, dict)
            else one
            for one in outcomes
        ]

    async def stream(
        self, request: ChatRequest, plan: FrontierPlan, record: RequestRecord
    ) -> Outcome | OutcomeStream:
        """As `whole`; the first event states the tokens."""
        result = await self._pruned(request, plan)
        if result is None:
            return await self._runner.stream(request, plan, record)
        stream = await self._runner.stream(result.request, plan, record)
        if isinstance(stream, Outcome):
            return stream
        return replace(stream, events=_Stated(stream.events, result.details()))

    async def _pruned(self, request: ChatRequest, plan: FrontierPlan) -> _Result | None:
        """Return what is sent; None where the request has no context."""
        mode = request.pruning.mode or self._pruning.settings.mode
        places = await asyncio.to_thread(
            context_places, request.messages, request.pruning.marked, self._pruning.settings.tools
        )
        if not places:
            return None
        began = time.monotonic()
        try:
            result = await self._bounded(lambda: self._result(request, plan, mode, places))
        except (NarrowgateError, ArithmeticError, LookupError, ValueError, OSError) as error:
            # Optional: a request is not refused because its context could not be shortened.
            logger.warning("context_pruning_failed error=%s", type(error).__name__)
            result = _Result(request, mode, "failed", 0, 0)
        elapsed_s = time.monotonic() - began
        self._pruning.events.context_seen(result.outcome, result.before, result.after, elapsed_s)
        return result

    async def _bounded(self, work: Callable[[], _Result]) -> _Result:
        """Run in a thread, of which few prune at once. Raises TimeoutError where none is free."""
        async with asyncio.timeout(_LONGEST_WAIT_S):
            await self._slots.acquire()
        running = asyncio.ensure_future(asyncio.to_thread(work))
        # Not when the client leaves: the thread continues.
        running.add_done_callback(lambda _: self._slots.release())
        return await asyncio.shield(running)

    def _result(
        self, request: ChatRequest, plan: FrontierPlan, mode: PruningMode, places: Sequence[Place]
    ) -> _Result:
        settings = self._pruning.settings
        texts = _texts_at(request.messages, places)
        before = sum(map(quarter_tokens, texts)) // 4
        question = question_of(request.messages, places)
        refused: PruningOutcome | None = None
        if not question:
            refused = "no_question"
        elif not settings.min_tokens <= before <= settings.max_tokens:
            refused = "too_short" if before < settings.min_tokens else "too_long"
        if refused:
            return _Result(request, mode, refused, before, before)
        keep = (request.pruning.ratio or settings.ratio) if mode == "ratio" else None
        pruned = self._pruning.load().prune(question, [Part(text) for text in texts], keep)
        left = self._worth(request.messages, plan, places, texts, pruned.texts)
        after = sum(map(quarter_tokens, left)) // 4
        if after >= before:
            return _Result(request, mode, "no_saving", before, before)
        messages = _replaced(request.messages, places, left)
        return _Result(replace(request, messages=messages), mode, "pruned", before, after)

    def _worth(
        self,
        messages: Sequence[Message],
        plan: FrontierPlan,
        places: Sequence[Place],
        texts: Sequence[str],
        pruned: Sequence[str],
    ) -> list[str]:
        """Return the pruned texts, but whole those that the provider's cache serves for less."""
        found = (self._pruning.prices.of(target) for target in plan.targets)
        prices = next((model.base for model in found if model is not None), None)
        cached = _cached_tokens(messages, self._pruning.marker)
        if prices is None or cached < MIN_CACHED_TOKENS:
            return list(pruned)
        left = []
        starts = _tokens_before(messages, places)
        for start, text, short in zip(starts, texts, pruned, strict=True):
            is_worth = start >= cached or pays_to_prune(
                prices, cached=cached, start=start, before=quarter_tokens(text) // 4,
                after=quarter_tokens(short) // 4,
            )  # fmt: skip
            left.append(short if is_worth else text)
        return left


class _Stated:
    """A stream's events, the first with what was pruned. Closing it closes the stream."""

    def __init__(self, events: AsyncIterator[dict[str, Any]], details: dict[str, Any]) -> None:
        self._events = events
        self._details: dict[str, Any] | None = details

    def __aiter__(self) -> "_Stated":
        return self

    async def __anext__(self) -> dict[str, Any]:
        event = await anext(self._events)
        if self._details is None:
            return event
        details, self._details = self._details, None
        return {**event, "narrowgate": details}

    async def aclose(self) -> None:
        close = getattr(self._events, "aclose", None)
        if close is not None:
            await close()


def _may_hold_context(request: ChatRequest, tools: Collection[str]) -> bool:
    if tools or request.pruning.marked:
        return True
    return any("<" in text for message in request.messages for _, text in texts_of(message))


def _texts_at(messages: Sequence[Message], places: Sequence[Place]) -> list[str]:
    texts = {index: dict(texts_of(messages[index])) for index in {p.message for p in places}}
    return [texts[place.message][place.part][place.start : place.end] for place in places]


def _replaced(
    messages: Sequence[Message], places: Sequence[Place], texts: Sequence[str]
) -> tuple[Message, ...]:
    """Return the messages with other texts at the places, which are in order."""
    changes: defaultdict[int, defaultdict[int | None, list[tuple[Place, str]]]]
    changes = defaultdict(lambda: defaultdict(list))
    for place, text in zip(places, texts, strict=True):
        changes[place.message][place.part].append((place, text))
    changed = list(messages)
    for index, of_parts in changes.items():
        content: Any = messages[index].content
        if isinstance(content, str):
            content = _spliced(content, of_parts[None])
        else:
            content = tuple(
                {**part, "text": _spliced(part["text"], of_parts[number])}
                if number in of_parts
                else part
                for number, part in enumerate(content)
            )
        changed[index] = replace(messages[index], content=content)
    return tuple(changed)


def _spliced(whole: str, changes: Sequence[tuple[Place, str]]) -> str:
    pieces: list[str] = []
    start = 0
    for place, text in changes:
        pieces += [whole[start : place.start], text]
        start = place.end
    return "".join([*pieces, whole[start:]])


def _cached_tokens(messages: Sequence[Message], marker: str) -> int:
    """Return the tokens up to the last mark that ends a prefix to cache; 0 without a mark."""
    total = cached = 0
    for message in messages:
        for part, text in texts_of(message):
            position = text.rfind(marker)
            if position >= 0:
                cached = total + quarter_tokens(text[:position])
            total += quarter_tokens(text)
            content = message.content
            if part is not None and isinstance(content, tuple) and "cache_control" in content[part]:
                cached = total
    return cached // 4


def _tokens_before(messages: Sequence[Message], places: Sequence[Place]) -> list[int]:
    """Return the tokens of the messages before each place. places: in order."""
    found: list[int] = []
    inside: defaultdict[tuple[int, int | None], list[Place]] = defaultdict(list)
    for place in places:
        inside[place.message, place.part].append(place)
    total = 0
    for index, message in enumerate(messages):
        for part, text in texts_of(message):
            start = 0
            for place in inside[index, part]:
                total += quarter_tokens(text[start : place.start])
                start = place.start
                found.append(total // 4)
            total += quarter_tokens(text[start:])
    return found
