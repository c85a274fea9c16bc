"""Prometheus metrics of a gateway replica, with the engines' own beside them."""

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from serving.contracts.answer import Answer
from serving.contracts.errors import NarrowgateError

_LATENCY_BUCKETS_S = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})
_BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Every metric of this replica. Implements the pipeline's Exits and the client's events."""

    def __init__(self) -> None:
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
            "Task inputs by how they left: a route, or an error code.",
            ["task", "route", "outcome"],
            registry=self.registry,
        )
        self._input_seconds = Histogram(
            "narrowgate_input_seconds",
            "Time from admission to answer.",
            ["task", "route"],
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._tokens = Counter(
            "narrowgate_tokens",
            "Tokens by exclusive class: uncached_input, cache_read, output.",
            ["endpoint", "model", "class"],
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
            "Inputs that travelled to the engine in one scoring call.",
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
            "Scrapes that went without an engine's metrics because it did not answer in time.",
            ["model"],
            registry=self.registry,
        )
        self.queued = Gauge(
            "narrowgate_queued_inputs",
            "Inputs waiting, for admission or for a scoring batch.",
            ["queue"],
            registry=self.registry,
        )
        self.active = Gauge(
            "narrowgate_active_inputs", "Inputs being worked on.", registry=self.registry
        )
        self.ready = Gauge(
            "narrowgate_model_ready",
            "1 where the model answers, else 0.",
            ["model"],
            registry=self.registry,
        )

    def http_finished(self, endpoint: str, method: str, status: int, elapsed_s: float) -> None:
        """Record one HTTP request. endpoint: the route's path template."""
        # Clients choose the method; an unbounded label would let them fill the memory.
        known = method if method in _METHODS else "other"
        self._http.labels(endpoint, known, str(status)).inc()
        self._http_seconds.labels(endpoint).observe(elapsed_s)

    def answered(self, answer: Answer, elapsed_s: float) -> None:
        """Record an input that was answered."""
        self._inputs.labels(answer.task, answer.route, "answered").inc()
        self._input_seconds.labels(answer.task, answer.route).observe(elapsed_s)
        usage = answer.usage
        self.count_tokens(
            "task",
            answer.model,
            usage.uncached_input_tokens,
            usage.cache_read_tokens,
            usage.output_tokens,
        )
        if not answer.valid:
            self._invalid.labels(answer.task, answer.model).inc()

    def refused(self, task: str, error: NarrowgateError, elapsed_s: float) -> None:
        """Record an input that ended in an error."""
        self._inputs.labels(task, "none", error.code).inc()

    def count_tokens(
        self, endpoint: str, model: str, uncached: int, cached: int, output: int
    ) -> None:
        """Add to the token counters."""
        for name, count in (
            ("uncached_input", uncached),
            ("cache_read", cached),
            ("output", output),
        ):
            self._tokens.labels(endpoint, model, name).inc(count)

    def batch_sent(self, model: str, size: int) -> None:
        """Record a scoring batch."""
        self._batch.labels(model).observe(size)

    def call_retried(self, model: str) -> None:
        """Record a repeated engine call."""
        self._retries.labels(model).inc()

    def scrape_failed(self, model: str) -> None:
        """Record an engine that did not deliver its metrics."""
        self._scrape_failures.labels(model).inc()

    def exposition(self, engines: Mapping[str, str]) -> bytes:
        """Return everything in Prometheus text format.

        engines: each model's metrics text; the samples get a `model` label, and families that
        several engines share are merged into one, as the format demands.
        """
        return generate_latest(self.registry) + generate_latest(_registry_of(engines))


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
