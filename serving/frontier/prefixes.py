"""Observes the prefixes of prompts: which to cache, which were cached and where, which change."""

import hashlib
import logging
import time
from collections.abc import Callable, Sequence

from cachetools import LRUCache

from serving.contracts.answer import Usage
from serving.contracts.frontier_settings import PromptCacheSettings
from serving.contracts.prices import TokenPrices, input_tokens
from serving.frontier.cache_policy import (
    TTL_S,
    CachePolicy,
    Ttl,
    least_cached_tokens,
)
from serving.frontier.events import FrontierEvents
from serving.frontier.prefix_lint import PrefixLinter
from serving.frontier.prompt_cache import MAX_BREAKPOINTS, Prefix, SplitPrompt
from serving.frontier.provider_api import CachePlan

logger = logging.getLogger(__name__)

_TURNS = ("earlier", "latest")
_BY_VALUE = ("marked", "latest", "earlier", "system", "tools")
"""Which prefixes get breakpoints where there are more than four, first to last."""


class PrefixWatch:
    """Combines the cache policy, the linter, the places of warm prefixes, and their metrics."""

    def __init__(
        self,
        settings: PromptCacheSettings,
        events: FrontierEvents,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._policy = CachePolicy(settings, clock)
        self._linter = PrefixLinter(settings.tracked_prefixes)
        self._events = events
        self._clock = clock
        # The target that cached a prefix last, and when.
        self._warm: LRUCache[str, tuple[str, float]] = LRUCache(16 * settings.tracked_prefixes)

    def prefixes(self, prompt: SplitPrompt) -> tuple[Prefix, ...]:
        """Return the prefixes that count, shortest first.

        Where a client marks the end of the static part, the rest of its system prompt may change.
        """
        automatic = prompt.automatic if self._settings.automatic else ()
        if prompt.prefixes:
            automatic = tuple(p for p in automatic if p.kind in _TURNS)
        return tuple(sorted((*prompt.prefixes, *automatic), key=_place))

    def observe(self, purpose: str, prompt: SplitPrompt) -> None:
        """Observe a request's prefixes; log each kind of change in a marked part once."""
        self._policy.observe(self.prefixes(prompt), purpose)
        for position, prefix in enumerate(prompt.prefixes):
            # An id of the place: an unstable text would create an id for each request.
            place = hashlib.sha256(f"{purpose}\x00{position}".encode()).hexdigest()[:12]
            warning, unstable = self._linter.observe(purpose, position, place, prefix.text)
            if unstable:
                self._events.prefix_unstable(place)
            if warning is not None:
                logger.warning(
                    "frontier_prefix_unstable purpose=%s position=%d kind=%s at_char=%d "
                    "before_chars=%d after_chars=%d",
                    purpose,
                    position,
                    warning.kind,
                    warning.start,
                    len(warning.before),
                    len(warning.after),
                )

    def plan(self, purpose: str, prompt: SplitPrompt, prices: TokenPrices, model: str) -> CachePlan:
        """Return what to cache at a provider's model with these prices.

        Routing by prefix is free, so it only needs a prefix that is long enough: the longest static
        one, else the opening of the conversation, which its later requests share.
        """
        prefixes = self.prefixes(prompt)
        if not self._settings.enabled or not prefixes:
            return CachePlan()
        # The end of the previous request is read where this one's end is worth writing.
        turns = {p.kind: p for p in prefixes if p.kind in _TURNS}
        found: dict[Prefix, Ttl] = {}
        for prefix in prefixes:
            decided = turns.get("latest", prefix) if prefix.kind == "earlier" else prefix
            pool = self._policy.pool(decided, prefixes, purpose)
            decision = self._policy.decide(decided, prices, model, pool)
            logger.debug("frontier_cache_decision %s", decision)
            if decision.ttl is not None and prefix.tokens >= least_cached_tokens(model):
                found[prefix] = decision.ttl
        return CachePlan(_placed(found), _routing(prefixes, prompt.opening, model))

    def recorded(self, prompt: SplitPrompt, model: str) -> str | None:
        """Return the id of the shared prefix for the ledger; None where none is long enough."""
        static = static_prefix(self.prefixes(prompt))
        is_long = static is not None and static.tokens >= least_cached_tokens(model)
        return static.id if static is not None and is_long else None

    def warm_first(self, prompt: SplitPrompt, targets: Sequence[str]) -> str:
        """Return the target to call first: the one that holds the prompt's prefix in its cache.

        Only another account or region of the first target's own model takes its place: who answers
        changes, and not what answers.
        """
        model = targets[0].partition("/")[2]
        for prefix in reversed(self.prefixes(prompt)):
            target, at_s = self._warm.get(prefix.digest, ("", 0.0))
            is_live = self._clock() - at_s <= TTL_S["5m"]
            if is_live and target in targets and target.partition("/")[2] == model:
                return target
        return targets[0]

    def answered(self, prompt: SplitPrompt, target: str, usage: Usage) -> None:
        """Count how much of an answered request's input was read from the provider's cache."""
        prefixes = self.prefixes(prompt)
        if not prefixes:
            return
        if usage.cache_read_tokens or usage.cache_write_5m_tokens or usage.cache_write_1h_tokens:
            for prefix in prefixes:
                self._warm[prefix.digest] = (target, self._clock())
        static = static_prefix(prefixes)
        label = "other" if static is None else self._policy.label(static)
        written = usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
        self._events.prefix_read(label, usage.cache_read_tokens, written, input_tokens(usage))


def static_prefix(prefixes: Sequence[Prefix]) -> Prefix | None:
    """Return the longest prefix that different conversations can share."""
    return next((p for p in reversed(prefixes) if p.kind not in _TURNS), None)


def _place(prefix: Prefix) -> tuple[int, bool, int, int]:
    """Return the place of a prefix's end; the end of a message is behind all ends inside it."""
    return prefix.message, prefix.end is None, prefix.part or 0, prefix.end or 0


def _placed(found: dict[Prefix, Ttl]) -> tuple[tuple[Prefix, Ttl], ...]:
    """Return at most four breakpoints in the prompt's order.

    Anthropic refuses a longer time to live behind a shorter one, so an earlier breakpoint gets at
    least the time of those behind it.
    """
    best = sorted(found, key=lambda prefix: _BY_VALUE.index(prefix.kind))[:MAX_BREAKPOINTS]
    placed: list[tuple[Prefix, Ttl]] = []
    ttl: Ttl = "5m"
    for prefix in sorted(best, key=_place, reverse=True):
        ttl = "1h" if "1h" in (ttl, found[prefix]) else "5m"
        placed.insert(0, (prefix, ttl))
    return tuple(placed)


def _routing(prefixes: Sequence[Prefix], opening: str | None, model: str) -> str | None:
    least = least_cached_tokens(model)
    static = [p for p in prefixes if p.kind not in _TURNS and p.tokens >= least]
    if static:
        return static[-1].digest
    return opening if prefixes and prefixes[-1].tokens >= least else None
