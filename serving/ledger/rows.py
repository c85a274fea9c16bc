"""Rows of the books, made from what requests leave behind. Pure."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import ROUND_CEILING, Decimal
from typing import Protocol
from uuid import uuid4

from serving.contracts.answer import Usage
from serving.contracts.exits import Endpoint, Exit
from serving.contracts.ledger import CallEnd, Caller
from serving.contracts.prices import PICODOLLAR
from serving.ledger.operations import Row
from serving.ledger.periods import Periods
from serving.ledger.pricing.cost import Price, Priced, replica_us

_ZERO = Decimal(0)
_ID_CHARS = 256
"""Of a request's id, which clients may choose."""

_STAYED = frozenset({None, "narrow", "requested", "out_of_scope"})
"""Reasons for which nothing local was to answer, or did."""


class Prices(Protocol):
    """What calls cost; serving.ledger.pricing.cost has it."""

    def frontier(
        self, model: str, usage: Usage, service_tier: str | None, at: datetime | None = None
    ) -> Priced:
        """Return what a provider's tokens cost. Raises UnpricedModel."""
        ...

    def local(self, model: str, replica_s: float) -> Priced:
        """Return what a share of a local replica's time cost. Raises UnpricedModel."""
        ...

    def reference(self, usage: Usage, at: datetime | None = None) -> Decimal:
        """Return what the reference model would have cost. Raises UnpricedModel."""
        ...


@dataclass(frozen=True, slots=True)
class Page:
    """What is known of an exit from the start. id: of its row."""

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
    """What one attempt or answer took of a local replica's time."""

    model: str
    outcome: str
    usage: Usage | None
    replica_s: float
    elapsed_s: float


@dataclass(frozen=True, slots=True)
class Sums:
    """Of an exit, US dollars. cost_usd: of its calls whose cost is known; held_usd: the others."""

    cost_usd: Decimal
    held_usd: Decimal
    reference_usd: Decimal | None


def opened_exit(page: Page) -> Row:
    """Return an exit's row while the request runs."""
    return {
        "id": page.id,
        "request_id": page.request_id.replace("\x00", "")[:_ID_CHARS],
        "input_index": page.index,
        "tenant": page.caller.tenant,
        "key_id": page.caller.key_id,
        "endpoint": page.endpoint,
        "task": page.task,
        "state": "open",
        "escalated": False,
        "cached": False,
        "opened_at": page.opened_at,
        "instance": page.instance,
    }


def closed_exit(page: Page, exit_: Exit, sums: Sums, reference_model: str, *, paid: bool) -> Row:
    """Return an exit's row when it has left. paid: it opened calls of providers."""
    return {
        **opened_exit(page),
        "task": exit_.task or page.task,
        "state": "closed",
        "route": exit_.route,
        "reason": exit_.reason,
        "model": exit_.model,
        "outcome": exit_.error or "answered",
        "valid": exit_.valid,
        "guaranteed": exit_.guaranteed,
        "escalated": is_escalated(exit_, paid=paid),
        "cached": exit_.route == "cache",
        **_tokens(exit_.usage),
        "service_tier": exit_.service_tier,
        "cost_usd": sums.cost_usd,
        "held_usd": sums.held_usd,
        "reference_usd": sums.reference_usd,
        "reference_model": None if sums.reference_usd is None else reference_model,
        "elapsed_us": _microseconds(exit_.elapsed_s),
    }


def is_escalated(exit_: Exit, *, paid: bool) -> bool:
    """Tell whether a provider was asked for what a local model was to answer.

    That is so where a local attempt came first, and where the reason is one that local models give:
    they had no room or proof, failed, or their answer was not good enough.
    """
    tried = any(attempt.replica_s is not None for attempt in exit_.attempts)
    return (paid or exit_.route == "frontier") and (tried or exit_.reason not in _STAYED)


def opened_call(
    page: Page, model: str, worst_case_usd: Decimal, periods: Periods, at: datetime
) -> Row:
    """Return a provider call's row before it is made; it holds its worst case, rounded up."""
    worst = worst_case_usd.quantize(PICODOLLAR, ROUND_CEILING)
    return {
        **_call(page, "frontier", model, periods, at),
        "state": "open",
        "held_usd": worst,
    }


def closed_call(call: Row, end: CallEnd, priced: Priced | None) -> Row:
    """Return a provider call's row when it has ended. priced: None where nothing was used."""
    return {
        **call,
        "state": "closed",
        "outcome": end.outcome,
        **_tokens(end.usage),
        "usage_source": end.usage_source,
        "service_tier": end.service_tier,
        "price_id": None if priced is None else priced.price.id,
        "cost_usd": _ZERO if priced is None else priced.cost_usd,
        "held_usd": _ZERO,
        "elapsed_us": _microseconds(end.elapsed_s),
    }


def unknown_call(call: Row, end: CallEnd) -> Row:
    """Return the row of a call that may have been billed and told nothing: its hold stays."""
    return {
        **call,
        "state": "unknown",
        "outcome": end.outcome,
        **_tokens(end.usage),
        "usage_source": "unknown",
        "service_tier": end.service_tier,
        "elapsed_us": _microseconds(end.elapsed_s),
    }


def local_call(page: Page, share: LocalShare, priced: Priced | None, periods: Periods) -> Row:
    """Return a local call's row. priced: None where nobody knows, which leaves its cost open."""
    # Nobody tells when it began: within its request.
    return {
        **_call(page, "local", share.model, periods, page.opened_at),
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
    """Return what a request took of local replicas: attempts set aside, then the answer."""
    shares = [
        LocalShare(tried.model, tried.error, tried.usage, tried.replica_s, tried.elapsed_s)
        for tried in exit_.attempts
        if tried.replica_s is not None
    ]
    if exit_.model is not None and (exit_.replica_s is not None or exit_.route == "local"):
        outcome, replica_s = exit_.error or "ok", exit_.replica_s or 0.0
        shares.append(LocalShare(exit_.model, outcome, exit_.usage, replica_s, exit_.elapsed_s))
    return shares


def _call(page: Page, kind: str, model: str, periods: Periods, at: datetime) -> dict[str, object]:
    return {
        "id": uuid4().hex,
        "exit_id": page.id,
        "tenant": page.caller.tenant,
        "kind": kind,
        "model": model,
        "day": periods.day,
        "month": periods.month,
        "opened_at": at,
        "instance": page.instance,
    }


def _tokens(usage: Usage | None) -> dict[str, int]:
    return {} if usage is None else usage.model_dump()


def _microseconds(seconds: float) -> int:
    return timedelta(seconds=seconds) // timedelta(microseconds=1)
