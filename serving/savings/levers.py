"""What each lever would have changed in one logged call. No call is made; nothing is stored."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from cachetools import LRUCache

from serving.cache.cacheable import unfit_chat, unfit_document
from serving.cache.key import chat_key
from serving.context.detection import context_places, question_of, texts_of
from serving.context.lazy import LazyPruner
from serving.context.pruning import Part
from serving.contracts.answer import Usage
from serving.contracts.prices import ModelPrices, TokenPrices, input_tokens
from serving.contracts.requests import ChatRequest
from serving.contracts.routing import RequestOptions
from serving.contracts.settings import Settings
from serving.contracts.text_length import quarter_tokens
from serving.frontier.cache_policy import TTL_S, Ttl
from serving.frontier.prefixes import PrefixWatch
from serving.frontier.prompt_cache import canonical, split_prompt
from serving.savings.exports import LoggedCall

_REMEMBERED_KEYS = 1_000_000
_REMEMBERED_PREFIXES = 100_000

_WHOLE_TOKENS = 200_000
"""Tokens of context that are pruned one by one, in 5 to 10 s. Then one context of twenty is."""
_STRIDE = 20

_BREAKPOINT_MODELS = "claude"
"""In the names of models whose providers cache only up to a breakpoint."""


@dataclass(frozen=True, slots=True)
class Prefixed:
    """Input tokens that automatic breakpoints would have read from the cache and written to it."""

    read: int = 0
    written: Mapping[Ttl, int] | None = None


class ExactCache:
    """Finds requests that an earlier one equals, as the exact cache does."""

    def __init__(self, settings: Settings) -> None:
        self._ttl_s = settings.cache.ttl_s
        self._sampled = settings.cache.sampled
        # By key, the time of the answer.
        self._answered: LRUCache[str, float | None] = LRUCache(_REMEMBERED_KEYS)

    def hits(self, request: ChatRequest, call: LoggedCall) -> bool:
        """Return whether a stored answer serves a request; remember its own answer otherwise."""
        if unfit_chat(request, self._sampled) is not None:
            return False
        key = chat_key(request, RequestOptions(), "log", "log")[:32]
        if key in self._answered:
            at_s = self._answered[key]
            if at_s is None or call.at_s is None or call.at_s - at_s <= self._ttl_s:
                return True
        if call.answer is not None and unfit_document(call.answer) is None:
            self._answered[key] = call.at_s
        return False


class ContextPruning:
    """Measures how much of the contexts the certified threshold removes."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings.context
        self._pruner = LazyPruner(settings.context)
        self._before = self._after = self.found = self.measured = 0

    def removed_share(self, request: ChatRequest, whole_tokens: int) -> float:
        """Return the removed share of a request's input. whole_tokens: of its texts, rough."""
        places = context_places(request.messages, request.pruning.marked, self._settings.tools)
        question = question_of(request.messages, places) if places else ""
        if not question:
            return 0.0
        texts = []
        for place in places:
            text = dict(texts_of(request.messages[place.message]))[place.part]
            texts.append(text[place.start : place.end])
        before = sum(map(quarter_tokens, texts)) // 4
        if not self._settings.min_tokens <= before <= self._settings.max_tokens:
            return 0.0
        self.found += 1
        if self._before <= _WHOLE_TOKENS or self.found % _STRIDE == 0:
            pruned = self._pruner.get().prune(question, [Part(text) for text in texts])
            after = min(before, sum(map(quarter_tokens, pruned.texts)) // 4)
            self._before, self._after = self._before + before, self._after + after
            self.measured += 1
            left = after / before
        else:
            left = self._after / self._before
        return before * (1.0 - left) / max(1, whole_tokens)


class PromptCaching:
    """Replays the shipped planner's breakpoints against a cache as the provider keeps it."""

    def __init__(self, settings: Settings) -> None:
        self._now_s = 0.0
        self._marker = settings.frontier.prompt_cache.marker
        self._watch = PrefixWatch(settings.frontier.prompt_cache, _Unwatched(), lambda: self._now_s)
        # Until when a model's prefix is kept, and for how long a read renews it.
        self._kept: LRUCache[tuple[str, str], tuple[float, float]] = LRUCache(_REMEMBERED_PREFIXES)

    def planned(
        self, call: LoggedCall, target: str, prices: TokenPrices, used: Usage, rough_tokens: int
    ) -> Prefixed:
        """Return what would have been read and written, in the provider's own tokens.

        Nothing where the log has no time, where the client's own breakpoints worked, and where the
        provider caches by itself. rough_tokens: of the whole prompt.
        """
        own = used.cache_read_tokens + used.cache_write_5m_tokens + used.cache_write_1h_tokens
        is_explicit = _BREAKPOINT_MODELS in target and prices.cache_write_5m > prices.uncached_input
        if call.at_s is None or own or not is_explicit:
            return Prefixed()
        self._now_s = max(self._now_s, call.at_s)
        prompt = split_prompt(call.body, self._marker)
        purpose = ""
        self._watch.observe(purpose, prompt)
        model = target.partition("/")[2]
        plan = self._watch.plan(purpose, prompt, prices, model)
        read, end = 0, 0
        lasts: Ttl = "5m"
        for prefix, ttl in plan.breakpoints:
            key = (target, prefix.digest)
            until_s, length_s = self._kept.get(key, (0.0, 0.0))
            if until_s >= self._now_s:
                read = prefix.tokens
                self._kept[key] = (self._now_s + length_s, length_s)
            else:
                self._kept[key] = (self._now_s + TTL_S[ttl], TTL_S[ttl])
            end, lasts = prefix.tokens, ttl
        scale = input_tokens(used) / max(1, rough_tokens)
        most = input_tokens(used)
        read = min(most, round(read * scale))
        written = min(most - read, max(0, round(end * scale) - read))
        return Prefixed(read, {lasts: written})


class _Unwatched:
    """Events that nobody counts."""

    def called(self, provider: str, model: str, outcome: str, elapsed_s: float) -> None:
        pass

    def retried(self, provider: str, reason: str) -> None:
        pass

    def fell_back(self, from_target: str, to_target: str, reason: str) -> None:
        pass

    def breaker_changed(self, provider: str, state: str) -> None:
        pass

    def prefix_read(
        self, prefix_id: str, read_tokens: int, written_tokens: int, input_tokens: int
    ) -> None:
        pass

    def prefix_unstable(self, prefix_id: str) -> None:
        pass


def rough_tokens(body: Mapping[str, Any]) -> int:
    """Return the rough length of a prompt, tokens."""
    quarters = quarter_tokens(canonical(body["tools"])) if body.get("tools") else 0
    for message in body.get("messages", ()):
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, str):
            quarters += quarter_tokens(content)
        elif content is not None:
            texts = content if isinstance(content, list) else [content]
            for part in texts:
                text = part.get("text") if isinstance(part, Mapping) else None
                quarters += quarter_tokens(text if isinstance(text, str) else canonical(part))
    return quarters // 4


