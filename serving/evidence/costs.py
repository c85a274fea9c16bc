"""What audits of one claim cost, beside the reference cost that an accepted input avoids."""

from dataclasses import dataclass
from decimal import Decimal

from serving.contracts.evidence import Audit
from serving.evidence.statistics.audit_rate import affordable_rate

_LEAST = 50
"""Prices known of each kind before they decide anything."""


@dataclass(slots=True)
class _Mean:
    total: Decimal = Decimal(0)
    count: int = 0

    def add(self, usd: Decimal) -> None:
        self.total += usd
        self.count += 1

    @property
    def usd(self) -> float:
        return float(self.total / self.count)


class AuditCosts:
    """Means over an episode. An accepted input avoids what a shadowed one cost its client."""

    def __init__(self) -> None:
        self._avoided = _Mean()
        self._audit = _Mean()

    def add(self, audit: Audit) -> None:
        """Count the cost of one audit where it is known."""
        if audit.cost_usd is None:
            return
        if audit.origin == "shadow":
            self._avoided.add(audit.cost_usd)
        elif audit.origin == "accepted":
            self._audit.add(audit.cost_usd)

    def affordable_rate(self, max_share: float) -> float:
        """Return the share of accepted inputs whose audits cost at most max_share of what is saved.

        1 as long as too few prices are known.
        """
        if min(self._avoided.count, self._audit.count) < _LEAST:
            return 1.0
        return affordable_rate(self._avoided.usd, self._audit.usd, max_share)
