"""The cost of local replicas, busy or idle. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise

from serving.ledger.reports.query import Lifetime
from serving.ledger.schema import PICODOLLARS

HOUR_US = 3_600_000_000


@dataclass(frozen=True, slots=True)
class Provisioned:
    """The time for which any gateway ran, and the cost of the replicas in that time."""

    alive: timedelta
    cost_usd: Decimal


def provisioned(lifetimes: Iterable[Lifetime], since: datetime, until: datetime) -> Provisioned:
    """Return what all local replicas cost in [since, until).

    Gateways that live at once share the replicas: such time counts once, at the highest rate.
    """
    clipped = [
        (max(life.start, since), min(life.end, until), life.replica_hour_usd) for life in lifetimes
    ]
    edges = sorted({edge for start, end, _ in clipped for edge in (start, end)})
    alive, picodollar_us = timedelta(), 0
    for left, right in pairwise(edges):
        rates = [rate for start, end, rate in clipped if start <= left and right <= end]
        if rates:
            alive += right - left
            picodollar_us += (right - left) // timedelta(microseconds=1) * _picodollars(max(rates))
    return Provisioned(alive, _per_hour(picodollar_us))


def replica_cost(replica_us: int, replica_hour_usd: Decimal) -> Decimal:
    """Return the cost of a share of a replica's time, half-even to a picodollar."""
    return _per_hour(replica_us * _picodollars(replica_hour_usd))


def _picodollars(amount: Decimal) -> int:
    return int(amount * PICODOLLARS)


def _per_hour(picodollar_us: int) -> Decimal:
    # Of integers, which do not round to the context's 28 digits before the last step.
    whole, rest = divmod(picodollar_us, HOUR_US)
    up = 2 * rest > HOUR_US or (2 * rest == HOUR_US and whole % 2 == 1)
    return Decimal(whole + up) / PICODOLLARS
