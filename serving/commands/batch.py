"""`narrowgate batch`: submit a file of requests that can wait, follow it, fetch its answers."""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.host.numbers import refuse_outside, signed_integer

if TYPE_CHECKING:
    from serving.host.batch_client import BatchClient

HELP = "submit files of requests that can wait, follow them, fetch the answers"

_FINAL = ("completed", "failed", "expired", "cancelled")
_POLL_S = 2.0
_SLOWEST_POLL_S = 15.0
_VALIDATING_S = 600.0
_OUTAGE_S = 300.0
"""Longest time without an answer that `watch` waits for: a gateway restarts in less."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their arguments."""
    parser.epilog = (
        "Exit status: 0 done, 1 failed or a line failed, 2 wrong use, 3 the batch has not ended, "
        "70 a defect of the program."
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    submit = actions.add_parser("submit", help="check a file, and run it unless --dry-run is given")
    _configure_submit(submit)
    listing = actions.add_parser("list", help="list batches, newest first")
    listing.add_argument("--limit", type=signed_integer, default=20, metavar="N", help="1 to 100")
    watch = actions.add_parser("watch", help="wait until a batch has ended")
    _configure_wait(watch)
    fetch = actions.add_parser("fetch", help="write a batch's answers, one JSON object a line")
    fetch.add_argument("--out", type=Path, metavar="FILE", help="instead of standard output")
    fetch.add_argument("--errors", type=Path, metavar="FILE", help="also write failed lines here")
    show = actions.add_parser("show", help="show one batch")
    cancel = actions.add_parser("cancel", help="start no further line of a batch")
    cancel.add_argument(
        "--tenant", metavar="NAME", help="of all batches of a tenant instead; needs an admin key"
    )
    cancel.add_argument("id", nargs="?", metavar="ID", help="as `batch list` shows it")
    for action in (watch, fetch, show):
        action.add_argument("id", metavar="ID", help="as `batch submit` and `batch list` show it")
    status = actions.add_parser("status", help="show every tenant's batches; needs an admin key")
    for action in (submit, listing, watch, fetch, show, cancel, status):
        action.add_argument(
            "--url", default="http://127.0.0.1:8000", metavar="URL", help="of the gateway"
        )
        action.add_argument(
            "--key-env",
            default="NARROWGATE_KEY",
            metavar="NAME",
            help="environment variable with the API key (NARROWGATE_KEY)",
        )
        action.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document"
        )


def _configure_submit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="JSON Lines, one request a line")
    parser.add_argument("--endpoint", metavar="URL", help="of every line (that of the first line)")
    parser.add_argument(
        "--deadline", metavar="TIME", help="such as 30m, 6h or 2d; later lines expire"
    )
    parser.add_argument(
        "--max-cost-usd", metavar="USD", help="lines that could cost more in all are cancelled"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="run the good lines of a file with bad ones"
    )
    parser.add_argument(
        "--metadata", action="append", default=[], metavar="NAME=VALUE", help="kept with the batch"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check every line and show what the file may cost; run nothing",
    )
    parser.add_argument("--watch", action="store_true", help="wait until the batch has ended")
    _configure_wait(parser)


def _configure_wait(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", metavar="TIME", help="stop waiting after this time, with status 3"
    )


def run(args: argparse.Namespace) -> int:
    """Run one action; 1 where lines were refused, failed or did not run."""
    from serving.host.batch_client import BatchClient

    actions: dict[str, Callable[[argparse.Namespace, BatchClient], int]] = {
        "submit": _submit, "list": _list, "show": _show,
        "watch": _watch, "cancel": _cancel, "fetch": _fetch, "status": _status,
    }  # fmt: skip
    with BatchClient(args.url, args.key_env) as client:
        return actions[args.action](args, client)


def _submit(args: argparse.Namespace, client: "BatchClient") -> int:
    from serving.commands.batch_file import endpoint_of, metadata_of
    from serving.commands.batch_words import print_check, problems_of

    metadata = metadata_of(args)
    order = {
        "endpoint": args.endpoint or endpoint_of(args.file),
        "completion_window": "24h",
        "metadata": metadata,
    }
    with _bar("uploading") as moved:
        file_id = client.upload(args.file, moved)
    if args.dry_run:
        try:
            found = client.check({**order, "input_file_id": file_id})
        finally:
            client.delete_file(file_id)
        print(json.dumps(found)) if args.json else print_check(found)
        return 1 if problems_of(found) else 0
    batch = client.create({**order, "input_file_id": file_id})
    batch = _validated(client, batch)
    if batch["status"] == "failed":
        # Nothing uses its lines any more.
        client.delete_file(file_id)
    elif args.watch:
        if not args.json:
            _print_batch(batch)
        return _wait(args, client, batch["id"])
    return _end(args, batch)


