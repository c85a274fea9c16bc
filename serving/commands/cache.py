"""`narrowgate cache`: show, delete and export cached answers; measure lookups by meaning."""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.commands import cache_evaluate
from serving.commands.json_lines import private_file
from serving.commands.ledger import opened_ledger
from serving.commands.options import add_settings_options, settings_from

if TYPE_CHECKING:
    from serving.cache.entry_store import EntryFilter, EntryStore

HELP = "show, delete and export cached answers; measure lookups by meaning"

_SHOWN = 100
_CONDITIONS = {
    "namespace": "tenant/NAME or shared/NAME",
    "tenant": "tenant that sent the request",
    "request_id": "of that request",
    "end_user": "for whom it was sent",
    "entry": "as x-narrowgate-cache-entry names it",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    stats = actions.add_parser("stats", help="entries, bytes and hits of each namespace")
    listing = actions.add_parser("list", help="entries without their answers, newest first")
    show = actions.add_parser("show", help="one entry with its answer")
    show.add_argument("entry", metavar="ENTRY", help="as `cache list` shows it")
    delete = actions.add_parser("delete", help="delete the entries that match every condition")
    clear = actions.add_parser("clear", help="delete all entries, or those of a namespace")
    clear.add_argument("--namespace", metavar="NAME", help=_CONDITIONS["namespace"])
    export = actions.add_parser("export", help="write entries with their answers as JSON Lines")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file")
    aliases = actions.add_parser("aliases", help="wordings that audits accepted for an entry")
    aliases.add_argument("--namespace", metavar="NAME", help=_CONDITIONS["namespace"])
    aliases.add_argument("--entry", metavar="NAME", help=_CONDITIONS["entry"])
    aliases.add_argument(
        "--remove", metavar="KEY", help="remove one; its entry is then found by its own key alone"
    )
    cache_evaluate.configure_evaluate(actions.add_parser("evaluate", help=cache_evaluate.HELP))
    for action in (stats, listing, delete, export):
        for name, help_ in _CONDITIONS.items():
            option = "--" + name.replace("_", "-")
            action.add_argument(option, metavar="NAME", help=help_)
    for action in (stats, listing, show, delete, clear, export, aliases):
        add_settings_options(action)
        action.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document"
        )


def run(args: argparse.Namespace) -> int:
    """Run the action and print its result."""
    if args.action == "evaluate":
        return cache_evaluate.evaluate(args)
    from serving.cache.entry_store import EntryStore, open_store

    # Deleting needs no key, so that entries whose key is lost can be deleted.
    reads = args.action in ("show", "export")
    with opened_ledger(args) as database:
        store = open_store(database, settings_from(args).cache) if reads else EntryStore(database)
        return _ACTIONS[args.action](args, store)


def _stats(args: argparse.Namespace, store: "EntryStore") -> int:
    rows = store.stats(_entry_filter(args))
    if args.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        print(
            f"{row['namespace']:<40} {row['entries']:>10,} entries {row['bytes']:>14,} bytes "
            f"{row['hits']:>10,} hits"
        )
    return 0


def _list(args: argparse.Namespace, store: "EntryStore") -> int:
    rows = store.listed(_entry_filter(args))
    if args.json:
        print(json.dumps(rows))
        return 0
    for row in rows[:_SHOWN]:
        print(
            f"{row['id']}  {row['created_at']}  {row['namespace']:<24} {row['kind']:<5} "
            f"{row['task'] or row['model']:<32} {row['bytes']:>8,} bytes {row['hits']:>6,} hits"
        )
    if len(rows) > _SHOWN:
        print(f"the {_SHOWN} newest; --json prints up to {len(rows)}")
    return 0


