"""Prunes the contexts of a chat in a thread, and states what was done and under which claim."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from serving.context.detection import Place, question_of, texts_of
from serving.context.pruning import Part, Pruner, pays_to_prune
from serving.context.replacing import cached_tokens, replaced, texts_at, tokens_before
from serving.contracts.answer import Usage
from serving.contracts.context_settings import ContextSettings
from serving.contracts.errors import NarrowgateError
from serving.contracts.evidence import NO_GUARANTEE, Guarantee
from serving.contracts.prices import MIN_CACHED_TOKENS, PriceList, input_tokens
from serving.contracts.requests import ChatRequest, Message, PruningMode
from serving.contracts.text_length import quarter_tokens
from serving.pipeline.exit_recorder import Served, under_claim
from serving.pipeline.paired_auditor import UNDECIDED, PairDecision
from serving.pipeline.plan import FrontierPlan

logger = logging.getLogger(__name__)

_AT_ONCE = 2
"""Contexts that are pruned at once: the largest take 4 s and 600 MiB each."""
_LONGEST_WAIT_S = 2.0

PruningOutcome = Literal[
    "pruned", "no_question", "too_short", "too_long", "no_saving", "failed", "no_claim",
    "not_earned", "not_comparable", "fallback",
]  # fmt: skip
"""The last four are of the mode `auto`, and send the context whole. no_claim: nothing may be
compared here. not_earned: the claim is not held. not_comparable: a judge cannot compare answers to
the request. fallback: another model answered than the claim is about."""


class PruningEvents(Protocol):
    """Counts prunings; the gateway's metrics implement it."""

    def context_seen(
        self, outcome: PruningOutcome, before: int, after: int, elapsed_s: float
    ) -> None:
        """Count one request with a context. before, after: tokens of the context, estimated."""
        ...

    def context_compared(self, verdict: str) -> None:
        """Count one comparison of answers with the pruned and with the whole context."""
        ...


@dataclass(frozen=True, slots=True)
class PrunedChat:
    """What is sent of a chat with contexts.

    before, after: tokens of the contexts, estimated from characters. sent: so of all texts that are
    sent. decision: of the claim; none where the client or the settings chose the mode.
    """

    request: ChatRequest
    mode: PruningMode
    outcome: PruningOutcome
    before: int
    after: int
    sent: int = 0
    decision: PairDecision = UNDECIDED

    @property
    def is_claimed(self) -> bool:
        """Return whether contexts were pruned under a held claim."""
        return self.outcome == "pruned" and self.mode == "auto"

    @property
    def guarantee(self) -> Guarantee:
        """Return what is known of the error of pruning."""
        ruling = self.decision.ruling
        return NO_GUARANTEE if not self.is_claimed or ruling is None else ruling.standing.guarantee

    def details(self) -> dict[str, Any]:
        """Return what the client is told."""
        return {
            "context": {
                "mode": self.mode,
                "outcome": self.outcome,
                "tokens_before": self.before,
                "tokens_after": self.after,
                "guarantee": self.guarantee.model_dump(mode="json"),
            }
        }

    def sent_whole(self, request: ChatRequest) -> "PrunedChat":
        """Return the chat as it is sent to another model than the claim is about."""
        return replace(self, request=request, outcome="fallback", after=self.before)

    def served_under_claim(self, served: Served, prices: PriceList) -> Served:
        """Return what was served, with the claim and with what pruning avoided under it.

        Without a claim a shorter context counts as no saving: nothing bounds what was lost by it.
        """
        ruling = self.decision.ruling
        if not self.is_claimed or ruling is None:
            return served
        found = under_claim(served, ruling.name)
        if served.usage is None:
            return found
        removed = self._removed(served.usage)
        whole = served.usage.model_copy(
            update={"uncached_input_tokens": served.usage.uncached_input_tokens + removed}
        )
        model = prices.of(served.model)
        avoided = None if model is None else removed * model.base.uncached_input
        return replace(found, reference_usage=whole, avoided_usd=avoided)

    def _removed(self, usage: Usage) -> int:
        """Return the removed tokens as the provider counts tokens, and no more than estimated."""
        share = min(1.0, input_tokens(usage) / max(1, self.sent))
        return round((self.before - self.after) * share)


