"""Rows of the ledger, made from what requests report. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Protocol
from uuid import uuid4
from zoneinfo import ZoneInfo

from serving.contracts.answer import Usage
from serving.contracts.exits import HEAD_PREFIX, NO_MODEL, Endpoint, Exit
from serving.contracts.ledger import CallEnd, Caller
from serving.contracts.prices import PICODOLLAR
from serving.ledger.operations import Row
from serving.ledger.pricing.cost import Price, Priced, replica_us

_ZERO = Decimal(0)
_MAX_CHARS = 256
"""Longest text from outside: clients choose request ids, providers name service tiers."""

_MAX_TOKENS = 10**9
"""Most tokens of one class that a call can plausibly have; more is not credible."""

_MAX_SECONDS = 10.0**9

_NOT_LOCAL = frozenset(
    {
        None,
        "narrow",
        "requested",
        "out_of_scope",
        "shadow",
        "audit",
        "explore",
        "judge",
        "earned_tier",
        "cascade",
    }
)
"""Reasons of inputs that a local model answered, or that were not meant for a local model."""


class Prices(Protocol):
    """What calls cost; serving.ledger.pricing.cost implements it."""

    def frontier(
        self, model: str, usage: Usage, service_tier: str | None, at: datetime | None = None
    ) -> Priced:
        """Return the cost of a provider's tokens. Raises UnpricedModel."""
        ...

    def local(self, model: str, replica_s: float) -> Priced:
        """Return the cost of a share of a local replica's time. Raises UnpricedModel."""
        ...

    def reference(self, usage: Usage, at: datetime | None = None) -> Decimal:
        """Return the cost at the reference model. Raises UnpricedModel."""
        ...


@dataclass(frozen=True, slots=True)
class Periods:
    """A day and its month, each as the ISO date of its first day."""

    day: str
    month: str


def periods_at(moment: datetime, zone: ZoneInfo) -> Periods:
    """Return the budget periods that contain a moment. moment: with a time zone, any."""
    day = moment.astimezone(zone).date()
    return Periods(day.isoformat(), day.replace(day=1).isoformat())


@dataclass(frozen=True, slots=True)
class ExitHeader:
    """The fields of an exit that are known when its input arrives. id: of its row."""

    id: str
    caller: Caller
    request_id: str
    endpoint: Endpoint
    task: str | None
    index: int
    opened_at: datetime
    instance: str


@dataclass(frozen=True, slots=True)
class LocalShare:
    """Time of a local replica that one attempt or answer took."""

    model: str
    outcome: str
    usage: Usage | None
    replica_s: float
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over an exit's calls, US dollars.

    cost_usd: of the calls with a known cost. held_usd: worst case of the others.
    """

    cost_usd: Decimal
    held_usd: Decimal
    reference_usd: Decimal | None


def is_credible(usage: Usage) -> bool:
    """Return whether a usage fits the columns and what models can do: 10^9 tokens of each class."""
    return all(tokens <= _MAX_TOKENS for tokens in usage.model_dump().values())


def opened_exit(header: ExitHeader) -> Row:
    """Return an exit's row while the request is in progress."""
    return {
        "id": header.id,
        "request_id": storable_text(header.request_id),
        "input_index": header.index,
        "tenant": header.caller.tenant,
        "key_id": header.caller.key_id,
        "endpoint": header.endpoint,
        "lane": header.caller.lane,
        "purpose": header.caller.purpose,
        "task": header.task,
        "state": "open",
        "escalated": False,
        "cached": False,
        "opened_at": header.opened_at,
        "instance": header.instance,
    }


def closed_exit(
    header: ExitHeader, exit_: Exit, sums: Sums, reference_model: str, *, paid: bool
) -> Row:
    """Return the row of an exit that has ended. paid: it has opened provider calls."""
    return {
        **opened_exit(header),
        "task": exit_.task or header.task,
        "state": "closed",
        "route": exit_.route,
        "reason": exit_.reason,
        "model": storable_text(exit_.model),
        "outcome": exit_.error or "answered",
        "valid": exit_.valid,
        "guaranteed": exit_.guaranteed,
        "evidence": exit_.evidence,
        "claim": exit_.claim,
        "escalated": is_escalated(exit_, paid=paid),
        "cached": exit_.route == "cache",
        **_tokens(exit_.usage),
        "service_tier": storable_text(exit_.service_tier),
        "cost_usd": sums.cost_usd,
        "held_usd": sums.held_usd,
        "reference_usd": sums.reference_usd,
        "reference_model": None if sums.reference_usd is None else reference_model,
        "cache_entry": exit_.cache_entry,
        "cache_kind": exit_.cache_kind,
        "refined_route": exit_.refined_route,
        "lookup_us": None if exit_.lookup_s is None else _microseconds(exit_.lookup_s),
        "avoided_usd": exit_.avoided_usd,
        "cluster": exit_.cluster,
        "elapsed_us": _microseconds(exit_.elapsed_s),
    }


