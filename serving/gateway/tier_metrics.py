"""Metrics of tiers. Implements the events of serving.tiers."""

from prometheus_client import CollectorRegistry, Counter

from serving.contracts.routing import Tier
from serving.tiers.planner import TierOutcome


class TierMetrics:
    """Counts of open-ended chats and of comparisons. A cluster's name holds no client's words."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._chosen = Counter(
            "narrowgate_tier_requests",
            "Open-ended chats by cluster, tier and outcome: `reference`, `cheaper_tier`, "
            "`cascade_kept`, `cascade_escalated`, `cascade_failed`, `fallback`, `not_comparable`, "
            "`no_vector`.",
            ["cluster", "tier", "outcome"],
            registry=registry,
        )
        self._compared = Counter(
            "narrowgate_tier_comparisons",
            "Answers of cheaper tiers compared with the reference's: `better`, `same`, `worse`, "
            "`missing`, `dropped`.",
            ["cluster", "tier", "verdict"],
            registry=registry,
        )

    def tier_chosen(self, cluster: str, tier: Tier, outcome: TierOutcome) -> None:
        """Count one open-ended chat."""
        self._chosen.labels(cluster, tier, outcome).inc()

    def tier_compared(self, cluster: str, tier: Tier, verdict: str) -> None:
        """Count one comparison."""
        self._compared.labels(cluster, tier, verdict).inc()
