"""Reconciliation: recomputes every number that follows from other rows of the ledger."""

from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Select,
    Table,
    and_,
    case,
    func,
    literal,
    or_,
    select,
    type_coerce,
    union_all,
)

from serving.contracts.report import Discrepancy, Reconciliation, TokenClass
from serving.ledger.database import Database
from serving.ledger.reports.query import TOKEN_CLASSES, token_usd, tokens_of
from serving.ledger.reports.replica_time import replica_cost
from serving.ledger.reports.snapshot import snapshot
from serving.ledger.schema import PICODOLLARS, Usd, calls, exits, prices, spending

_Check = Callable[[Connection, str | None], Iterable[Discrepancy]]


def reconcile(
    database: Database, tenant: str | None = None, timeout_s: float = 60.0
) -> list[Discrepancy]:
    """Return the discrepancies of the ledger over all time; blocking.

    Empty if every number agrees. tenant: None for all. Raises LedgerUnavailable.
    """
    with snapshot(database, timeout_s) as connection:
        return list(reconcile_in(connection, tenant).discrepancies)


def reconcile_in(connection: Connection, tenant: str | None) -> Reconciliation:
    """Return the discrepancies and the number of rows, as of a connection's snapshot."""
    checks: tuple[_Check, ...] = (
        _exits, _frontier_calls, _local_calls, _states, _orphans, _spending, _negatives,
    )  # fmt: skip
    return Reconciliation(
        rows=sum(_count(connection, table, tenant) for table in (exits, calls, spending)),
        discrepancies=tuple(found for check in checks for found in check(connection, tenant)),
    )


def _exits(connection: Connection, tenant: str | None) -> Iterator[Discrepancy]:
    sums = (
        select(
            calls.c.exit_id,
            func.sum(calls.c.cost_usd).label("cost"),
            func.sum(calls.c.held_usd).label("held"),
        )
        .group_by(calls.c.exit_id)
        .subquery()
    )
    stated = _or_zero(exits.c.cost_usd), _or_zero(exits.c.held_usd)
    found = _or_zero(sums.c.cost), _or_zero(sums.c.held)
    query = (
        select(exits.c.id, *stated, *found)
        .select_from(exits)
        .outerjoin(sums, sums.c.exit_id == exits.c.id)
        # The sums of an open input are computed when it is closed.
        .where(exits.c.state != "open", or_(stated[0] != found[0], stated[1] != found[1]))
    )
    for key, cost, held, cost_found, held_found in _rows(connection, query, exits, tenant):
        if cost != cost_found:
            yield _money("exit_cost", f"exits.cost_usd {key}", cost, cost_found)
        if held != held_found:
            yield _money("exit_held", f"exits.held_usd {key}", held, held_found)


def _frontier_calls(connection: Connection, tenant: str | None) -> Iterator[Discrepancy]:
    token_costs = [_token_cost(name) for name in TOKEN_CLASSES]
    expected = type_coerce(sum(token_costs[1:], token_costs[0]), Usd)
    query = (
        select(calls.c.id, calls.c.cost_usd, expected)
        .select_from(calls)
        .outerjoin(prices, prices.c.id == calls.c.price_id)
        .where(
            calls.c.kind == "frontier",
            calls.c.cost_usd.is_not(None),
            calls.c.cost_usd.is_distinct_from(expected),
        )
    )
    for key, stated, found in _rows(connection, query, calls, tenant):
        yield _money("call_cost", f"calls.cost_usd {key}", stated, found)


def _token_cost(name: TokenClass) -> ColumnElement[int]:
    """Return the cost of a call's tokens of a class; NULL for tokens without a price."""
    none = func.coalesce(tokens_of(name), 0) == 0
    return case((none, 0), else_=token_usd(name))


def _local_calls(connection: Connection, tenant: str | None) -> Iterator[Discrepancy]:
    # Computed here: replica time times its price exceeds 64 bits within a minute.
    query = (
        select(calls.c.id, calls.c.cost_usd, calls.c.replica_us, prices.c.replica_hour_usd)
        .select_from(calls)
        .outerjoin(prices, prices.c.id == calls.c.price_id)
        .where(calls.c.kind == "local")
    )
    for key, stated, replica_us, price in _rows(connection, query, calls, tenant):
        found = replica_cost(replica_us or 0, price or Decimal(0))
        unpriced = bool(replica_us) and price is None
        if unpriced or (stated or Decimal(0)) != found:
            yield _money("call_cost", f"calls.cost_usd {key}", stated, None if unpriced else found)