def may_be_shortened(body: Mapping[str, Any]) -> bool:
    """Return whether directive and bound apply: no tools, no format, one answer."""
    form = body.get("response_format")
    is_plain = not form or (isinstance(form, Mapping) and form.get("type") == "text")
    return is_plain and not body.get("tools") and not body.get("functions")


def pruned_usage(usage: Usage, share: float) -> Usage:
    """Return a usage whose uncached input lacks a share of the whole input."""
    removed = min(usage.uncached_input_tokens, round(share * input_tokens(usage)))
    left = usage.uncached_input_tokens - removed
    return usage.model_copy(update={"uncached_input_tokens": left})


def cached_usage(usage: Usage, prefixed: Prefixed, served: float, left: float) -> Usage:
    """Return a usage with the prefixes read and written. left: share of the input after pruning.

    served: share of the reads that the provider serves; what is not served is written again.
    """
    read = int(prefixed.read * left * served)
    written = {ttl: int(tokens * left) for ttl, tokens in (prefixed.written or {}).items()}
    missed = int(prefixed.read * left) - read
    short, hour = written.get("5m", 0) + missed, written.get("1h", 0)
    uncached = max(0, usage.uncached_input_tokens - read - short - hour)
    changed = {
        "uncached_input_tokens": uncached, "cache_read_tokens": read,
        "cache_write_5m_tokens": short, "cache_write_1h_tokens": hour,
    }  # fmt: skip
    return usage.model_copy(update=changed)


def cheaper_model(
    own: ModelPrices, usage: Usage, service_tier: str | None, candidates: Iterable[ModelPrices]
) -> ModelPrices | None:
    """Return the most expensive candidate that costs at most 0.7 of a call's own model.

    Each at the prices of the call's length and service tier.
    """

    def cost_of(prices: ModelPrices) -> Decimal:
        return prices.applied(usage, service_tier).step.prices.cost(usage)

    cost = cost_of(own)
    provider = own.model.partition("/")[0]
    by_name = {prices.model: prices for prices in candidates}
    found = {name: cost_of(prices) for name, prices in by_name.items()}
    fits = {n: usd for n, usd in found.items() if usd * 10 <= cost * 7 and n != own.model}
    near = {n: usd for n, usd in fits.items() if n.partition("/")[0] == provider} or fits
    return by_name[max(near, key=lambda name: near[name])] if near else None
