"""How large a share of inputs is audited, and how large an error a plan of shortcuts may have.

A rate may change with time, never with an input: it depends on the scope alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

_DAY_S = 86_400
_AHEAD_S = 3_600
"""Seconds by which the day's budget may be spent ahead of the time of day."""


@dataclass(frozen=True, slots=True)
class AuditSchedule:
    """Shares of inputs to audit.

    high_rate: of the first high_rate_inputs accepted after earning or after a signal; then it falls
    with the inverse of their number. Never below floor_rate, nor so low that a day has fewer audits
    than min_audits_a_day: where fewer inputs come in a day, each is audited.
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
        falling = self.high_rate * min(1.0, self.high_rate_inputs / max(1, accepted))
        return max(falling, self.floor(accepted_a_day))

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


def is_drawn(draw: float, rate: float) -> bool:
    """Return whether the coin draws an input.

    draw: uniform in [0, 1), of a cryptographic generator, drawn at acceptance before the reference
    is asked. One draw decides for all candidates and for accepted and escalated inputs alike.
    """
    return draw < rate


def budget_by_now(max_usd_a_day: Decimal, elapsed_s: int) -> Decimal:
    """Return how much of a day's budget may be spent by now, an hour ahead of an even pace.

    elapsed_s: seconds since midnight. The rest of the day keeps its share of the audits.
    """
    if elapsed_s < 0:
        raise ValueError(f"elapsed_s must not be negative, and is {elapsed_s!r}")
    return max_usd_a_day * min(elapsed_s + _AHEAD_S, _DAY_S) / _DAY_S


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
