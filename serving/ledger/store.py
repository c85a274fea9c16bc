"""Applies operations to the ledger's tables, many in one transaction. Blocking.

Calls and exits belong to one gateway. Prices and accounts are shared: every process locks prices
first and accounts last, each by key, so that gateways never wait for one another in a circle.
Accounts come last because all gateways charge them: from their lock to the end of the commit, no
other one can. Two cases lock them earlier:

- A new call may not fit its budget: before its rows are written.
- The end of a call finds no opening: before it is looked for again. A transaction whose commit is
  not confirmed holds its accounts until that is decided, so what undoes or repeats it waits.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Update, bindparam, func, literal, select, update

from serving.contracts.errors import BudgetExceeded
from serving.ledger.accounts import Accounts, Rooms
from serving.ledger.operations import Close, Open, Operation, RecordExit, Row
from serving.ledger.schema import Usd, calls, exits, prices
from serving.ledger.upsert import insert_new, insert_or_replace

_ZERO = Decimal(0)
_CALL_COLUMNS = [column.name for column in calls.columns]
_EXIT_COLUMNS = [column.name for column in exits.columns]
_PRICE_COLUMNS = [column.name for column in prices.columns]
# Statements are built once, because building one takes as long as running it.
_LOCKED = (
    select(calls.c.id, calls.c.state, calls.c.cost_usd, calls.c.held_usd)
    .where(calls.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(calls.c.id)
    .with_for_update()
)


def _sum_of(name: str) -> Any:
    total = func.coalesce(func.sum(calls.c[name]), literal(_ZERO, Usd()))
    return select(total).where(calls.c.exit_id == exits.c.id).scalar_subquery()


def summed_exits() -> Update:
    """Return an update that sets exits' sums to the sums of their calls; add a `where` to it."""
    return update(exits).values(cost_usd=_sum_of("cost_usd"), held_usd=_sum_of("held_usd"))


_SUMMED = summed_exits().where(
    exits.c.id.in_(bindparam("ids", expanding=True)), exits.c.state != "open"
)


@dataclass(slots=True)
class _Pending:
    """Rows to write at the end of a transaction. closed: by id; a call may be closed twice."""

    found: dict[str, Row]
    exits_opened: list[Row] = field(default_factory=list)
    opened: list[Row] = field(default_factory=list)
    closed: dict[str, Row] = field(default_factory=dict)
    touched: set[str] = field(default_factory=set)


class Store:
    """Applies operations. Remembers which prices exist and what accounts had left."""

    def __init__(self) -> None:
        self._prices: set[str] = set()
        self._rooms: Rooms = {}

    def apply(
        self, connection: Connection, operations: Sequence[Operation]
    ) -> list[BudgetExceeded | None]:
        """Apply operations and return for each None, or why its call may not be made.

        Raises StaleRoom if others spent what an account had left: roll back and apply again. After
        a transaction that was not committed, call `forget`. A call's opening and its close are
        never in the same sequence.
        """
        ended = [item for item in operations if isinstance(item, RecordExit)]
        self._put_prices(connection, operations)
        paid = [item for item in operations if not isinstance(item, RecordExit)]
        touched: set[str] = {item.exit["id"] for item in ended if item.paid}
        refusals: list[BudgetExceeded | None] = []
        accounts = Accounts(connection, (item.call for item in paid), self._rooms)
        if paid:
            refusals, changed = _paid(connection, paid, accounts)
            touched |= changed
        self._put_exits(connection, ended)
        if touched:
            connection.execute(_SUMMED, {"ids": sorted(touched)})
        accounts.write()
        answers = iter(refusals)
        return [None if isinstance(item, RecordExit) else next(answers) for item in operations]

    def forget(self) -> None:
        """Clear the cached rows, after a transaction that was rolled back."""
        self._prices.clear()
        self._rooms.clear()

    def _put_prices(self, connection: Connection, operations: Iterable[Operation]) -> None:
        rows = {
            row["id"]: row
            for item in operations
            if not isinstance(item, Open)
            for row in item.prices
            if row["id"] not in self._prices
        }
        if rows:
            ordered = [_whole(rows[key], _PRICE_COLUMNS) for key in sorted(rows)]
            connection.execute(insert_new(connection, prices), ordered)
            self._prices.update(rows)

    def _put_exits(self, connection: Connection, ended: Sequence[RecordExit]) -> None:
        local = sorted((row for item in ended for row in item.calls), key=_id)
        if local:
            rows = [_whole(row, _CALL_COLUMNS) for row in local]
            connection.execute(insert_new(connection, calls), rows)
        if ended:
            rows = [_whole(row, _EXIT_COLUMNS) for row in sorted((i.exit for i in ended), key=_id)]
            connection.execute(insert_or_replace(connection, exits), rows)


