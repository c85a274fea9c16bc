"""How a request uses the cache: its headers, `store: false`, and Cache-Control."""

from typing import Any, get_args

from starlette.datastructures import Headers

from serving.contracts.answer import CacheHit
from serving.contracts.invalid_values import invalid
from serving.contracts.routing import CachePreference
from serving.gateway.auth import single_header

CACHE = "x-narrowgate-cache"
CACHE_TTL = "x-narrowgate-cache-ttl-s"
CACHE_ENTRY = "x-narrowgate-cache-entry"
CACHE_AGE = "x-narrowgate-cache-age-s"
CACHE_KIND = "x-narrowgate-cache-kind"
CACHE_SIMILARITY = "x-narrowgate-cache-similarity"

_PREFERENCES: tuple[CachePreference, ...] = get_args(CachePreference)
_LONGEST_TTL_S = 31_536_000


def cache_preference(body: Any, headers: Headers) -> CachePreference:
    """Return how a request uses the cache. Raises InvalidRequest, which names the header.

    `store: false` and `Cache-Control: no-store` forbid to store whatever the header allows.
    """
    wanted: CachePreference = "use"
    value = single_header(headers, CACHE)
    if value is not None:
        found = next((name for name in _PREFERENCES if name == value.strip().lower()), None)
        if found is None:
            raise invalid(CACHE, value, f"one of {', '.join(_PREFERENCES)}")
        wanted = found
    if not _forbids_storing(body, headers):
        return wanted
    # A refresh asks a model and replaces the entry: without storing it is a bypass.
    return {"use": "no-store", "refresh": "bypass"}.get(wanted, wanted)  # type: ignore[return-value]


def hit_headers(hit: CacheHit) -> dict[str, str]:
    """Return the headers that name a cached answer."""
    return {
        CACHE_ENTRY: hit.entry, CACHE_AGE: f"{hit.age_s:.3f}", CACHE_KIND: hit.kind,
        CACHE_SIMILARITY: f"{hit.similarity:.4f}",
    }  # fmt: skip


def cache_ttl_s(headers: Headers) -> float | None:
    """Return the age at which the request's entry ends, seconds. Raises InvalidRequest."""
    value = single_header(headers, CACHE_TTL)
    if value is None:
        return None
    text = value.strip()
    if not (text.isascii() and text.isdecimal() and 0 < int(text[:12]) <= _LONGEST_TTL_S):
        raise invalid(CACHE_TTL, value, f"a whole number of seconds from 1 to {_LONGEST_TTL_S}")
    return float(text)


def _forbids_storing(body: Any, headers: Headers) -> bool:
    if isinstance(body, dict) and body.get("store") is False:
        return True
    values = ",".join(headers.getlist("cache-control")).lower().split(",")
    return "no-store" in (value.strip() for value in values)