class ContextPruning:
    """Prunes contexts, of few chats at once. One for a process.

    load: returns the pruner; blocking, called in a thread. marker: ends a prefix that the provider
    is to cache.
    """

    def __init__(
        self,
        settings: ContextSettings,
        load: Callable[[], Pruner],
        prices: PriceList,
        marker: str,
        events: PruningEvents,
    ) -> None:
        self.settings = settings
        self.prices = prices
        self.events = events
        self._load = load
        self._marker = marker
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def pruned(
        self, request: ChatRequest, plan: FrontierPlan, mode: PruningMode, places: Sequence[Place]
    ) -> PrunedChat:
        """Return what is sent. places: of the contexts, at least one. Never fails."""
        try:
            return await self._bounded(lambda: self._pruned(request, plan, mode, places))
        except (NarrowgateError, ArithmeticError, LookupError, ValueError, OSError) as error:
            # Optional: a request is not refused because its context could not be shortened.
            logger.warning("context_pruning_failed error=%s", type(error).__name__)
            return PrunedChat(request, mode, "failed", 0, 0)

    async def whole(
        self,
        request: ChatRequest,
        places: Sequence[Place],
        outcome: PruningOutcome,
        decision: PairDecision,
    ) -> PrunedChat:
        """Return a chat in the mode `auto` whose contexts are sent whole."""
        before = await asyncio.to_thread(_tokens_of, texts_at(request.messages, places))
        return PrunedChat(request, "auto", outcome, before, before, decision=decision)

    def count(self, chat: PrunedChat, began_s: float) -> None:
        """Count a chat. began_s: on the monotonic clock."""
        elapsed_s = time.monotonic() - began_s
        self.events.context_seen(chat.outcome, chat.before, chat.after, elapsed_s)

    async def _bounded(self, work: Callable[[], PrunedChat]) -> PrunedChat:
        """Run in a thread, of which few prune at once. Raises TimeoutError where none is free."""
        async with asyncio.timeout(_LONGEST_WAIT_S):
            await self._slots.acquire()
        running = asyncio.ensure_future(asyncio.to_thread(work))
        # Not when the client leaves: the thread continues.
        running.add_done_callback(lambda _: self._slots.release())
        return await asyncio.shield(running)

    def _pruned(
        self, request: ChatRequest, plan: FrontierPlan, mode: PruningMode, places: Sequence[Place]
    ) -> PrunedChat:
        settings = self.settings
        texts = texts_at(request.messages, places)
        before = _tokens_of(texts)
        question = question_of(request.messages, places)
        refused: PruningOutcome | None = None
        if not question:
            refused = "no_question"
        elif not settings.min_tokens <= before <= settings.max_tokens:
            refused = "too_short" if before < settings.min_tokens else "too_long"
        if refused:
            return PrunedChat(request, mode, refused, before, before)
        keep = (request.pruning.ratio or settings.ratio) if mode == "ratio" else None
        pruned = self._load().prune(question, [Part(text) for text in texts], keep)
        left = self._worth(request.messages, plan, places, texts, pruned.texts)
        after = _tokens_of(left)
        if after >= before:
            return PrunedChat(request, mode, "no_saving", before, before)
        messages = replaced(request.messages, places, left)
        sent = _tokens_of([text for message in messages for _, text in texts_of(message)])
        return PrunedChat(replace(request, messages=messages), mode, "pruned", before, after, sent)

    def _worth(
        self,
        messages: Sequence[Message],
        plan: FrontierPlan,
        places: Sequence[Place],
        texts: Sequence[str],
        pruned: Sequence[str],
    ) -> list[str]:
        """Return the pruned texts, but whole those that the provider's cache serves for less."""
        found = (self.prices.of(target) for target in plan.targets)
        prices = next((model.base for model in found if model is not None), None)
        cached = cached_tokens(messages, self._marker)
        if prices is None or cached < MIN_CACHED_TOKENS:
            return list(pruned)
        left = []
        starts = tokens_before(messages, places)
        for start, text, short in zip(starts, texts, pruned, strict=True):
            is_worth = start >= cached or pays_to_prune(
                prices, cached=cached, start=start, before=quarter_tokens(text) // 4,
                after=quarter_tokens(short) // 4,
            )  # fmt: skip
            left.append(short if is_worth else text)
        return left


def _tokens_of(texts: Sequence[str]) -> int:
    return sum(map(quarter_tokens, texts)) // 4
