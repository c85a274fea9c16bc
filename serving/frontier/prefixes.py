"""Observes the prefixes that markers end: which to cache, which were cached, which change."""

import hashlib
import logging
from collections.abc import Sequence

from serving.contracts.answer import Usage
from serving.contracts.prices import MIN_CACHED_TOKENS, TokenPrices, input_tokens
from serving.frontier.cache_policy import CachePolicy
from serving.frontier.events import FrontierEvents
from serving.frontier.prefix_lint import PrefixLinter
from serving.frontier.prompt_cache import Prefix
from serving.frontier.provider_api import CachePlan

logger = logging.getLogger(__name__)


class PrefixWatch:
    """Combines the cache policy, the linter and their metrics."""

    def __init__(self, policy: CachePolicy, linter: PrefixLinter, events: FrontierEvents) -> None:
        self._policy = policy
        self._linter = linter
        self._events = events

    def observe(self, purpose: str, prefixes: Sequence[Prefix]) -> None:
        """Observe a request's prefixes; log each kind of change in a static part once."""
        self._policy.observe(prefixes)
        for position, prefix in enumerate(prefixes):
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

    def plan(self, prefixes: Sequence[Prefix], prices: TokenPrices) -> CachePlan:
        """Return what to cache at a provider with these prices.

        Routing by prefix is free, so it only needs a prefix that is long enough.
        """
        placed = []
        routing: str | None = None
        for prefix in prefixes:
            decision = self._policy.decide(prefix, prices)
            logger.debug("frontier_cache_decision %s", decision)
            if decision.ttl is not None:
                placed.append((prefix, decision.ttl))
            if decision.reason != "disabled" and prefix.tokens >= MIN_CACHED_TOKENS:
                routing = prefix.digest
        return CachePlan(tuple(placed), routing)

    def answered(self, prefixes: Sequence[Prefix], usage: Usage) -> None:
        """Count how much of an answered request's input was read from the provider's cache."""
        if prefixes:
            self._events.prefix_read(
                self._policy.label(prefixes[-1]), usage.cache_read_tokens, input_tokens(usage)
            )
