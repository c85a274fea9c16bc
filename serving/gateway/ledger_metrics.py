"""Prometheus metrics of the ledger."""

from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serving.contracts.ledger import LedgerState

_WAIT_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class LedgerMetrics:
    """Implements serving.contracts.ledger.LedgerEvents.

    No metric names a tenant: /metrics needs no key, and tenants must not see one another.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._rows = Counter(
            "narrowgate_ledger_rows",
            "Rows `written`, `spilled` to a file for later, or `rejected` for inspection.",
            ["how"],
            registry=registry,
        )
        for how in ("written", "spilled", "rejected"):
            # At 0 from the start: Prometheus counts no increase of a series that begins above 0.
            self._rows.labels(how)
        self._up = Gauge(
            "narrowgate_ledger_up",
            "1 where the ledger's database accepts writes; 0: paid calls are refused.",
            registry=registry,
        )
        self._wait_seconds = Histogram(
            "narrowgate_ledger_wait_seconds",
            "Time that paid calls waited until they were written to the ledger.",
            buckets=_WAIT_BUCKETS_S,
            registry=registry,
        )
        self._price_change = Gauge(
            "narrowgate_price_table_changed_seconds",
            "Unix time of the newest price change in the price table; set where frontier APIs are "
            "configured.",
            ["source"],
            registry=registry,
        )
        self._refused = Counter(
            "narrowgate_budget_refusals",
            "Paid calls refused because they could exceed a tenant's budget.",
            registry=registry,
        )

    def price_table_read(self, source: str, changed: datetime) -> None:
        """Record the table that prices calls. changed: when a price in it last changed."""
        self._price_change.labels(source).set(changed.timestamp())

    def ledger_written(self, rows: int) -> None:
        """Count rows that were committed."""
        self._rows.labels("written").inc(rows)

    def ledger_spilled(self, rows: int) -> None:
        """Count rows that were written to a file."""
        self._rows.labels("spilled").inc(rows)

    def ledger_rejected(self, rows: int) -> None:
        """Count rows that the database cannot take."""
        self._rows.labels("rejected").inc(rows)

    def ledger_changed(self, state: LedgerState) -> None:
        """Record whether the database accepts writes."""
        self._up.set(state == "up")

    def ledger_waited(self, seconds: float) -> None:
        """Record how long a paid call waited."""
        self._wait_seconds.observe(seconds)

    def budget_refused(self, tenant: str) -> None:
        """Count a refusal."""
        self._refused.inc()
