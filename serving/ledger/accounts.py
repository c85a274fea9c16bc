"""Amounts that tenants spent and hold by day and month, checked against their limits."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, select, tuple_, update

from serving.contracts.errors import BudgetExceeded
from serving.contracts.prices import plain_usd
from serving.ledger.operations import Row
from serving.ledger.schema import spending, tenants
from serving.ledger.upsert import insert_new

_ZERO = Decimal(0)
_KEY = tuple_(spending.c.tenant, spending.c.period, spending.c.start)
# Statements are built once, because building one takes as long as running it.
_LOCKED = (
    select(spending, tenants.c.day_usd, tenants.c.month_usd)
    # A tenant without a row in `tenants` has no limits.
    .outerjoin_from(spending, tenants, tenants.c.name == spending.c.tenant)
    .where(_KEY.in_(bindparam("keys", expanding=True)))
    .order_by(spending.c.tenant, spending.c.period, spending.c.start)
    .with_for_update(of=spending)
)
_WRITE = (
    update(spending)
    .where(
        spending.c.tenant == bindparam("of_tenant"),
        spending.c.period == bindparam("of_period"),
        spending.c.start == bindparam("of_start"),
    )
    .values(spent_usd=bindparam("new_spent"), held_usd=bindparam("new_held"))
)


_ROOM_SHARE = Decimal("0.5")
"""A transaction whose calls need more of what was left locks its accounts before it writes rows."""


class StaleRoom(Exception):
    """An account has less left than it had when it was last locked: roll back and repeat."""


class AccountKey(NamedTuple):
    """One tenant's day or month. All processes lock accounts in sorted order."""

    tenant: str
    period: str
    start: str


Rooms = dict[AccountKey, Decimal | None]
"""What existing accounts had left, US dollars, when they were last locked; None without a limit."""


@dataclass(slots=True)
class _Balance:
    spent_usd: Decimal
    held_usd: Decimal
    limit_usd: Decimal | None
    changed: bool = False

    @property
    def room_usd(self) -> Decimal | None:
        if self.limit_usd is None:
            return None
        return self.limit_usd - self.spent_usd - self.held_usd


@dataclass(frozen=True, slots=True)
class _Charge:
    """To the account of a call. is_opening: it is refused where the account has too little left."""

    call: Row
    spent_usd: Decimal
    held_usd: Decimal
    is_opening: bool = False


class Accounts:
    """The accounts of one transaction. Costs are in US dollars.

    A locked account makes the transactions of all other processes that charge it wait, so it is
    locked only in `write`, unless `lock` was called before. Charges are then kept until `write`.
    """

    def __init__(self, connection: Connection, calls: Iterable[Row], rooms: Rooms) -> None:
        """rooms: kept from transaction to transaction, and changed by this one."""
        self._connection = connection
        self._keys = sorted({key for call in calls for key in _keys(call)})
        self._rooms = rooms
        self._balances: dict[AccountKey, _Balance] | None = None
        self._later: list[_Charge] = []

    def have_room(self, calls: Iterable[Row]) -> bool:
        """Return whether new calls seem to fit, by what was left when accounts were last locked."""
        needed: dict[AccountKey, Decimal] = {}
        for call in calls:
            for key in _keys(call):
                needed[key] = needed.get(key, _ZERO) + call["held_usd"]
        return all(self._has_room(key, worst) for key, worst in needed.items())

    def lock(self) -> None:
        """Lock the accounts until the transaction's end, in order; make those that do not exist."""
        if missing := [key for key in self._keys if key not in self._rooms]:
            rows = [{**key._asdict(), "spent_usd": _ZERO, "held_usd": _ZERO} for key in missing]
            self._connection.execute(insert_new(self._connection, spending), rows)
        self._balances = self._locked(self._keys)

    def open(self, call: Row) -> None:
        """Hold the worst case of a new call. Raises BudgetExceeded if it may exceed a limit.

        Where the accounts are not locked yet, `write` raises StaleRoom instead.
        """
        self._charge(_Charge(call, _ZERO, call["held_usd"], is_opening=True))

    def charge(self, call: Row, spent_usd: Decimal, held_usd: Decimal) -> None:
        """Add to the amounts that a call's tenant spent and holds in the call's periods."""
        self._charge(_Charge(call, spent_usd, held_usd))

    def write(self) -> None:
        """Write the changed accounts. Nothing else should be left to do before the commit.

        Raises StaleRoom if a call that `have_room` let pass does not fit: roll back, forget the
        rooms, and repeat.
        """
        if not self._keys:
            return
        if self._balances is None:
            self.lock()
            try:
                for charge in self._later:
                    self._charge(charge)
            except BudgetExceeded as refusal:
                raise StaleRoom from refusal
        assert self._balances is not None
        rows = [
            {
                "of_tenant": key.tenant,
                "of_period": key.period,
                "of_start": key.start,
                "new_spent": balance.spent_usd,
                "new_held": balance.held_usd,
            }
            for key, balance in self._balances.items()
            if balance.changed
        ]
        if rows:
            self._connection.execute(_WRITE, rows)
        self._rooms.update({key: each.room_usd for key, each in self._balances.items()})

    def _charge(self, charge: _Charge) -> None:
        if self._balances is None:
            self._later.append(charge)
            return
        if charge.is_opening:
            self._check(self._balances, charge.call)
        for key in _keys(charge.call):
            balance = self._balances[key]
            balance.spent_usd += charge.spent_usd
            balance.held_usd += charge.held_usd
            balance.changed = True

    def _has_room(self, key: AccountKey, worst_usd: Decimal) -> bool:
        if key not in self._rooms:
            return False
        room = self._rooms[key]
        return room is None or worst_usd <= _ROOM_SHARE * room

    @staticmethod
    def _check(balances: dict[AccountKey, _Balance], call: Row) -> None:
        worst: Decimal = call["held_usd"]
        for key in _keys(call):
            room = balances[key].room_usd
            if room is None or worst <= room:
                continue
            raise BudgetExceeded(
                f"the call may cost ${plain_usd(worst)} and the {key.period}'s budget of tenant "
                f"{key.tenant!r} has ${plain_usd(max(_ZERO, room))} left",
                fix=f"request less output, wait for the next {key.period}, or raise the budget",
            )

    def _locked(self, keys: list[AccountKey]) -> dict[AccountKey, _Balance]:
        rows = self._connection.execute(_LOCKED, {"keys": keys})
        return {
            AccountKey(row.tenant, row.period, row.start): _Balance(
                row.spent_usd,
                row.held_usd,
                row.day_usd if row.period == "day" else row.month_usd,
            )
            for row in rows
        }


def _keys(call: Row) -> tuple[AccountKey, AccountKey]:
    tenant = call["tenant"]
    return AccountKey(tenant, "day", call["day"]), AccountKey(tenant, "month", call["month"])