def _paid(
    connection: Connection, operations: Sequence[Open | Close], accounts: Accounts
) -> tuple[list[BudgetExceeded | None], set[str]]:
    """Write openings and ends of calls; return refusals and the exits whose sums change."""
    pending = _Pending(_found_calls(connection, operations, accounts))
    refusals: list[BudgetExceeded | None] = []
    for item in operations:
        if isinstance(item, Open):
            refusals.append(_open(item, accounts, pending))
        else:
            _close(item, accounts, pending)
            refusals.append(None)
    _write(connection, pending)
    return refusals, pending.touched


def _found_calls(
    connection: Connection, operations: Sequence[Open | Close], accounts: Accounts
) -> dict[str, Row]:
    """Return the rows of calls that exist, locked; lock the accounts where that cannot wait."""
    ids = [item.call["id"] for item in operations]
    fit = accounts.have_room(item.call for item in operations if isinstance(item, Open))
    if not fit:
        accounts.lock()
    found = _locked_calls(connection, ids)
    if fit and any(isinstance(each, Close) and each.call["id"] not in found for each in operations):
        accounts.lock()
        found = _locked_calls(connection, ids)
    return found


def _open(item: Open, accounts: Accounts, pending: _Pending) -> BudgetExceeded | None:
    if item.call["id"] in pending.found:
        return None
    try:
        accounts.open(item.call)
    except BudgetExceeded as refusal:
        return refusal
    pending.found[item.call["id"]] = item.call
    pending.opened.append(item.call)
    pending.exits_opened.append(item.exit)
    if not item.first:
        # The exit may already be unknown, if its process was marked as ended.
        pending.touched.add(item.exit["id"])
    return None


def _close(item: Close, accounts: Accounts, pending: _Pending) -> None:
    call = item.call
    before = pending.found.get(call["id"])
    if call["held_usd"] is None:
        call = {**call, "held_usd": _ZERO if before is None else before["held_usd"]}
    if before is None:
        if item.withdrawn:
            return
        pending.opened.append(call)
    elif before["state"] == "closed":
        return
    else:
        pending.closed[call["id"]] = call
    spent_before, held_before = (_ZERO, _ZERO) if before is None else _charged(before)
    spent, held = _charged(call)
    accounts.charge(call, spent - spent_before, held - held_before)
    pending.found[call["id"]] = call
    pending.touched.add(call["exit_id"])


def _charged(call: Row) -> tuple[Decimal, Decimal]:
    cost = call.get("cost_usd")
    return (_ZERO if cost is None else cost), call["held_usd"]


def _locked_calls(connection: Connection, ids: Sequence[str]) -> dict[str, Row]:
    rows = connection.execute(_LOCKED, {"ids": list(ids)})
    return {row.id: row._asdict() for row in rows}


def _write(connection: Connection, pending: _Pending) -> None:
    if pending.opened:
        rows = [_whole(row, _CALL_COLUMNS) for row in sorted(pending.opened, key=_id)]
        connection.execute(insert_new(connection, calls), rows)
    if pending.closed:
        # As an insert, which takes many rows in one statement; an update takes one.
        rows = [_whole(pending.closed[key], _CALL_COLUMNS) for key in sorted(pending.closed)]
        connection.execute(insert_or_replace(connection, calls), rows)
    if pending.exits_opened:
        rows = [_whole(row, _EXIT_COLUMNS) for row in sorted(pending.exits_opened, key=_id)]
        connection.execute(insert_new(connection, exits), rows)


def _whole(row: Row, columns: Sequence[str]) -> Mapping[str, Any]:
    return {name: row.get(name) for name in columns}


def _id(row: Row) -> str:
    return str(row["id"])
