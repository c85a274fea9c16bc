"""Queries of a report: exact sums by the database over rows with equal keys.

A call counts where its input counts, so that every grouping has the same total.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Any, Literal, get_args

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    Row,
    Select,
    Text,
    and_,
    case,
    column,
    func,
    literal_column,
    or_,
    select,
    type_coerce,
    values,
)

from serving.contracts.errors import NotFound
from serving.contracts.exits import DEFERRED
from serving.contracts.ledger import DEFAULT_TENANT
from serving.contracts.report import CachedPrefix, Latency, TokenClass
from serving.ledger.database import Database
from serving.ledger.schema import Usd, UtcTime, calls, exits, instances, prices, tenants

InputStatus = Literal["answered", "failed", "deferred", "unknown", "open"]

TOKEN_CLASSES: tuple[TokenClass, ...] = get_args(TokenClass)
_MOST_PREFIXES = 21


@dataclass(frozen=True, slots=True)
class Scope:
    """The inputs of a report: opened in [since, until). tenant: None for all."""

    since: datetime
    until: datetime
    tenant: str | None

    def covers(self) -> ColumnElement[bool]:
        """Return the condition on `exits`."""
        inside = and_(exits.c.opened_at >= self.since, exits.c.opened_at < self.until)
        return inside if self.tenant is None else and_(inside, exits.c.tenant == self.tenant)


@dataclass(frozen=True, slots=True)
class ExitGroup:
    """Inputs with equal keys.

    reference_usd: of those whose answer counts as a saving. unpriced: those of them without a price
    at the reference model. unguaranteed: the others, whose answer saves nothing.
    """

    tenant: str
    endpoint: str
    lane: str
    purpose: str
    task: str | None
    route: str | None
    reason: str | None
    outcome: str | None
    reference_model: str | None
    evidence: str | None
    escalated: bool
    cached: bool
    status: InputStatus
    count: int
    reference_usd: Decimal
    unpriced: int
    unguaranteed: int


@dataclass(frozen=True, slots=True)
class CallGroup:
    """Calls with equal keys. status: of the input. tokens, token_usd: in order of TOKEN_CLASSES."""

    tenant: str
    endpoint: str
    lane: str
    purpose: str
    task: str | None
    route: str | None
    status: InputStatus
    kind: Literal["frontier", "local"]
    model: str
    state: str
    outcome: str | None
    service_tier: str | None
    price_id: str | None
    count: int
    cost_usd: Decimal
    held_usd: Decimal
    replica_us: int
    tokens: tuple[int, ...]
    token_usd: tuple[Decimal, ...]


@dataclass(frozen=True, slots=True)
class DayGroup:
    """Calls of one model on one day, by state. day: ISO."""

    day: str
    model: str
    state: str
    count: int
    cost_usd: Decimal
    held_usd: Decimal


@dataclass(frozen=True, slots=True)
class ExitDay:
    """Inputs of one day, by status. day: ISO."""

    day: str
    status: InputStatus
    count: int
    reference_usd: Decimal


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Lifetime of a gateway, and the cost of all local replicas per hour in that time."""

    start: datetime
    end: datetime
    replica_hour_usd: Decimal


_STATUS = case(
    (exits.c.state.in_(("open", "unknown")), exits.c.state),
    (exits.c.outcome == "answered", "answered"),
    (exits.c.outcome == DEFERRED, DEFERRED),
    else_="failed",
)


# Inputs of earlier versions have no lane.
_LANE = func.coalesce(exits.c.lane, literal_column("'interactive'"))

_PURPOSE = case(
    (exits.c.endpoint == "audit", literal_column("'audit'")),
    else_=func.coalesce(exits.c.purpose, literal_column("'request'")),
)

# A local or cached answer outside an attested error bound does not replace the reference model.
# No client got an audit's answer.
_SAVES = and_(
    exits.c.endpoint != "audit", or_(exits.c.route == "frontier", exits.c.guaranteed.is_(True))
)
_REFERENCE_USD = case((_SAVES, exits.c.reference_usd))


def exit_groups(connection: Connection, scope: Scope) -> list[ExitGroup]:
    """Return the inputs, grouped by equal keys."""
    keys = [
        exits.c.tenant, exits.c.endpoint, _LANE, _PURPOSE, exits.c.task, exits.c.route,
        exits.c.reason, exits.c.outcome, exits.c.reference_model, exits.c.evidence,
        exits.c.escalated, exits.c.cached, _STATUS,
    ]  # fmt: skip
    saving = func.count(case((_SAVES, exits.c.id)))
    unpriced = saving - func.count(_REFERENCE_USD)
    query: Select[Any] = select(
        *keys, func.count(), _dollars(_REFERENCE_USD), unpriced, func.count() - saving
    )
    rows = connection.execute(query.where(scope.covers()).group_by(*keys))
    return [ExitGroup(*row) for row in rows]


