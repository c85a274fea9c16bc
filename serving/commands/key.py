"""`narrowgate key`: create, list and revoke API keys."""

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from serving.commands.ledger import opened_ledger
from serving.commands.options import add_settings_options

if TYPE_CHECKING:
    from serving.ledger.access.keys import KeyRecord

HELP = "create, list and revoke API keys"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    create = actions.add_parser("create", help="create a key and print it once")
    whose = create.add_mutually_exclusive_group(required=True)
    whose.add_argument("--tenant", metavar="NAME", help="tenant that pays for its requests")
    whose.add_argument(
        "--admin", action="store_true", help="may read every tenant's report and may not spend"
    )
    create.add_argument("--label", default="", metavar="TEXT", help="note about its use")
    create.add_argument(
        "--evidence-external",
        choices=("on", "off"),
        default=None,
        help="off: its inputs never go to a provider for evidence",
    )
    listing = actions.add_parser("list", help="show every key without its secret")
    revoke = actions.add_parser("revoke", help="revoke a key permanently")
    revoke.add_argument("id", metavar="ID", help="as `key list` shows it")
    revoke.add_argument(
        "--cancel-batches", action="store_true", help="also start no further line of its batches"
    )
    for action in (create, listing, revoke):
        add_settings_options(action)
        action.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document"
        )


def run(args: argparse.Namespace) -> int:
    """Create, list or revoke keys."""
    return {"create": _create, "list": _list, "revoke": _revoke}[args.action](args)


def _create(args: argparse.Namespace) -> int:
    from serving.ledger.access.keys import create_key

    with opened_ledger(args) as database:
        flag = None if args.evidence_external is None else args.evidence_external == "on"
        issued = create_key(database, args.tenant, args.label, evidence_external=flag)
    text = issued.text.get_secret_value()
    if args.json:
        whose = {"tenant": args.tenant, "admin": args.admin, "label": args.label}
        print(json.dumps({"id": issued.id, **whose, "key": text}))
        return 0
    # Only the key is on stdout, so that it can be piped into a secret store.
    print(text)
    print(f"key {issued.id}: it is shown once and not stored", file=sys.stderr)
    return 0


def _list(args: argparse.Namespace) -> int:
    from serving.ledger.access.keys import list_keys

    with opened_ledger(args) as database:
        records = list_keys(database)
    if args.json:
        print(json.dumps([_document(record) for record in records]))
        return 0
    for record in records:
        whose = "(admin)" if record.admin else record.tenant
        state = f"revoked {record.revoked_at:%Y-%m-%d %H:%M}" if record.revoked_at else "live"
        made = f"{record.created_at:%Y-%m-%d %H:%M}"
        print(f"{record.id}  {whose:<24} created {made}  {state:<24} {record.label}".rstrip())
    return 0


def _revoke(args: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    from serving.batch.store import BatchStore
    from serving.ledger.access.keys import revoke_key

    with opened_ledger(args) as database:
        revoke_key(database, args.id)
        # Afterwards: no batch of it can be created any more.
        store = BatchStore(database)
        cancelled = store.cancel_of_key(args.id, datetime.now(UTC)) if args.cancel_batches else []
        going_on = store.of_key(args.id)
    if args.json:
        batches = {"cancelled": cancelled, "going_on": going_on}
        print(json.dumps({"id": args.id, "revoked": True, "batches": batches}))
        return 0
    print(f"key {args.id} is revoked; gateways refuse it within auth.refresh_s seconds")
    if cancelled:
        print(f"{len(cancelled)} of its batches are cancelled: {', '.join(cancelled)}")
    if going_on:
        print(
            f"{len(going_on)} of its batches go on: {', '.join(going_on)}\n"
            f"  narrowgate key revoke {args.id} --cancel-batches ends them"
        )
    return 0


def _document(record: "KeyRecord") -> dict[str, Any]:
    return {
        "id": record.id,
        "tenant": record.tenant,
        "admin": record.admin,
        "label": record.label,
        "created_at": record.created_at.isoformat(),
        "revoked_at": record.revoked_at.isoformat() if record.revoked_at else None,
    }
