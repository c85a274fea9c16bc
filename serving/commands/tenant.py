"""`narrowgate tenant`: create and list tenants and set their limits."""

import argparse
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from serving.commands.ledger import opened_ledger
from serving.commands.options import add_settings_options
from serving.host.numbers import decimal_number, whole_number

if TYPE_CHECKING:
    from serving.contracts.ledger import Tenant

HELP = "create and list tenants, and set their budgets and rate limits"

_LIMITS = (
    "day_usd",
    "month_usd",
    "requests_per_minute",
    "max_concurrent_requests",
    "evidence_external",
    "evidence_providers",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="add a tenant")
    change = actions.add_parser("set", help="change a tenant's limits; `none` removes one")
    listing = actions.add_parser("list", help="show the tenants with their limits")
    for action in (create, change):
        action.add_argument("name", metavar="NAME", help="lower-case letters, digits and hyphens")
        _add_limits(action)
    for action in (create, change, listing):
        add_settings_options(action)
        action.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document"
        )


def run(args: argparse.Namespace) -> int:
    """Create, change or list tenants, and print the result."""
    from serving.contracts.ledger import Tenant
    from serving.ledger.access.tenants import create_tenant, list_tenants, update_tenant

    limits = {name: getattr(args, name) for name in _LIMITS if hasattr(args, name)}
    with opened_ledger(args) as database:
        if args.action == "list":
            _print_all(list_tenants(database), as_json=args.json)
            return 0
        if args.action == "create":
            tenant = Tenant(args.name, **limits)
            create_tenant(database, tenant)
        else:
            tenant = update_tenant(database, args.name, limits)
    print(json.dumps(_document(tenant)) if args.json else _line(tenant))
    return 0


def _add_limits(parser: argparse.ArgumentParser) -> None:
    # Suppressed: a limit that is not given stays as it is, and `none` removes it.
    for flag, kind, meta, text in (
        ("--day-usd", _usd, "D", "US dollars a calendar day for paid calls"),
        ("--month-usd", _usd, "D", "US dollars a calendar month for paid calls"),
        (
            "--requests-per-minute",
            _count,
            "N",
            "requests a minute, over the whole stack",
        ),
        (
            "--max-concurrent-requests",
            _count,
            "N",
            "requests in progress, over the whole stack",
        ),
        (
            "--evidence-external",
            _switch,
            "on|off",
            "inputs may go to providers for evidence; `none` leaves it to evidence.external",
        ),
        (
            "--evidence-providers",
            _names,
            "NAMES",
            "providers that may get them, comma-separated, '' for none; `none` leaves it to "
            "evidence.providers",
        ),
    ):
        parser.add_argument(flag, type=kind, metavar=meta, default=argparse.SUPPRESS, help=text)


def _usd(text: str) -> Decimal | None:
    return None if text == "none" else decimal_number(text)


def _count(text: str) -> int | None:
    return None if text == "none" else whole_number(text)


def _switch(text: str) -> bool | None:
    if text not in ("on", "off", "none"):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of: on, off, none")
    return None if text == "none" else text == "on"


def _names(text: str) -> str | None:
    return None if text == "none" else text


def _print_all(tenants: "list[Tenant]", *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([_document(tenant) for tenant in tenants]))
        return
    for tenant in tenants:
        print(_line(tenant))


def _document(tenant: "Tenant") -> dict[str, Any]:
    limits = {name: getattr(tenant, name) for name in _LIMITS}
    # Money is text, because a JSON number would be read as a binary fraction.
    shown = {n: f"{v:f}" if isinstance(v, Decimal) else v for n, v in limits.items()}
    return {"name": tenant.name, **shown}


def _line(tenant: "Tenant") -> str:
    limits = _document(tenant)
    shown = [f"{name} {limits[name]}" for name in _LIMITS if limits[name] is not None]
    return f"{tenant.name:<24} {', '.join(shown) or 'no limits'}"