def _validated(client: "BatchClient", batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch whose file was checked, or after ten minutes as it is."""
    from serving.commands.progress import step

    until = time.monotonic() + _VALIDATING_S
    with step("checking the file"):
        while batch["status"] == "validating" and time.monotonic() < until:
            time.sleep(_POLL_S)
            batch = client.batch(batch["id"])
    return batch


def _list(args: argparse.Namespace, client: "BatchClient") -> int:
    from serving.commands.batch_words import print_list

    refuse_outside("--limit", args.limit, least=1, most=100)
    page = client.batches(args.limit)
    print(json.dumps(page)) if args.json else print_list(page["data"])
    return 0


def _show(args: argparse.Namespace, client: "BatchClient") -> int:
    batch = client.batch(args.id)
    print(json.dumps(batch)) if args.json else _print_batch(batch)
    return 0


def _status(args: argparse.Namespace, client: "BatchClient") -> int:
    from serving.commands.batch_words import print_overview

    found = client.overview()
    print(json.dumps(found)) if args.json else print_overview(found["data"], time.time())
    return 0


def _watch(args: argparse.Namespace, client: "BatchClient") -> int:
    return _wait(args, client, args.id)


def _cancel(args: argparse.Namespace, client: "BatchClient") -> int:
    if (args.id is None) == (args.tenant is None):
        from serving.contracts.errors import InvalidArgument

        given = "no batch" if args.id is None else "a batch and --tenant"
        raise InvalidArgument(
            f"{given} is named", field="ID", fix="name a batch, or --tenant NAME for all of its"
        )
    if args.tenant is not None:
        found = client.cancel_all(args.tenant)
        text = (
            f"{found['cancelled']} batches of {args.tenant} are cancelled: no further line starts"
        )
        print(json.dumps(found) if args.json else text)
        return 0
    batch = client.cancel(args.id)
    print(json.dumps(batch)) if args.json else _print_batch(batch)
    return 0


def _fetch(args: argparse.Namespace, client: "BatchClient") -> int:
    from serving.commands.batch_words import fetched
    from serving.host.safe_write import replaceable_file

    for option, file in (("--out", args.out), ("--errors", args.errors)):
        if file is not None:
            replaceable_file(file, option)
    batch = client.batch(args.id)
    if batch["status"] not in _FINAL:
        print(
            f"batch {args.id} is {batch['status']}: answers come when it has ended; "
            f"narrowgate batch watch {args.id}",
            file=sys.stderr,
        )
        return 3
    if args.json and args.out is None:
        from serving.contracts.errors import InvalidArgument

        raise InvalidArgument(
            "--json prints one document, and the answers are one a line",
            field="--out",
            fix="name a file with --out",
        )
    sizes = {}
    names = {"output_file_id": args.out, "error_file_id": args.errors}
    for name, out in names.items():
        file_id = batch.get(name)
        if file_id is not None and (name == "output_file_id" or out is not None):
            with _bar("downloading") as moved:
                sizes[name] = client.download(file_id, out, moved)
    document = fetched(batch, args.out, args.errors, sizes)
    if args.json:
        print(json.dumps(document))
    else:
        print(document["text"], file=sys.stderr)
    return 1 if document["failed"] else 0


def _wait(args: argparse.Namespace, client: "BatchClient", batch_id: str) -> int:
    """Poll until a batch has ended; show its progress on a terminal."""
    from serving.commands.batch_file import duration_s
    from serving.contracts.errors import Unavailable
    from serving.host.terminal import terminal_progress

    limit_s = duration_s("--timeout", args.timeout) if args.timeout else None
    began = answered = time.monotonic()
    pause_s, batch = _POLL_S, client.batch(batch_id)
    with terminal_progress() as progress:
        task = progress.add_task(batch["status"], total=None)
        while batch["status"] not in _FINAL:
            counts = batch.get("request_counts") or {}
            done = (counts.get("completed") or 0) + (counts.get("failed") or 0)
            total = counts.get("total") or None
            progress.update(task, description=batch["status"], completed=done, total=total)
            if limit_s is not None and time.monotonic() - began > limit_s:
                break
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.2, _SLOWEST_POLL_S)
            try:
                batch = client.batch(batch_id)
                answered = time.monotonic()
            except Unavailable:
                if time.monotonic() - answered > _OUTAGE_S:
                    raise
    return _end(args, batch)


def _end(args: argparse.Namespace, batch: dict[str, Any]) -> int:
    print(json.dumps(batch)) if args.json else _print_batch(batch)
    if batch["status"] not in _FINAL:
        is_waiting = args.action == "watch" or args.watch
        return 3 if is_waiting else 0
    failed = (batch.get("request_counts") or {}).get("failed") or 0
    return 0 if batch["status"] == "completed" and not failed else 1


def _print_batch(batch: dict[str, Any]) -> None:
    from serving.commands.batch_words import print_batch

    print_batch(batch)


def _bar(description: str) -> Any:
    from serving.commands.progress import byte_bar

    return byte_bar(description)
