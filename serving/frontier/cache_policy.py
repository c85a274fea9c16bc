"""Whether caching a prefix pays off. Keeps the prefixes seen in memory; the clock is injected.

A cache write costs w instead of i a token, each read r instead of i. With n reads a write,
caching pays when n (i - r) > w - i, that is beyond n* = (w - i) / (i - r) reads. Of several times
to live the one that saves most a request is used: (n (i - r) - (w - i)) / (n + 1).
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
_REMEMBERED_USES = 64
_LEAST_TOKENS = (
    ("claude-haiku-4-5", 4096),
    ("claude-opus-4-5", 4096),
    ("claude-opus-4-6", 4096),
    ("claude-3-5-haiku", 2048),
    ("claude-3-haiku", 2048),
)
"""Shortest prefix that a model caches, by the start of its name; Anthropic's documentation.

Other models: MIN_CACHED_TOKENS. A breakpoint behind a shorter prefix is ignored and costs nothing.
"""


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
class _Use:
    """One request with a prefix. gap_s: until the next one with it; None while there is none."""

    at_s: float
    gap_s: float | None = None


@dataclass(slots=True)
class _Seen:
    """The requests with one prefix. use: the last of them, in the pool of prefixes like it."""

    at_s: float
    gaps_s: deque[float] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_GAPS))
    use: _Use | None = None


def break_even_reuses(prices: TokenPrices, ttl: Ttl) -> Decimal | None:
    """Return the reads a write from which caching pays; None where reads are not cheaper."""
    saved = prices.uncached_input - prices.cache_read
    if saved <= 0:
        return None
    return max(Decimal(0), _write_price(prices, ttl) - prices.uncached_input) / saved


def least_cached_tokens(model: str) -> int:
    """Return the shortest prefix that a model caches, tokens. model: as its provider names it."""
    found = (least for name, least in _LEAST_TOKENS if model.startswith(name))
    return next(found, MIN_CACHED_TOKENS)


class CachePolicy:
    """Remembers when prefixes were used and decides which to cache.

    Prefixes that no client marked may be used only once: a system prompt with a date, the end of a
    conversation. What is expected of a new one is what was observed of those in its pool: prefixes
    of the same kind and purpose, and for a conversation behind the same system prompt.
    """

    def __init__(
        self, settings: PromptCacheSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._seen: LRUCache[str, _Seen] = LRUCache(settings.tracked_prefixes)
        # Each turn of a conversation ends a prefix of its own.
        self._turns: LRUCache[str, _Seen] = LRUCache(16 * settings.tracked_prefixes)
        self._pools: LRUCache[str, deque[_Use]] = LRUCache(settings.tracked_prefixes)
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

    def observe(self, prefixes: Sequence[Prefix], purpose: str = "") -> None:
        """Record a request with these prefixes. The least recently used are forgotten first.

        Of a conversation, the end of the previous request was used again, and this request's end
        may be.
        """
        now = self._clock()
        for prefix in prefixes:
            memory = self._turns if prefix.kind in ("earlier", "latest") else self._seen
            seen: _Seen | None = memory.get(prefix.digest)
            if seen is None and prefix.kind == "earlier":
                continue
            if seen is None:
                seen = memory[prefix.digest] = _Seen(now)
            else:
                seen.gaps_s.append(now - seen.at_s)
                if seen.use is not None and seen.use.gap_s is None:
                    seen.use.gap_s = now - seen.at_s
                seen.at_s = now
            if (name := self.pool(prefix, prefixes, purpose)) is not None:
                seen.use = _Use(now)
                self._pools.setdefault(name, deque(maxlen=_REMEMBERED_USES)).append(seen.use)

    def expected_reuses(self, prefix: Prefix, ttl: Ttl, pool: str | None = None) -> float:
        """Return the expected reads per write; a read renews the time to live.

        A gap within the time to live is a read; a write is due at the start and after each longer
        gap. Where nothing was observed of the prefix yet, its pool counts; where nothing was
        observed there either, the setting.
        """
        seen: _Seen | None = self._seen.get(prefix.digest)
        if seen is not None and seen.gaps_s and prefix.kind not in ("earlier", "latest"):
            reads = sum(gap <= TTL_S[ttl] for gap in seen.gaps_s)
            return reads / (len(seen.gaps_s) - reads + 1)
        reads, writes = self._pooled(pool, TTL_S[ttl]) if pool is not None else (0, 0)
        return (reads + self._settings.expected_reuses) / (writes - reads + 1)

    def decide(
        self, prefix: Prefix, prices: TokenPrices, model: str = "", pool: str | None = None
    ) -> CacheDecision:
        """Return whether to cache a prefix, and for how long: the time that saves most."""
        if not self._settings.enabled:
            return CacheDecision(prefix.id, prefix.tokens, None, "disabled")
        if prefix.tokens < least_cached_tokens(model):
            return CacheDecision(prefix.id, prefix.tokens, None, "too_short")
        if break_even_reuses(prices, "5m") is None:
            return CacheDecision(prefix.id, prefix.tokens, None, "reads_not_cheaper")
        found = {ttl: self.expected_reuses(prefix, ttl, pool) for ttl in TTL_S}
        # The first of equals: the shorter time.
        best = max(found, key=lambda ttl: _saved_a_request(prices, ttl, found[ttl]))
        least, expected = break_even_reuses(prices, best), found[best]
        if _saved_a_request(prices, best, expected) > 0:
            return CacheDecision(prefix.id, prefix.tokens, best, "pays", expected, least)
        return CacheDecision(prefix.id, prefix.tokens, None, "too_rare", expected, least)

    def pool(self, prefix: Prefix, prefixes: Sequence[Prefix], purpose: str) -> str | None:
        """Return the pool of an unmarked prefix that may be used again; None for others.

        prefixes: of its request. A system prompt that was used once has no pool of its own: one
        that holds a date would have a new pool in each request.
        """
        if prefix.kind in ("tools", "system"):
            return f"{purpose} {prefix.kind}"
        if prefix.kind != "latest":
            return None
        turn = "later" if any(p.kind == "earlier" for p in prefixes) else "first"
        static = [p for p in prefixes if p.kind not in ("earlier", "latest")]
        seen: _Seen | None = self._seen.get(static[-1].digest) if static else None
        return f"{purpose} {turn} {static[-1].id if seen and seen.gaps_s else ''}"

    def _pooled(self, pool: str, ttl_s: float) -> tuple[int, int]:
        """Return the reads and the writes of a pool; uses that may still be read are left out."""
        now = self._clock()
        uses = self._pools.get(pool, ())
        known = [use for use in uses if use.gap_s is not None or now - use.at_s > ttl_s]
        reads = sum(use.gap_s is not None and use.gap_s <= ttl_s for use in known)
        return reads, len(known)


def _write_price(prices: TokenPrices, ttl: Ttl) -> Decimal:
    return prices.cache_write_5m if ttl == "5m" else prices.cache_write_1h


def _saved_a_request(prices: TokenPrices, ttl: Ttl, reuses: float) -> Decimal:
    """Return what caching saves a token and request, US dollars."""
    extra = _write_price(prices, ttl) - prices.uncached_input
    saved = Decimal(reuses) * (prices.uncached_input - prices.cache_read) - extra
    return saved / (1 + Decimal(reuses))
