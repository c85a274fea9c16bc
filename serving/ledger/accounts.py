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


class AccountKey(NamedTuple):
    """One tenant's day or month. All processes lock accounts in sorted order."""

    tenant: str
    period: str
    start: str


@dataclass(slots=True)
class _Balance:
    spent_usd: Decimal
    held_usd: Decimal
    limit_usd: Decimal | None
    changed: bool = False


class Accounts:
    """The accounts of one transaction, locked until its end. Costs are in US dollars."""

    def __init__(
        self, connection: Connection, calls: Iterable[Row], known: set[AccountKey]
    ) -> None:
        """Lock the accounts of calls. known: accounts that certainly exist; new ones are added."""
        self._connection = connection
        keys = sorted({key for call in calls for key in _keys(call)})
        if missing := [key for key in keys if key not in known]:
            rows = [{**key._asdict(), "spent_usd": _ZERO, "held_usd": _ZERO} for key in missing]
            connection.execute(insert_new(connection, spending), rows)
            known.update(missing)
        self._balances = self._locked(keys)

    def check(self, call: Row) -> None:
        """Refuse a call that may exceed a limit. Raises BudgetExceeded."""
        worst: Decimal = call["held_usd"]
        for key in _keys(call):
            balance = self._balances[key]
            limit = balance.limit_usd
            if limit is None or balance.spent_usd + balance.held_usd + worst <= limit:
                continue
            left = max(_ZERO, limit - balance.spent_usd - balance.held_usd)
            raise BudgetExceeded(
                f"the call may cost ${plain_usd(worst)} and the {key.period}'s budget of tenant "
                f"{key.tenant!r} has ${plain_usd(left)} left",
                fix=f"request less output, wait for the next {key.period}, or raise the budget",
            )

    def charge(self, call: Row, spent_usd: Decimal, held_usd: Decimal) -> None:
        """Add to the amounts that a call's tenant spent and holds in the call's periods."""
        for key in _keys(call):
            balance = self._balances[key]
            balance.spent_usd += spent_usd
            balance.held_usd += held_usd
            balance.changed = True

    def write(self) -> None:
        """Write the changed accounts."""
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
