"""Metrics of the cache. Implements the events of serving.cache.service."""

from collections.abc import Sequence
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serving.cache.cacheable import Reason
from serving.cache.entry_store import Size
from serving.cache.service import Looked
from serving.cache.similar import SimilarOutcome

_LOOKUP_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5)


class CacheMetrics:
    """Counts of lookups, entries and deletions. No label names a tenant: /metrics needs no key."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lookups = Counter(
            "narrowgate_cache_lookups",
            "Inputs looked up, by outcome: `hit`, `miss`, `shared` with an equal request that was "
            "being answered, or `unavailable` where the database did not answer in time.",
            ["kind", "outcome"],
            registry=registry,
        )
        self._lookup_seconds = Histogram(
            "narrowgate_cache_lookup_seconds",
            "Time of one input's lookup.",
            ["kind"],
            buckets=_LOOKUP_BUCKETS_S,
            registry=registry,
        )
        self._bypasses = Counter(
            "narrowgate_cache_bypasses",
            "Inputs that were neither looked up nor stored, by reason.",
            ["kind", "reason"],
            registry=registry,
        )
        self._not_stored = Counter(
            "narrowgate_cache_answers_not_stored",
            "Answers that may not be stored, by reason.",
            ["kind", "reason"],
            registry=registry,
        )
        self._writes = Counter(
            "narrowgate_cache_writes", "Entries stored by this replica.", registry=registry
        )
        self._dropped = Counter(
            "narrowgate_cache_writes_dropped",
            "Entries not stored because the database was unreachable or too slow.",
            registry=registry,
        )
        self._deletions = Counter(
            "narrowgate_cache_deletions",
            "Entries deleted by this replica: `asked`, `expired`, or over the `limit`.",
            ["because"],
            registry=registry,
        )
        self._unreadable = Counter(
            "narrowgate_cache_unreadable_entries",
            "Entries found that could not be decrypted or read; each was a miss.",
            registry=registry,
        )
        self._feedback = Counter(
            "narrowgate_cache_feedback",
            "Clients' feedback on cached answers.",
            ["good"],
            registry=registry,
        )
        self._ineligible = Counter(
            "narrowgate_cache_similar_ineligible",
            "Chats that were not looked up by meaning, by reason.",
            ["reason"],
            registry=registry,
        )
        self._similar = Counter(
            "narrowgate_cache_similar_lookups",
            "Chats looked up by meaning: `hit`, `shadow` where the model answered all the same, "
            "`refused` by guards, `miss`, `loading` the index, or `unavailable`.",
            ["outcome"],
            registry=registry,
        )
        self._similar_seconds = Histogram(
            "narrowgate_cache_similar_lookup_seconds",
            "Time of a lookup by meaning, the embedding included.",
            buckets=_LOOKUP_BUCKETS_S,
            registry=registry,
        )
        self._refused = Counter(
            "narrowgate_cache_similar_refusals",
            "Questions that were near enough and that a guard refused, by guard.",
            ["guard"],
            registry=registry,
        )
        self._compared = Counter(
            "narrowgate_cache_similar_comparisons",
            "Hits compared with a fresh answer: `same`, `different`, or `missing` a verdict.",
            ["kind", "verdict"],
            registry=registry,
        )
        self._refinements = Counter(
            "narrowgate_cache_refinements",
            "Follow-ups that repeat or correct a question, by the route of its answer and the "
            "kind of the cache's hit.",
            ["route", "kind"],
            registry=registry,
        )
        self._entries = Gauge(
            "narrowgate_cache_entries", "Entries in the database, all namespaces.",
            registry=registry,
        )  # fmt: skip
        self._bytes = Gauge(
            "narrowgate_cache_bytes", "Size of their answers as stored.", registry=registry
        )

    def cache_looked_up(self, kind: str, outcome: Looked, seconds: float | None) -> None:
        """Count a lookup."""
        self._lookups.labels(kind, outcome).inc()
        if seconds is not None:
            self._lookup_seconds.labels(kind).observe(seconds)

    def cache_bypassed(self, kind: str, reason: Reason) -> None:
        """Count an input that does not use the cache."""
        self._bypasses.labels(kind, reason).inc()

    def cache_not_stored(self, kind: str, reason: Reason) -> None:
        """Count an answer that may not be stored."""
        self._not_stored.labels(kind, reason).inc()

    def cache_written(self, entries: int) -> None:
        """Count entries that were stored."""
        self._writes.inc(entries)

    def cache_dropped(self, entries: int) -> None:
        """Count entries that were not stored."""
        self._dropped.inc(entries)

    def cache_deleted(self, entries: int, because: Literal["asked", "expired", "limit"]) -> None:
        """Count deleted entries."""
        self._deletions.labels(because).inc(entries)

    def cache_sized(self, sizes: Sequence[Size]) -> None:
        """Set the number of entries and their size."""
        self._entries.set(sum(size.entries for size in sizes))
        self._bytes.set(sum(size.bytes for size in sizes))

    def cache_unreadable(self, entries: int) -> None:
        """Count entries that could not be read."""
        self._unreadable.inc(entries)

    def cache_feedback(self, *, good: bool) -> None:
        """Count a client's feedback."""
        self._feedback.labels(str(good).lower()).inc()

    def similar_ineligible(self, reason: str) -> None:
        """Count a chat that is not looked up by meaning."""
        self._ineligible.labels(reason).inc()

    def similar_looked_up(self, outcome: SimilarOutcome, seconds: float) -> None:
        """Count a lookup by meaning."""
        self._similar.labels(outcome).inc()
        self._similar_seconds.observe(seconds)

    def similar_refused(self, guard: str) -> None:
        """Count a refusal."""
        self._refused.labels(guard).inc()

    def similar_compared(self, kind: str, verdict: str) -> None:
        """Count a comparison with a fresh answer."""
        self._compared.labels(kind, verdict).inc()

    def answer_refined(self, route: str, kind: str) -> None:
        """Count a follow-up that repeats or corrects."""
        self._refinements.labels(route, kind).inc()
