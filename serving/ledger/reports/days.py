"""Days of a time zone, which have 23, 24 or 25 hours. Pure."""

from datetime import UTC, date, datetime, timedelta, tzinfo


def midnight(day: date, zone: tzinfo) -> datetime:
    """Return the first moment of a day, in UTC."""
    # Where clocks skip midnight, this is the moment of the change; where they pass it twice, the
    # first time.
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)


def days_between(first: datetime, last: datetime, zone: tzinfo) -> list[date]:
    """Return the days from the one that holds a moment to the one that holds another."""
    start, end = first.astimezone(zone).date(), last.astimezone(zone).date()
    return [start + timedelta(days=n) for n in range((end - start).days + 1)]