def _states(connection: Connection, tenant: str | None) -> Iterator[Discrepancy]:
    closed = calls.c.state == "closed"
    wrong = or_(
        and_(closed, calls.c.held_usd != Decimal(0)),
        and_(closed, calls.c.kind == "frontier", calls.c.cost_usd.is_(None)),
        and_(~closed, calls.c.cost_usd.is_not(None)),
    )
    query = select(calls.c.id, calls.c.state, calls.c.cost_usd, calls.c.held_usd).where(wrong)
    for key, state, cost, held in _rows(connection, query, calls, tenant):
        money = f"cost {_text(cost) or 'unknown'}, held {_text(held)}"
        yield Discrepancy(kind="call_state", row=f"calls.state {key}", stated=state, found=money)


def _orphans(connection: Connection, tenant: str | None) -> Iterator[Discrepancy]:
    query = (
        select(calls.c.id, calls.c.tenant, exits.c.tenant)
        .select_from(calls)
        .outerjoin(exits, exits.c.id == calls.c.exit_id)
        .where(calls.c.tenant.is_distinct_from(exits.c.tenant))
    )
    for key, stated, found in _rows(connection, query, calls, tenant):
        yield Discrepancy(kind="call_exit", row=f"calls.exit_id {key}", stated=stated, found=found)


def _spending(connection: Connection, tenant: str | None) -> Iterator[Discrepancy]:
    nothing = literal(Decimal(0), Usd)
    stated = select(
        spending.c.tenant, spending.c.period, spending.c.start,
        spending.c.spent_usd.label("spent"), spending.c.held_usd.label("held"),
        nothing.label("spent_found"), nothing.label("held_found"),
    )  # fmt: skip
    summed = [
        select(
            calls.c.tenant, literal(period), start, nothing, nothing,
            _or_zero(calls.c.cost_usd), calls.c.held_usd,
        ).where(calls.c.kind == "frontier")
        for period, start in (("day", calls.c.day), ("month", calls.c.month))
    ]  # fmt: skip
    both = union_all(stated, *summed).subquery()
    spent, held, spent_found, held_found = (
        func.sum(both.c[name]) for name in ("spent", "held", "spent_found", "held_found")
    )
    keys = both.c.tenant, both.c.period, both.c.start
    query = (
        select(*keys, spent, spent_found, held, held_found)
        .group_by(*keys)
        .having(or_(spent != spent_found, held != held_found))
        .order_by(*keys)
    )
    if tenant is not None:
        query = query.where(both.c.tenant == tenant)
    for name, period, start, *money in connection.execute(query):
        for column, amount, found in (("spent", *money[:2]), ("held", *money[2:])):
            if amount != found:
                row = f"spending.{column}_usd {name} {period} {start}"
                yield _money("spending", row, amount, found)


def _negatives(connection: Connection, tenant: str | None) -> Iterator[Discrepancy]:
    tokens = tuple(f"{name}_tokens" for name in TOKEN_CLASSES)
    columns = {
        exits: (*tokens, "cost_usd", "held_usd", "reference_usd", "elapsed_us"),
        calls: (*tokens, "cost_usd", "held_usd", "replica_us", "elapsed_us"),
        spending: ("spent_usd", "held_usd"),
    }
    for table, names in columns.items():
        # As integers, so that one comparison serves money and tokens.
        values = [type_coerce(table.c[name], BigInteger) for name in names]
        query = select(*table.primary_key, *values).where(or_(*(value < 0 for value in values)))
        keys = len(table.primary_key)
        for row in _rows(connection, query, table, tenant):
            for name, value in zip(names, row[keys:], strict=True):
                if value is not None and value < 0:
                    at = f"{table.name}.{name} {' '.join(row[:keys])}"
                    amount = _text(Decimal(value) / PICODOLLARS) if "_usd" in name else str(value)
                    yield Discrepancy(kind="negative", row=at, stated=amount, found=None)


def _rows(
    connection: Connection, query: Select[Any], table: Table, tenant: str | None
) -> Iterable[Any]:
    if tenant is not None:
        query = query.where(table.c.tenant == tenant)
    return connection.execute(query.order_by(*table.primary_key))


def _count(connection: Connection, table: Table, tenant: str | None) -> int:
    query = select(func.count()).select_from(table)
    if tenant is not None:
        query = query.where(table.c.tenant == tenant)
    return connection.execute(query).scalar_one()


def _or_zero(money: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.coalesce(money, Decimal(0))


def _text(amount: Decimal | None) -> str | None:
    return None if amount is None else format(amount, "f")


def _money(kind: Any, row: str, stated: Decimal | None, found: Decimal | None) -> Discrepancy:
    return Discrepancy(kind=kind, row=row, stated=_text(stated), found=_text(found))