def call_groups(connection: Connection, scope: Scope) -> list[CallGroup]:
    """Return the calls of the inputs in scope, grouped by equal keys."""
    keys = [
        exits.c.tenant, exits.c.endpoint, _LANE, _PURPOSE, exits.c.task, exits.c.route,
        _STATUS, calls.c.kind, calls.c.model, calls.c.state, calls.c.outcome, calls.c.service_tier,
        calls.c.price_id,
    ]  # fmt: skip
    query: Select[Any] = (
        select(
            *keys, func.count(), _dollars(calls.c.cost_usd), _dollars(calls.c.held_usd),
            _whole(calls.c.replica_us),
            *(_whole(tokens_of(name)) for name in TOKEN_CLASSES),
            *(type_coerce(_whole(token_usd(name)), Usd) for name in TOKEN_CLASSES),
        )
        .select_from(calls)
        .join(exits, exits.c.id == calls.c.exit_id)
        .outerjoin(prices, prices.c.id == calls.c.price_id)
        .where(scope.covers())
        .group_by(*keys)
    )  # fmt: skip
    return [_call_group(*row) for row in connection.execute(query)]


def _call_group(*row: Any) -> CallGroup:
    n = len(TOKEN_CLASSES)
    *fields, replica_us = row[: -2 * n]
    tokens, dollars = row[-2 * n : -n], row[-n:]
    return CallGroup(*(*fields, int(replica_us), tuple(map(int, tokens)), dollars))


def tokens_of(name: TokenClass) -> ColumnElement[int]:
    """Return a call's tokens of a class."""
    return calls.c[f"{name}_tokens"]


def token_usd(name: TokenClass) -> ColumnElement[int]:
    """Return the cost of a call's tokens of a class, picodollars; reasoning costs what output does.

    The query must join `prices`.
    """
    priced = "output" if name == "reasoning" else name
    return tokens_of(name) * type_coerce(prices.c[f"{priced}_usd"], BigInteger)


def cached_prefixes(connection: Connection, scope: Scope) -> list[CachedPrefix]:
    """Return what providers cached, by prefix, most input first; calls without one are one line."""
    kinds: tuple[TokenClass, ...] = ("cache_read", "cache_write_5m", "cache_write_1h")
    tokens = [_whole(tokens_of(name)) for name in ("uncached_input", *kinds)]
    saved = [_whole(tokens_of(name) * _uncached_usd() - token_usd(name)) for name in kinds]
    given = sum(tokens[1:], tokens[0])
    query: Select[Any] = (
        select(calls.c.prefix, func.count(), *tokens, type_coerce(sum(saved[1:], saved[0]), Usd))
        .select_from(calls)
        .join(exits, exits.c.id == calls.c.exit_id)
        .join(prices, prices.c.id == calls.c.price_id)
        .where(scope.covers(), calls.c.kind == "frontier", calls.c.state == "closed")
        .group_by(calls.c.prefix)
        .order_by(given.desc(), calls.c.prefix)
        .limit(_MOST_PREFIXES)
    )
    return [_cached_prefix(*row) for row in connection.execute(query)]


def _uncached_usd() -> ColumnElement[int]:
    return type_coerce(prices.c.uncached_input_usd, BigInteger)


def _cached_prefix(name: str | None, count: int, *row: Any) -> CachedPrefix:
    *tokens, saved_usd = row
    uncached, read, short, hour = map(int, tokens)
    whole = uncached + read + short + hour
    return CachedPrefix(
        name=name,
        calls=count,
        input_tokens=whole,
        read_tokens=read,
        written_tokens=short + hour,
        saved_usd=saved_usd,
        read_share=read / whole if whole else None,
    )


def day_groups(
    connection: Connection, scope: Scope, zone: tzinfo
) -> tuple[list[ExitDay], list[DayGroup]]:
    """Return the inputs and their calls by the day, in a time zone, on which the inputs arrived."""
    days = _days(connection, scope, zone)
    if days is None:
        return [], []
    on = and_(exits.c.opened_at >= days.c.start, exits.c.opened_at < days.c.end)
    of_exits: Select[Any] = select(
        days.c.day, _STATUS, func.count(), _dollars(_REFERENCE_USD)
    ).join_from(days, exits, on)
    keys = [days.c.day, calls.c.model, calls.c.state]
    of_calls: Select[Any] = (
        select(*keys, func.count(), _dollars(calls.c.cost_usd), _dollars(calls.c.held_usd))
        .join_from(days, exits, on)
        .join(calls, calls.c.exit_id == exits.c.id)
    )
    covered, grouped = of_exits.where(scope.covers()), of_calls.where(scope.covers())
    return (
        [ExitDay(*row) for row in connection.execute(covered.group_by(days.c.day, _STATUS))],
        [DayGroup(*row) for row in connection.execute(grouped.group_by(*keys))],
    )


