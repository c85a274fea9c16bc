"""Parses the window of a report from text."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

from serving.contracts.errors import InvalidRequest

_AGO = re.compile(r"([1-9][0-9]{0,4})([dh])")


@dataclass(frozen=True, slots=True)
class Window:
    """The moments in [since, until). Both have a time zone."""

    since: datetime
    until: datetime


def parse_window(since: str | None, until: str | None, zone: tzinfo, now: datetime) -> Window:
    """Return a window; by default from the first of this month, in the time zone, until now.

    since, until: a date (its first moment in the zone), a date and time (of the zone where it names
    none), or `7d` and `24h` for that long before now. Raises InvalidRequest.
    """
    local = now.astimezone(zone)
    first = datetime(local.year, local.month, 1, tzinfo=zone)
    window = Window(
        first.astimezone(UTC) if since is None else _moment("since", since, zone, now),
        now.astimezone(UTC) if until is None else _moment("until", until, zone, now),
    )
    if window.since > window.until:
        raise InvalidRequest(
            f"the report would begin at {window.since.isoformat()} and end before it, at "
            f"{window.until.isoformat()}",
            field="since",
            fix="give since an earlier time than until",
        )
    return window


def _moment(field: str, text: str, zone: tzinfo, now: datetime) -> datetime:
    ago = _AGO.fullmatch(text)
    try:
        if ago is not None:
            unit = {"d": timedelta(days=1), "h": timedelta(hours=1)}[ago[2]]
            return (now - int(ago[1]) * unit).astimezone(UTC)
        moment = datetime.fromisoformat(text)
        return (moment.replace(tzinfo=zone) if moment.tzinfo is None else moment).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequest(
            f"{field} is {text!r}, which is not a date, time or span",
            field=field,
            fix="give 2026-11-01, 2026-11-01T09:30, 7d or 24h",
        ) from error
