"""The wait before a retry: as the provider requested it, or by back-off. Pure."""

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import isfinite

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 8.0
_LONGEST_ASKED_S = 86_400.0
"""A longer wait than a day is not passed on: clients would take it literally."""

_RESETS = ("requests", "tokens", "input-tokens", "output-tokens")


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return the seconds to wait that an answer's headers name, at most a day; None without any.

    Reads `retry-after-ms`, then `retry-after` (seconds or a date), then the reset times of those
    Anthropic limits of which nothing remains. headers: keys in lower case.
    """
    requested_s = _requested_s(headers, now or datetime.now(UTC))
    return None if requested_s is None else min(requested_s, _LONGEST_ASKED_S)


def _requested_s(headers: Mapping[str, str], now: datetime) -> float | None:
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    if (seconds := _number(value)) is not None:
        return seconds
    if (at := _date(value)) is not None:
        return _until(at, now)
    waits = [
        _until(reset, now)
        for limit in _RESETS
        if headers.get(f"anthropic-ratelimit-{limit}-remaining") == "0"
        if (reset := _timestamp(headers.get(f"anthropic-ratelimit-{limit}-reset"))) is not None
    ]
    return max(waits, default=None)


def wait_s(retry: int, requested_s: float | None, rng: random.Random) -> float:
    """Return how long to wait before a retry, seconds.

    retry: 0 for the first. requested_s: as the provider requested; up to 10 % is added, so
    that clients do not return at the same moment. Without one: half to all of an interval that
    doubles from 0.5 s to 8 s.
    """
    if requested_s is not None:
        return requested_s * (1 + rng.random() / 10)
    interval: float = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0**retry)
    return interval * (0.5 + rng.random() / 2)


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if isfinite(number) and number >= 0 else None


def _date(value: str | None) -> datetime | None:
    try:
        found = parsedate_to_datetime(value or "")
    except (ValueError, OverflowError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _timestamp(value: str | None) -> datetime | None:
    try:
        found = datetime.fromisoformat(value or "")
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _until(at: datetime, now: datetime) -> float:
    try:
        return max(0.0, (at - now).total_seconds())
    except OverflowError:
        # A date at the end of the calendar whose time zone moves it out of range.
        return _LONGEST_ASKED_S