def _show(args: argparse.Namespace, store: "EntryStore") -> int:
    from serving.cache.entry_store import EntryFilter
    from serving.contracts.errors import NotFound

    chosen = EntryFilter(entry=args.entry)
    found = next(store.entries(chosen), None)
    if found is None:
        raise NotFound(
            f"there is no cache entry {args.entry!r}",
            field="entry",
            fix="narrowgate cache list shows them",
        )
    (row,) = store.listed(chosen)
    print(json.dumps({**row, "answer": found.content.document}, ensure_ascii=False, indent=2))
    return 0


def _delete(args: argparse.Namespace, store: "EntryStore") -> int:
    from serving.contracts.errors import InvalidArgument

    given = _given(args)
    if not given:
        raise InvalidArgument(
            "no entries are named",
            field="tenant",
            fix="give --entry, --tenant, --namespace, --request-id or --end-user; "
            "narrowgate cache clear deletes all",
        )
    return _deleted(args, store, given)


def _clear(args: argparse.Namespace, store: "EntryStore") -> int:
    return _deleted(args, store, _given(args))


def _deleted(args: argparse.Namespace, store: "EntryStore", given: Mapping[str, str]) -> int:
    from serving.cache.entry_store import EntryFilter

    count = store.delete(EntryFilter(**given))
    if not count and "tenant" in given:
        store.refuse_unknown(given["tenant"])
    print(json.dumps({"deleted": count}) if args.json else f"{count:,} entries deleted")
    return 0


def _export(args: argparse.Namespace, store: "EntryStore") -> int:
    count = 0
    with private_file(args.out) as file:
        for found in store.entries(_entry_filter(args)):
            line = {
                "id": found.id, "namespace": found.namespace, "tenant": found.tenant,
                "request_id": found.request_id, "end_user": found.end_user, "kind": found.kind,
                "task": found.origin.task, "model": found.origin.model, "claim": found.origin.claim,
                "created_at": found.created_at.isoformat(),
                "expires_at": found.expires_at.isoformat(), "answer": found.content.document,
            }  # fmt: skip
            # ASCII: an answer may hold half of a surrogate pair.
            file.write(json.dumps(line) + "\n")
            count += 1
    done = {"file": str(args.out), "entries": count}
    print(json.dumps(done) if args.json else f"{args.out} is written with {count:,} entries")
    return 0


def _aliases(args: argparse.Namespace, store: "EntryStore") -> int:
    from serving.cache.question_store import QuestionStore
    from serving.contracts.errors import NotFound

    questions = QuestionStore(store)
    if args.remove is not None:
        entry = questions.remove_alias(args.remove)
        if entry is None:
            raise NotFound(
                f"there is no alias {args.remove!r}",
                field="remove",
                fix="narrowgate cache aliases lists their keys",
            )
        done = {"key": args.remove, "entry": entry, "removed": 1}
        said = f"removed; entry {entry} is found by its own key alone"
        print(json.dumps(done) if args.json else said)
        return 0
    rows = questions.aliases(namespace=args.namespace, entry=args.entry)
    if args.json:
        print(json.dumps(rows))
        return 0
    for row in rows[:_SHOWN]:
        print(
            f"{row['key']}  entry {row['entry']}  {row['namespace']:<24} "
            f"{row['similarity']:.3f}  {row['made_by']}  {row['created_at']}"
        )
    if len(rows) > _SHOWN:
        print(f"the {_SHOWN} newest; --json prints up to {len(rows)}")
    return 0


def _given(args: argparse.Namespace) -> dict[str, str]:
    found = {name: getattr(args, name, None) for name in _CONDITIONS}
    return {name: value for name, value in found.items() if value is not None}


def _entry_filter(args: argparse.Namespace) -> "EntryFilter":
    from serving.cache.entry_store import EntryFilter

    return EntryFilter(**_given(args))


_ACTIONS: Mapping[str, Callable[[argparse.Namespace, Any], int]] = {
    "stats": _stats,
    "list": _list,
    "show": _show,
    "delete": _delete,
    "clear": _clear,
    "export": _export,
    "aliases": _aliases,
}
