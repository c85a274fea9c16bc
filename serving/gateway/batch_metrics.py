"""Prometheus metrics of the batch lane."""

from collections.abc import Mapping
from decimal import Decimal

from prometheus_client import CollectorRegistry, Counter, Gauge

_STATUSES = ("validating", "in_progress", "finalizing", "cancelling")
_OPEN_STATES = ("waiting", "following", "running", "submitted")
_ENDS = ("succeeded", "failed", "expired", "cancelled", "waiting")


class BatchMetrics:
    """Implements serving.batch.scheduler.BatchEvents. No metric names a tenant."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._batches = Gauge(
            "narrowgate_batches",
            "Batches that have not ended, by status; of the replica that runs them.",
            ["status"],
            registry=registry,
        )
        self._oldest = Gauge(
            "narrowgate_batch_oldest_seconds",
            "Age of the oldest batch that has not ended; of the replica that runs them.",
            registry=registry,
        )
        self._overdue = Gauge(
            "narrowgate_batch_overdue_seconds",
            "Time since the earliest deadline of a batch that has not ended, 0 before it; of the "
            "replica that runs them.",
            registry=registry,
        )
        self._running = Gauge(
            "narrowgate_batch_lines_running", "Lines in progress.", registry=registry
        )
        self._open = Gauge(
            "narrowgate_batch_lines_open",
            "Lines that have not ended: `waiting`, `running`, or `submitted` in a provider's "
            "batch; of the replica that runs them.",
            ["state"],
            registry=registry,
        )
        self._held = Gauge(
            "narrowgate_batch_held_usd",
            "Worst case of lines in progress and in providers' batches, US dollars; of the replica "
            "that runs them.",
            registry=registry,
        )
        self._audits = Gauge(
            "narrowgate_audits_awaited",
            "Audits that wait for a provider's batch and have no verdict; of the replica that runs "
            "batches.",
            registry=registry,
        )
        self._audits_oldest = Gauge(
            "narrowgate_audits_awaited_oldest_seconds",
            "Time since the oldest of them was drawn, 0 without one; of the replica that runs "
            "batches.",
            registry=registry,
        )
        self._audits_usd = Gauge(
            "narrowgate_audits_awaited_usd",
            "Worst case of their calls, US dollars; of the replica that runs batches.",
            registry=registry,
        )
        self._leads = Gauge(
            "narrowgate_batch_leads", "1 on the replica that runs batches.", registry=registry
        )
        self._lines = Counter(
            "narrowgate_batch_lines",
            "Attempts of lines that ended: `succeeded`, `failed`, `expired`, `cancelled`, or "
            "`waiting` for a retry.",
            ["state"],
            registry=registry,
        )
        for state in _OPEN_STATES:
            self._open.labels(state)
        for state in _ENDS:
            self._lines.labels(state)

    def batch_lines_ended(self, state: str, lines: int) -> None:
        """Count lines that ended in a state."""
        self._lines.labels(state).inc(lines)

    def batch_round(self, by_status: dict[str, int], oldest_waiting_s: float, running: int) -> None:
        """Record what has not ended."""
        for status in _STATUSES:
            self._batches.labels(status).set(by_status.get(status, 0))
        self._oldest.set(oldest_waiting_s)
        self._running.set(running)

    def batch_open(self, held_usd: Decimal, overdue_s: float, lines: Mapping[str, int]) -> None:
        """Record lines that have not ended, their worst case, and the longest delay of a batch."""
        self._held.set(float(held_usd))
        for state in _OPEN_STATES:
            self._open.labels(state).set(lines.get(state, 0))
        self._overdue.set(overdue_s)

    def audits_awaited(self, audits: int, oldest_s: float, usd: Decimal) -> None:
        """Record audits without a verdict, the age of the oldest, and their worst case."""
        self._audits.set(audits)
        self._audits_oldest.set(oldest_s)
        self._audits_usd.set(float(usd))

    def batch_lane(self, *, leads: bool) -> None:
        """Record whether this replica runs batches."""
        self._leads.set(leads)
