"""Whether caching a prefix pays off. Keeps the prefixes seen in memory; the clock is injected.

A cache write costs w instead of i a token, each read r instead of i. With n reads a write,
caching pays when n (i - r) > w - i, that is beyond n* = (w - i) / (i - r) reads.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

from cachetools import LRUCache

from serving.contracts.frontier_settings import PromptCacheSettings
from serving.contracts.prices import MIN_CACHED_TOKENS, TokenPrices
from serving.frontier.prompt_cache import Prefix

Ttl = Literal["5m", "1h"]
TTL_S: dict[Ttl, float] = {"5m": 300.0, "1h": 3600.0}

_REMEMBERED_GAPS = 32


@dataclass(frozen=True, slots=True)
class CacheDecision:
    """The decision whether to cache a prefix, for the log.

    expected_reuses: reads a write. break_even: reads from which caching pays; None where reads are
    not cheaper than input, or prices did not decide. ttl: None where it is not cached.
    """

    prefix_id: str
    tokens: int
    ttl: Ttl | None
    reason: Literal["pays", "too_short", "too_rare", "reads_not_cheaper", "disabled"]
    expected_reuses: float = 0.0
    break_even: Decimal | None = None


@dataclass(slots=True)
class _Seen:
    at_s: float
    gaps_s: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_GAPS))


def break_even_reuses(prices: TokenPrices, ttl: Ttl) -> Decimal | None:
    """Return the reads a write from which caching pays; None where reads are not cheaper."""
    write = prices.cache_write_5m if ttl == "5m" else prices.cache_write_1h
    saved = prices.uncached_input - prices.cache_read
    if saved <= 0:
        return None
    return max(Decimal(0), write - prices.uncached_input) / saved


class CachePolicy:
    """Remembers when prefixes were used and decides which to cache."""

    def __init__(
        self, settings: PromptCacheSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._seen: LRUCache[str, _Seen] = LRUCache(settings.tracked_prefixes)
        self._labels: set[str] = set()

    def label(self, prefix: Prefix) -> str:
        """Return a prefix's label for metrics: its id once it was used twice, otherwise `other`.

        At most tracked_prefixes labels exist. Prefixes that change with each request would
        otherwise create one label each.
        """
        seen: _Seen | None = self._seen.get(prefix.digest)
        if seen and seen.gaps_s and len(self._labels) < self._settings.tracked_prefixes:
            self._labels.add(prefix.id)
        return prefix.id if prefix.id in self._labels else "other"

    def observe(self, prefixes: Sequence[Prefix]) -> None:
        """Record a request with these prefixes. The least recently used are forgotten first."""
        now = self._clock()
        for prefix in prefixes:
            seen = self._seen.get(prefix.digest)
            if seen is None:
                self._seen[prefix.digest] = _Seen(now)
            else:
                seen.gaps_s.append(now - seen.at_s)
                seen.at_s = now

    def expected_reuses(self, prefix: Prefix, ttl: Ttl) -> float:
        """Return the expected reads per write; a read renews the time to live.

        A gap within the time to live is a read; a write is due at the start and after each longer
        gap. Returns the setting where nothing was observed yet.
        """
        seen = self._seen.get(prefix.digest)
        if seen is None or not seen.gaps_s:
            return self._settings.expected_reuses
        reads = sum(gap <= TTL_S[ttl] for gap in seen.gaps_s)
        return reads / (len(seen.gaps_s) - reads + 1)

    def decide(self, prefix: Prefix, prices: TokenPrices) -> CacheDecision:
        """Return whether to cache a prefix, and for how long: the shortest time that pays off."""
        if not self._settings.enabled:
            return CacheDecision(prefix.id, prefix.tokens, None, "disabled")
        if prefix.tokens < MIN_CACHED_TOKENS:
            return CacheDecision(prefix.id, prefix.tokens, None, "too_short")
        for ttl in TTL_S:
            expected = self.expected_reuses(prefix, ttl)
            least = break_even_reuses(prices, ttl)
            if least is None:
                return CacheDecision(prefix.id, prefix.tokens, None, "reads_not_cheaper", expected)
            if Decimal(expected) > least:
                return CacheDecision(prefix.id, prefix.tokens, ttl, "pays", expected, least)
        return CacheDecision(prefix.id, prefix.tokens, None, "too_rare", expected, least)
