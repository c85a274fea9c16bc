"""How long a provider asks its clients to wait, and how long to wait before a retry. Pure."""

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
    asked_s = _asked_s(headers, now or datetime.now(UTC))
    return None if asked_s is None else min(asked_s, _LONGEST_ASKED_S)


def _asked_s(headers: Mapping[str, str], now: datetime) -> float | None:
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


def wait_s(retry: int, asked_s: float | None, rng: random.Random) -> float:
    """Return how long to wait before a retry, seconds.

    retry: 0 for the first. asked_s: the provider's wish, with up to 10 % on top, so that clients do
    not return at the same moment. Without one: half to all of an interval that doubles from 0.5 s
    to 8 s.
    """
    if asked_s is not None:
        return asked_s * (1 + rng.random() / 10)
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
        # A date at the end of the calendar, in a zone that moves it beyond.
        return _LONGEST_ASKED_S
