"""Tenants and their limits."""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

from sqlalchemy import Connection, exc, insert, select, update

from serving.contracts.errors import InvalidRequest, NotFound
from serving.contracts.ledger import Tenant
from serving.ledger.database import Database
from serving.ledger.schema import PICODOLLARS, tenants

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_PROVIDER = re.compile(r"[a-z][a-z0-9-]{0,63}")
# Far below the largest values of the columns: $9.2 million, and 2^31 requests.
_LARGEST_USD = Decimal(1_000_000)
_LARGEST_COUNT = 1_000_000
_COLUMNS = (
    tenants.c.name,
    tenants.c.day_usd,
    tenants.c.month_usd,
    tenants.c.requests_per_minute,
    tenants.c.max_concurrent_requests,
    tenants.c.evidence_external,
    tenants.c.evidence_providers,
)


def create_tenant(database: Database, tenant: Tenant) -> None:
    """Add a tenant; blocking. Raises InvalidRequest for an invalid or used name or a limit.

    Names have lower-case letters, digits and hyphens, at most 63.
    """
    if not _NAME.fullmatch(tenant.name):
        raise InvalidRequest(
            f"{tenant.name!r} is not a valid name of a tenant",
            field="name",
            fix="use at most 63 lower-case letters, digits and hyphens, and no hyphen first",
        )
    row = {"name": tenant.name, "created_at": datetime.now(UTC), **_limits(tenant)}
    try:
        with database.begin() as connection:
            connection.execute(insert(tenants), row)
    except exc.IntegrityError as error:
        raise InvalidRequest(
            f"the tenant {tenant.name!r} exists already",
            field="name",
            fix="narrowgate tenant set changes its limits",
        ) from error


def update_tenant(
    database: Database, name: str, changes: Mapping[str, Decimal | int | bool | str | None]
) -> Tenant:
    """Change some of a tenant's limits and return it; blocking.

    changes: by field of Tenant; None removes a limit. Raises NotFound, and InvalidRequest for an
    invalid limit.
    """
    with database.begin() as connection:
        tenant = replace(require_tenant(connection, name), **changes)  # type: ignore[arg-type]
        values = _limits(tenant)
        connection.execute(update(tenants).where(tenants.c.name == name).values(values))
    return tenant


def list_tenants(database: Database) -> list[Tenant]:
    """Return every tenant by name; blocking."""
    with database.read() as connection:
        return sorted(known_tenants(connection).values(), key=lambda tenant: tenant.name)


def known_tenants(connection: Connection) -> dict[str, Tenant]:
    """Return the tenants by name."""
    return {row.name: Tenant(*row) for row in connection.execute(select(*_COLUMNS))}


def require_tenant(connection: Connection, name: str) -> Tenant:
    """Return a tenant, locked until the transaction ends. Raises NotFound."""
    found = select(*_COLUMNS).where(tenants.c.name == name).with_for_update()
    row = connection.execute(found).first()
    if row is None:
        raise NotFound(
            f"no tenant {name!r}",
            field="tenant",
            fix="create it with narrowgate tenant create; narrowgate tenant list shows all",
        )
    return Tenant(*row)


def _limits(tenant: Tenant) -> dict[str, Decimal | int | bool | str | None]:
    """Return the columns of a tenant's limits. Raises InvalidRequest for an invalid limit."""
    for field in ("day_usd", "month_usd"):
        amount: Decimal | None = getattr(tenant, field)
        if amount is not None and not _fits(amount):
            raise InvalidRequest(
                f"{field} is {amount}", field=field, fix=f"use 0 to {_LARGEST_USD} US dollars"
            )
    for field in ("requests_per_minute", "max_concurrent_requests"):
        count: int | None = getattr(tenant, field)
        if count is not None and not 1 <= count <= _LARGEST_COUNT:
            raise InvalidRequest(
                f"{field} is {count}",
                field=field,
                fix=f"use 1 to {_LARGEST_COUNT}; to shut a tenant out, revoke its keys",
            )
    named = tenant.evidence_providers
    for provider in named.split(",") if named else ():
        if not _PROVIDER.fullmatch(provider):
            raise InvalidRequest(
                f"evidence_providers names {provider!r}, which is not the name of a provider",
                field="evidence_providers",
                fix="give names of frontier.providers, separated by commas and without spaces",
            )
    return {column.name: getattr(tenant, column.name) for column in _COLUMNS[1:]}


def _fits(amount: Decimal) -> bool:
    if not amount.is_finite() or not 0 <= amount <= _LARGEST_USD:
        return False
    return amount * PICODOLLARS % 1 == 0