def _days(connection: Connection, scope: Scope, zone: tzinfo) -> FromClause | None:
    """Return a table of the days from the first to the last input; None without inputs."""
    bounds = select(func.min(exits.c.opened_at), func.max(exits.c.opened_at))
    first, last = connection.execute(bounds.where(scope.covers())).one()
    if first is None:
        return None
    rows = [
        (day.isoformat(), midnight(day, zone), midnight(day + timedelta(days=1), zone))
        for day in days_between(first, last, zone)
    ]
    return values(
        column("day", Text), column("start", UtcTime), column("end", UtcTime), name="days"
    ).data(rows).cte()  # fmt: skip


def require_known_tenant(connection: Connection, name: str) -> None:
    """Raise NotFound for a tenant that was never created and has no input."""
    if name == DEFAULT_TENANT:
        return
    for known in (tenants.c.name, exits.c.tenant):
        if connection.execute(select(known).where(known == name).limit(1)).first() is not None:
            return
    raise NotFound(f"no tenant {name!r}", field="tenant", fix="narrowgate tenant list shows them")


def refuse_unknown_tenant(database: Database, name: str) -> None:
    """Raise NotFound as `require_known_tenant`. A deletion that names nobody must not look done.

    Blocking. Raises LedgerUnavailable.
    """
    with database.read() as connection:
        require_known_tenant(connection, name)


def midnight(day: date, zone: tzinfo) -> datetime:
    """Return the first moment of a day, in UTC."""
    # If clocks skip midnight, this is the moment of the change; if they pass it twice, the first.
    return datetime(day.year, day.month, day.day, tzinfo=zone).astimezone(UTC)


def days_between(first: datetime, last: datetime, zone: tzinfo) -> list[date]:
    """Return the days from that of one moment to that of another, in a time zone."""
    start, end = first.astimezone(zone).date(), last.astimezone(zone).date()
    return [start + timedelta(days=n) for n in range((end - start).days + 1)]


def count_requests(connection: Connection, scope: Scope) -> int:
    """Return the number of requests of the inputs in scope."""
    # Clients may choose request ids, so two tenants can use the same one.
    names = select(exits.c.tenant, exits.c.request_id).where(scope.covers()).distinct()
    return connection.execute(select(func.count()).select_from(names.subquery())).scalar_one()


def latencies(connection: Connection, scope: Scope) -> list[Latency]:
    """Return exact percentiles (nearest rank) of the latency of closed inputs, by route."""
    route, elapsed = exits.c.route, exits.c.elapsed_us
    closed = and_(exits.c.state == "closed", route.is_not(None), elapsed.is_not(None))
    # The databases share no percentile function; both have ranks.
    ranked = (
        select(
            route, elapsed,
            func.row_number().over(partition_by=route, order_by=elapsed).label("rank"),
            func.count().over(partition_by=route).label("count"),
        )
        .where(scope.covers(), closed)
        .subquery()
    )  # fmt: skip
    low, high = ((ranked.c.count * share + 99) // 100 for share in (50, 95))
    query = (
        select(ranked.c.route, ranked.c.count, func.min(ranked.c.elapsed_us),
               func.max(ranked.c.elapsed_us))
        .where(or_(ranked.c.rank == low, ranked.c.rank == high))
        .group_by(ranked.c.route, ranked.c.count)
        .order_by(ranked.c.count.desc(), ranked.c.route)
    )  # fmt: skip
    return [
        Latency(route=name, count=count, p50_us=p50, p95_us=p95)
        for name, count, p50, p95 in connection.execute(query)
    ]


def lifetimes(connection: Connection, scope: Scope) -> list[Lifetime]:
    """Return the lifetimes of gateways that overlap the window."""
    end = func.coalesce(instances.c.ended_at, instances.c.seen_at)
    query = select(instances.c.started_at, end, instances.c.replica_hour_usd).where(
        instances.c.started_at < scope.until, end > scope.since
    )
    return [Lifetime(*row) for row in connection.execute(query)]


def price_versions(connection: Connection) -> dict[str, Row[Any]]:
    """Return every version of a price by its id."""
    columns = prices.c.model, prices.c.source, prices.c.service_tier, prices.c.over_input_tokens
    query: Select[Any] = select(prices.c.id, *columns)
    return {row.id: row for row in connection.execute(query)}


def _dollars(money: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.coalesce(func.sum(money), Decimal(0))


def _whole(number: ColumnElement[int]) -> ColumnElement[int]:
    return func.coalesce(func.sum(number), 0)
