"""Operations of the ledger, made as requests make them."""

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from serving.contracts.ledger import Caller
from serving.ledger.operations import Close, Open, RecordExit
from serving.ledger.rows import (
    ExitHeader,
    LocalShare,
    Sums,
    closed_call,
    closed_exit,
    local_call,
    opened_call,
    opened_exit,
    periods_at,
    price_row,
    unknown_call,
)

from .ledger_kit import LOCAL, MODEL, USAGE, FixedPrices, ended, left, left_locally

AT = datetime(2026, 3, 31, 23, 30, tzinfo=UTC)


def header(number: int, tenant: str = "a", instance: str = "one") -> ExitHeader:
    return ExitHeader(f"e{number:04d}", Caller(tenant), "r", "chat", None, 0, AT, instance)


def opened(of: ExitHeader, worst: Decimal, zone: str = "UTC") -> Open:
    periods = periods_at(of.opened_at, ZoneInfo(zone))
    return Open(opened_exit(of), opened_call(of, MODEL, worst, periods, of.opened_at))


def closed(operation: Open, *, known: bool = True) -> Close:
    if not known:
        return Close(unknown_call(operation.call, ended(None, "unknown")))
    priced = FixedPrices().frontier(MODEL, USAGE, None)
    return Close(closed_call(operation.call, ended(), priced), (price_row(priced.price),))


def departed(of: ExitHeader, *, paid: bool) -> RecordExit:
    local: tuple[Any, ...] = ()
    prices: tuple[Any, ...] = ()
    cost = Decimal(0)
    if not paid:
        priced = FixedPrices().local(LOCAL, 0.5)
        share = LocalShare(LOCAL, "ok", USAGE, 0.5, 0.5)
        local = (local_call(of, share, priced, periods_at(AT, ZoneInfo("UTC"))),)
        prices, cost = (price_row(priced.price),), priced.cost_usd
    sums = Sums(cost, Decimal(0), None)
    exit_ = left() if paid else left_locally()
    return RecordExit(closed_exit(of, exit_, sums, MODEL, paid=paid), local, prices, paid)