def is_escalated(exit_: Exit, *, paid: bool) -> bool:
    """Return whether an input that was meant for a local model was sent to a provider.

    This is the case after a local attempt, and for reasons that concern local models: overload, no
    attestation, failure, or an answer below its threshold.
    """
    tried = any(attempt.replica_s is not None for attempt in exit_.attempts)
    return (paid or exit_.route == "frontier") and (tried or exit_.reason not in _NOT_LOCAL)


def opened_call(
    header: ExitHeader, model: str, worst_case_usd: Decimal, periods: Periods, at: datetime
) -> Row:
    """Return the row of a provider call before it is made; its worst case is held, rounded up."""
    worst = worst_case_usd.quantize(PICODOLLAR, ROUND_CEILING)
    return {
        **_call(header, "frontier", model, periods, at),
        "state": "open",
        "held_usd": worst,
    }


def closed_call(call: Row, end: CallEnd, priced: Priced | None) -> Row:
    """Return the row of a provider call that has ended. priced: None where nothing was used."""
    return {
        **call,
        "state": "closed",
        "outcome": end.outcome,
        **_tokens(end.usage),
        "usage_source": end.usage_source,
        "service_tier": storable_text(end.service_tier),
        "price_id": None if priced is None else priced.price.id,
        "cost_usd": _ZERO if priced is None else priced.cost_usd,
        "held_usd": _ZERO,
        "elapsed_us": _microseconds(end.elapsed_s),
        "prefix": end.prefix,
    }


def unknown_call(call: Row, end: CallEnd) -> Row:
    """Return the row of a call whose usage is unknown. It may have been billed: its hold stays."""
    return {
        **call,
        "state": "unknown",
        "outcome": end.outcome,
        **_tokens(end.usage),
        "usage_source": "unknown",
        "service_tier": storable_text(end.service_tier),
        "elapsed_us": _microseconds(end.elapsed_s),
        "prefix": end.prefix,
    }


def local_call(
    header: ExitHeader, share: LocalShare, priced: Priced | None, periods: Periods
) -> Row:
    """Return a local call's row. priced: None where the price is unknown, and so the cost."""
    # Its own start is not known, only that of its request.
    return {
        **_call(header, "local", share.model, periods, header.opened_at),
        "state": "closed",
        "outcome": share.outcome,
        **_tokens(share.usage),
        "usage_source": None if share.usage is None else "reported",
        "replica_us": replica_us(share.replica_s),
        "price_id": None if priced is None else priced.price.id,
        "cost_usd": None if priced is None else priced.cost_usd,
        "held_usd": _ZERO,
        "elapsed_us": _microseconds(share.elapsed_s),
    }


def price_row(price: Price) -> Row:
    """Return a price's row."""
    row: dict[str, object] = {
        "id": price.id,
        "model": price.model,
        "source": price.source,
        "service_tier": price.service_tier,
        "over_input_tokens": price.over_input_tokens,
        "replica_hour_usd": price.replica_hour_usd,
    }
    if price.tokens is not None:
        row |= {
            "uncached_input_usd": price.tokens.uncached_input,
            "cache_read_usd": price.tokens.cache_read,
            "cache_write_5m_usd": price.tokens.cache_write_5m,
            "cache_write_1h_usd": price.tokens.cache_write_1h,
            "output_usd": price.tokens.output,
        }
    return row


def local_shares(exit_: Exit) -> list[LocalShare]:
    """Return the local replica time of an input: discarded attempts first, then the answer."""
    shares = [
        LocalShare(tried.model, tried.error, tried.usage, tried.replica_s, tried.elapsed_s)
        for tried in exit_.attempts
        if tried.replica_s is not None
        and tried.model != NO_MODEL
        and not tried.model.startswith(HEAD_PREFIX)
    ]
    has_time = exit_.replica_s is not None or exit_.route == "local"
    if exit_.model is not None and has_time and not exit_.model.startswith(HEAD_PREFIX):
        outcome, replica_s = exit_.error or "ok", exit_.replica_s or 0.0
        shares.append(LocalShare(exit_.model, outcome, exit_.usage, replica_s, exit_.elapsed_s))
    return shares


def _call(
    header: ExitHeader, kind: str, model: str, periods: Periods, at: datetime
) -> dict[str, object]:
    return {
        "id": uuid4().hex,
        "exit_id": header.id,
        "tenant": header.caller.tenant,
        "kind": kind,
        "model": storable_text(model),
        "day": periods.day,
        "month": periods.month,
        "opened_at": at,
        "instance": header.instance,
    }


def _tokens(usage: Usage | None) -> dict[str, int]:
    return {} if usage is None else usage.model_dump()


def storable_text(value: str | None) -> str | None:
    """Return a text that both databases can store: no NUL, no lone surrogates, 256 characters."""
    if value is None:
        return None
    return value.replace("\x00", "").encode("utf-8", "replace").decode()[:_MAX_CHARS]


def _microseconds(seconds: float) -> int:
    # Comparisons with NaN are false, so that NaN counts as no time.
    bounded = min(seconds, _MAX_SECONDS) if seconds > 0 else 0.0
    return timedelta(seconds=bounded) // timedelta(microseconds=1)
