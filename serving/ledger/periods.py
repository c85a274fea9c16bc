"""The calendar of budgets. Pure."""

from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo


@dataclass(frozen=True, slots=True)
class Periods:
    """A day and its month, each as the ISO date of its first day."""

    day: str
    month: str


def periods_at(moment: datetime, zone: ZoneInfo) -> Periods:
    """Return the periods that a moment falls into. moment: with a time zone, any."""
    day = moment.astimezone(zone).date()
    return Periods(day.isoformat(), day.replace(day=1).isoformat())
