"""How large a share of inputs is audited, and how large an error a plan of shortcuts may have.

A rate may change with time, never with an input: it depends on the scope alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AuditSchedule:
    """Shares of inputs to audit.

    high_rate: of the first high_rate_inputs accepted after earning or after a signal. It falls with
    their inverse to floor_rate, and never so far that a day has fewer than min_audits_a_day.
    """

    high_rate: float = 0.2
    high_rate_inputs: int = 500
    floor_rate: float = 0.02
    min_audits_a_day: int = 20

    def rate(self, accepted: int, accepted_a_day: float) -> float:
        """Return the share of inputs to audit.

        accepted: inputs accepted since the claim was earned or since the last signal.
        accepted_a_day: at the present pace, or 0 where it is not known.
        """
        if accepted <= self.high_rate_inputs:
            return self.high_rate
        falling = self.high_rate * self.high_rate_inputs / accepted
        return min(self.high_rate, max(falling, self.floor(accepted_a_day)))

    def floor(self, accepted_a_day: float) -> float:
        """Return the least share that keeps a claim watched, at most 1."""
        if accepted_a_day <= 0.0:
            return self.floor_rate
        return min(1.0, max(self.floor_rate, self.min_audits_a_day / accepted_a_day))

    def audits(self, accepted: int) -> float:
        """Return the expected number of audits of the first `accepted` inputs at a high pace."""
        first = min(accepted, self.high_rate_inputs)
        ends = self.high_rate * self.high_rate_inputs / self.floor_rate
        falling = math.log(min(max(accepted, first), ends) / first) if first else 0.0
        at_floor = max(0.0, accepted - ends)
        return (
            self.high_rate * first
            + self.high_rate * self.high_rate_inputs * falling
            + self.floor_rate * at_floor
        )


def affordable_rate(avoided_usd: float, audit_usd: float, max_share: float) -> float:
    """Return the share of accepted inputs whose audits cost at most a share of what they avoid.

    avoided_usd: reference cost that one accepted input avoids. audit_usd: of one audit. Where it is
    below the schedule's floor, the claim must be suspended: it cannot be watched.
    """
    return 1.0 if audit_usd <= 0.0 else min(1.0, max(0.0, max_share * avoided_usd / audit_usd))


def allowed_shortcuts(targets: Sequence[float], max_total_error: float) -> int:
    """Return how many of a plan's shortcuts may be taken together, from the first.

    targets: their target errors, the most valuable shortcut first. The error of a stack is at most
    the sum of its targets (union bound), which must not exceed max_total_error.
    """
    total = 0.0
    for count, target in enumerate(targets):
        total += target
        if total > max_total_error + 1e-12:
            return count
    return len(targets)


def stacked_target(targets: Sequence[float]) -> float:
    """Return the target error of an answer that took several shortcuts: their sum, at most 1."""
    return min(1.0, sum(targets))
