"""Prometheus metrics of a gateway replica, together with those of the engines."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from serving.contracts.answer import Usage
from serving.contracts.exits import Exit
from serving.gateway.batch_metrics import BatchMetrics
from serving.gateway.cache_metrics import CacheMetrics
from serving.gateway.evidence_metrics import EvidenceMetrics
from serving.gateway.ledger_metrics import LedgerMetrics
from serving.gateway.tier_metrics import TierMetrics

_LATENCY_BUCKETS_S = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip
_MOST_OTHER_MODELS = 100
_LONGEST_LABEL = 300
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Every metric of this replica. Implements ExitObserver and the engine client's events.

    models: whose names are always labels, as `provider/model`. Clients name other models as well,
    which are `other` until one has answered.
    """

    def __init__(self, models: Iterable[str] = ()) -> None:
        self._names = _ModelNames(models)
        self.registry = CollectorRegistry()
        self._http = Counter(
            "narrowgate_http_requests",
            "HTTP requests by endpoint and status.",
            ["endpoint", "method", "status"],
            registry=self.registry,
        )
        self._http_seconds = Histogram(
            "narrowgate_http_request_seconds",
            "Time from a request's first byte to its response's last.",
            ["endpoint"],
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._inputs = Counter(
            "narrowgate_inputs",
            "Inputs by route, reason for the route, and outcome: `answered` or an error code.",
            ["endpoint", "task", "route", "reason", "outcome"],
            registry=self.registry,
        )
        self._input_seconds = Histogram(
            "narrowgate_input_seconds",
            "Time from arrival to answer.",
            ["endpoint", "task", "route"],
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._cost = Counter(
            "narrowgate_cost_usd",
            "Known cost of finished inputs, US dollars, failed attempts included. For rates and "
            "alerts; the ledger is exact.",
            ["endpoint", "task", "route"],
            registry=self.registry,
        )
        self._tokens = Counter(
            "narrowgate_tokens",
            "Tokens by exclusive class, of answers and of attempts that were set aside.",
            ["endpoint", "model", "class"],
            registry=self.registry,
        )
        self._set_aside = Counter(
            "narrowgate_attempts_set_aside",
            "Paid calls whose answer was not sent to the client, by model and reason.",
            ["task", "model", "reason"],
            registry=self.registry,
        )
        self._invalid = Counter(
            "narrowgate_invalid_outputs",
            "Model outputs that could not be read in full.",
            ["task", "model"],
            registry=self.registry,
        )
        self._batch = Histogram(
            "narrowgate_scoring_batch_size",
            "Inputs of one scoring call to the engine.",
            ["model"],
            buckets=_BATCH_BUCKETS,
            registry=self.registry,
        )
        self._retries = Counter(
            "narrowgate_engine_retries",
            "Engine calls repeated because their replica was lost.",
            ["model"],
            registry=self.registry,
        )
        self._scrape_failures = Counter(
            "narrowgate_engine_scrape_failures",
            "Scrapes without an engine's metrics because it did not answer in time.",
            ["model"],
            registry=self.registry,
        )
        self._calls = Counter(
            "narrowgate_frontier_calls",
            "Calls of providers by outcome: `ok`, an error code, `hedge_lost`, `cancelled`.",
            ["provider", "model", "outcome"],
            registry=self.registry,
        )
        self._call_seconds = Histogram(
            "narrowgate_frontier_call_seconds",
            "Time from a call to its answer's last byte, or to its failure.",
            ["provider", "model"],
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._call_retries = Counter(
            "narrowgate_frontier_retries",
            "Calls repeated at the same provider, by the previous error.",
            ["provider", "reason"],
            registry=self.registry,
        )
        self._fallbacks = Counter(
            "narrowgate_frontier_fallbacks",
            "Requests sent to the next target, by the previous target's error.",
            ["from", "to", "reason"],
            registry=self.registry,
        )
        self._breaker = Gauge(
            "narrowgate_frontier_breaker",
            "1 for the state that a provider's circuit breaker is in.",
            ["provider", "state"],
            registry=self.registry,
        )
        self._prefix_tokens = Counter(
            "narrowgate_prompt_cache_tokens",
            "Input tokens of requests with a prefix that can be cached: all, and those read from "
            "and written to the provider's cache.",
            ["prefix", "kind"],
            registry=self.registry,
        )
        self._unstable = Counter(
            "narrowgate_prompt_cache_unstable_prefixes",
            "Prefixes that changed from request to request; the log shows where.",
            ["prefix"],
            registry=self.registry,
        )
        self._contexts = Counter(
            "narrowgate_contexts",
            "Requests with a context, by what pruning did: pruned, or why it was sent whole.",
            ["outcome"],
            registry=self.registry,
        )
        self._context_comparisons = Counter(
            "narrowgate_context_comparisons",
            "Answers from pruned contexts compared with those from whole ones: `better`, `same`, "
            "`worse`, `missing`, `dropped`.",
            ["verdict"],
            registry=self.registry,
        )
        self._context_tokens = Counter(
            "narrowgate_context_tokens",
            "Estimated tokens of contexts: before pruning, and after it.",
            ["when"],
            registry=self.registry,
        )
        self._context_seconds = Histogram(
            "narrowgate_context_seconds",
            "Time that pruning a request's context took.",
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._bounded = Counter(
            "narrowgate_bounded_answers",
            "Free-form answers under learned output bounds: by arm (`directed` or `plain`) and "
            "outcome (`complete`, `continued` behind our bound, or `cut` by it).",
            ["arm", "outcome"],
            registry=self.registry,
        )
        self._bounded_tokens = Counter(
            "narrowgate_bounded_tokens",
            "Visible output tokens of those answers.",
            ["arm"],
            registry=self.registry,
        )
        self._router_failures = Counter(
            "narrowgate_router_failures",
            "Routing decisions by rule because no embedding was available in time.",
            ["reason"],
            registry=self.registry,
        )
        self._decisions_dropped = Counter(
            "narrowgate_decisions_dropped",
            "Rows that the decision log dropped.",
            registry=self.registry,
        )
        self.log_heartbeat = Gauge(
            "narrowgate_log_heartbeat_seconds",
            "Unix time of the last heartbeat line that this replica's log received.",
            registry=self.registry,
        )
        self._build = Gauge(
            "narrowgate_build_info",
            "1 for the version of narrowgate and the digest of each model served.",
            ["version", "artifact"],
            registry=self.registry,
        )
        self._expires = Gauge(
            "narrowgate_attestation_expires_days",
            "Days until a model's attestation is older than attestation.max_age_days allows.",
            ["model"],
            registry=self.registry,
        )
        self.ledger = LedgerMetrics(self.registry)
        self.evidence = EvidenceMetrics(self.registry)
        self.cache = CacheMetrics(self.registry)
        self.batch = BatchMetrics(self.registry)
        self.tiers = TierMetrics(self.registry)
        self.queued = Gauge(
            "narrowgate_queued_inputs",
            "Inputs waiting, for admission or for a scoring batch.",
            ["queue"],
            registry=self.registry,
        )
        self.active = Gauge(
            "narrowgate_active_inputs",
            "Inputs being processed, locally or at frontier APIs.",
            ["where"],
            registry=self.registry,
        )
        self.ready = Gauge(
            "narrowgate_model_ready",
            "1 where the model answers, else 0.",
            ["model"],
            registry=self.registry,
        )

    def context_seen(self, outcome: str, before: int, after: int, elapsed_s: float) -> None:
        """Record one request with a context. before, after: its tokens, estimated."""
        self._contexts.labels(outcome).inc()
        self._context_tokens.labels("before").inc(before)
        self._context_tokens.labels("after").inc(after)
        self._context_seconds.observe(elapsed_s)

    def context_compared(self, verdict: str) -> None:
        """Record one comparison of answers from the pruned and from the whole context."""
        self._context_comparisons.labels(verdict).inc()

    def answer_bounded(self, arm: str, outcome: str, tokens: int) -> None:
        """Record one answer under learned bounds. tokens: visible output."""
        self._bounded.labels(arm, outcome).inc()
        self._bounded_tokens.labels(arm).inc(tokens)

    def model_connected(self, model: str, artifact: str | None, expires: datetime | None) -> None:
        """Record the model that this replica serves.

        artifact: its digest (hex), None without an attestation. expires: when its attestation
        becomes too old, None where it does not.
        """
        self._build.labels(version("narrowgate"), artifact or "none").set(1)
        if expires is not None:
            self._expires.labels(model).set_function(lambda: _days_until(expires))

    def http_finished(self, endpoint: str, method: str, status: int, elapsed_s: float) -> None:
        """Record one HTTP request. endpoint: the route's path template."""
        # Clients choose the method; an unbounded label would let them exhaust the memory.
        known = method if method in _METHODS else "other"
        self._http.labels(endpoint, known, str(status)).inc()
        self._http_seconds.labels(endpoint).observe(elapsed_s)

    def input_finished(self, exit_: Exit, cost_usd: Decimal | None) -> None:
        """Record how an input ended, and its cost where known."""
        task, reason = exit_.task or "none", exit_.reason or "none"
        outcome = exit_.error or "answered"
        self._inputs.labels(exit_.endpoint, task, exit_.route, reason, outcome).inc()
        if cost_usd is not None:
            self._cost.labels(exit_.endpoint, task, exit_.route).inc(float(cost_usd))
        if exit_.error is None:
            self._input_seconds.labels(exit_.endpoint, task, exit_.route).observe(exit_.elapsed_s)
        if exit_.model is not None:
            # Also of a local model or a head, which no provider answers for.
            self._names.label(exit_.model, has_answered=exit_.error is None)
            self._count_tokens(exit_.endpoint, exit_.model, exit_.usage)
            if exit_.error is None and not exit_.valid:
                self._invalid.labels(task, self._names.label(exit_.model)).inc()
        for attempt in exit_.attempts:
            self._set_aside.labels(task, self._names.label(attempt.model), attempt.error).inc()
            self._count_tokens(exit_.endpoint, attempt.model, attempt.usage)

    def _count_tokens(self, endpoint: str, model: str, usage: Usage | None) -> None:
        if usage is None:
            return
        label = self._names.label(model)
        for name, count in usage.model_dump().items():
            if count:
                self._tokens.labels(endpoint, label, name.removesuffix("_tokens")).inc(count)

    def batch_sent(self, model: str, size: int) -> None:
        """Record a scoring batch."""
        self._batch.labels(model).observe(size)

    def call_retried(self, model: str) -> None:
        """Record a repeated engine call."""
        self._retries.labels(model).inc()

    def scrape_failed(self, model: str) -> None:
        """Record an engine that did not deliver its metrics."""
        self._scrape_failures.labels(model).inc()

    def called(self, provider: str, model: str, outcome: str, elapsed_s: float) -> None:
        """Record one call of a provider."""
        named = self._names.label(f"{provider}/{model}", has_answered=outcome == "ok")
        label = named.removeprefix(f"{provider}/")
        self._calls.labels(provider, label, outcome).inc()
        self._call_seconds.labels(provider, label).observe(elapsed_s)

    def retried(self, provider: str, reason: str) -> None:
        """Record a call repeated at the same provider."""
        self._call_retries.labels(provider, reason).inc()

    def fell_back(self, from_target: str, to_target: str, reason: str) -> None:
        """Record that the next target was called."""
        names = self._names.label(from_target), self._names.label(to_target)
        self._fallbacks.labels(*names, reason).inc()

    def breaker_changed(self, provider: str, state: str) -> None:
        """Record the state of a provider's circuit breaker."""
        for known in ("closed", "half_open", "open"):
            self._breaker.labels(provider, known).set(known == state)

    def prefix_read(
        self, prefix_id: str, read_tokens: int, written_tokens: int, input_tokens: int
    ) -> None:
        """Record how much of a request's input a provider had cached, and how much it cached."""
        self._prefix_tokens.labels(prefix_id, "read").inc(read_tokens)
        self._prefix_tokens.labels(prefix_id, "written").inc(written_tokens)
        self._prefix_tokens.labels(prefix_id, "input").inc(input_tokens)

    def prefix_unstable(self, prefix_id: str) -> None:
        """Record a prefix that changes from request to request."""
        self._unstable.labels(prefix_id).inc()

    def router_failed(self, reason: str) -> None:
        """Record a decision made by rule, without the embedding."""
        self._router_failures.labels(reason).inc()

    def decision_dropped(self) -> None:
        """Record a row that the decision log dropped. Any thread may call this."""
        self._decisions_dropped.inc()

    def exposition(self, engines: Mapping[str, str]) -> bytes:
        """Return everything in Prometheus text format.

        engines: each model's metrics text; the samples get a `model` label, and families that
        several engines share are merged into one, as the format demands.
        """
        return generate_latest(self.registry) + generate_latest(_registry_of(engines))


class _ModelNames:
    """The names of models that are labels.

    Of those that only clients name, the first few that have answered: names that no provider knows
    would use the labels up. A target is one model in any case and with any version behind `@`.
    """

    def __init__(self, known: Iterable[str]) -> None:
        self._known = set(known)
        self._most = len(self._known) + _MOST_OTHER_MODELS

    def label(self, name: str, *, has_answered: bool = False) -> str:
        """Return the label of a model."""
        if name in self._known:
            return name
        if "/" in name:
            name = name.partition("@")[0].casefold()
        if name in self._known:
            return name
        if not has_answered or len(self._known) >= self._most or len(name) > _LONGEST_LABEL:
            return "other"
        self._known.add(name)
        return name


def _days_until(moment: datetime) -> float:
    return (moment - datetime.now(UTC)) / timedelta(days=1)


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._found = list(families)

    def collect(self) -> Iterable[Metric]:
        return self._found


def _registry_of(engines: Mapping[str, str]) -> CollectorRegistry:
    merged: dict[str, Metric] = {}
    for model, text in engines.items():
        for family in text_string_to_metric_families(text):
            if not family.name.startswith("vllm:"):
                continue
            target = merged.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            for sample in family.samples:
                target.add_sample(
                    sample.name, {**sample.labels, "model": model}, sample.value, sample.timestamp
                )
    registry = CollectorRegistry()
    registry.register(_Families(merged.values()))
    return registry
