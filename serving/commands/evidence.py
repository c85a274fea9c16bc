"""`narrowgate evidence`: claims, their evidence, and what people do with them."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.commands import evidence_label
from serving.commands.json_lines import read_lines
from serving.commands.ledger import opened_ledger
from serving.commands.options import add_settings_options, settings_from
from serving.host.safe_write import replace_named, replaceable_file

if TYPE_CHECKING:
    import httpx

    from serving.evidence.heads.head_store import HeadStore
    from serving.evidence.replay import Replay, Replayed

HELP = "show claims, evidence and learned heads; label, replay, export, withdraw, delete"

_ACTOR = evidence_label.OPERATOR
_WIDTH = 50


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="list claims, those in force first")
    show = actions.add_parser("show", help="show a claim's course, events and verdicts")
    show.add_argument("--html", type=Path, metavar="FILE", help="write a page instead")
    label = actions.add_parser("label", help="record a person's labels of audited inputs")
    replay = actions.add_parser(
        "replay", help="estimate when labelled inputs would earn a claim on the running server"
    )
    replay.add_argument("file", type=Path, metavar="FILE", help="JSON Lines with text and label")
    replay.add_argument("--task", required=True, metavar="NAME", help="a task of the server")
    replay.add_argument("--url", default="http://127.0.0.1:8000", help="of the running server")
    replay.add_argument(
        "--key-env", default="NARROWGATE_KEY", metavar="NAME", help="variable with a tenant's key"
    )
    withdraw = actions.add_parser("withdraw", help="end a claim for good")
    withdraw.add_argument("--reason", required=True, metavar="TEXT", help="why")
    export = actions.add_parser("export", help="write a claim as a signed in-toto statement")
    export.add_argument("--out", type=Path, required=True, metavar="FILE", help="the envelope")
    delete = actions.add_parser("delete", help="delete what names a tenant, request or end user")
    delete.add_argument("--tenant", required=True, metavar="NAME", help="whose evidence")
    delete.add_argument("--request-id", metavar="ID", help="only of one request")
    delete.add_argument("--end-user", metavar="ID", help="only of one end user")
    heads = actions.add_parser("heads", help="list learned heads, newest first")
    export_head = actions.add_parser("export-head", help="write a head with its signed statement")
    export_head.add_argument("digest", metavar="DIGEST", help="as `evidence heads` shows it")
    export_head.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file")
    for action in (show, label, withdraw, export):
        action.add_argument("claim", metavar="CLAIM", help="as `evidence list` shows it")
    evidence_label.configure(label)
    for action in (listing, show, label, replay, withdraw, export, delete, heads, export_head):
        add_settings_options(action)
        action.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document"
        )


def run(args: argparse.Namespace) -> int:
    """Run the action and print its result."""
    if args.action == "replay":
        return _replay(args)
    with opened_ledger(args) as database:
        from serving.evidence.store import EvidenceStore

        return _ACTIONS[args.action](args, EvidenceStore(database))


def _list(args: argparse.Namespace, store: Any) -> int:
    from serving.evidence.administration import listed

    claims = listed(store)
    if args.json:
        print(json.dumps(claims))
        return 0
    for claim in claims:
        scope = claim["scope"]
        print(
            f"{claim['id']}  {claim['state']:<12} {scope['subject']:<16} {scope['tenants']:<16} "
            f"target {claim['target_error']:.0%}  {_observed(claim)}"
        )
    return 0


def _show(args: argparse.Namespace, store: Any) -> int:
    from serving.evidence.administration import claim_details

    page = None if args.html is None else replaceable_file(args.html, "--html")
    all_ = claim_details(store, args.claim, _ACTOR, evidence_label.texts_of(args, store))
    if page is not None:
        from serving.evidence.page import render_claim

        replace_named(page, render_claim(all_).encode(), "--html")
        print(json.dumps({"file": str(args.html)}) if args.json else f"{args.html} is written")
        return 0
    found = all_.document()
    if args.json:
        print(json.dumps(found))
        return 0
    claim = found["claim"]
    print(f"claim {claim['id']}: {claim['state']} since {claim['since']}")
    print(f"against {claim['reference']}, target {claim['target_error']:.0%}, {_observed(claim)}")
    for event in found["events"]:
        print(f"{event['at']}  {event['kind']:<12} {event['actor']:<10} {event['reason']}")
    if claim["flips"] is not None:
        flips = claim["flips"]
        print(
            f"flips: {_between(flips['share'], flips['interval'])} of {flips['inputs']} inputs "
            "are answered otherwise than by the 16-bit baseline"
        )
    if claim["judge_spread"] is not None:
        spread = claim["judge_spread"]
        print(
            f"judge: {_between(spread['badly_worse'], spread['interval'])} of {spread['pairs']} "
            "second answers of the same model are badly worse to it"
        )
    _print_people(found["people"])
    for point in found["course"][:: max(1, len(found["course"]) // 20)]:
        print(f"{point['audits']:>6} audits {_bar(point, claim['target_error'])}")
    coverage = found["periods"][-1]["coverage"]
    if coverage is not None:
        print(f"coverage since it was earned: {coverage:.1%}")
    print("verdicts: " + ", ".join(f"{n} {kind}" for kind, n in found["verdicts"].items()))
    return 0


def _withdraw(args: argparse.Namespace, store: Any) -> int:
    from serving.evidence.administration import withdraw

    withdraw(store, args.claim, args.reason, _ACTOR)
    if args.json:
        print(json.dumps({"claim": args.claim, "state": "withdrawn"}))
    else:
        print(f"claim {args.claim} is withdrawn; gateways follow within 2 s")
    return 0


def _export(args: argparse.Namespace, store: Any) -> int:
    from serving.evidence.export import export_claim

    out = replaceable_file(args.out, "--out")
    key = settings_from(args).evidence.signing_key
    envelope = export_claim(store, args.claim, key, _ACTOR)
    replace_named(out, envelope, "--out")
    print(json.dumps({"file": str(args.out)}) if args.json else f"{args.out} is written")
    return 0


def _delete(args: argparse.Namespace, store: Any) -> int:
    from serving.cache.entry_store import EntryFilter, EntryStore
    from serving.evidence.heads.keys import vector_cipher
    from serving.evidence.retention import EvidenceRetention
    from serving.evidence.store import EvidenceOwner

    settings = settings_from(args)
    retention = EvidenceRetention(
        settings.evidence,
        store.database,
        lambda: vector_cipher(settings.state, settings.evidence.vector_key_file),
    )
    done = retention.delete(EvidenceOwner(args.tenant, args.request_id, args.end_user), _ACTOR)
    named = EntryFilter(None, args.tenant, args.request_id, args.end_user)
    found = {
        "deleted": done.audits, "examples": done.examples, "texts": done.texts,
        "cached": EntryStore(store.database).delete(named),
    }  # fmt: skip
    if not any(found.values()):
        retention.refuse_unknown(args.tenant)
    if args.json:
        print(json.dumps(found))
    else:
        print(
            f"{found['deleted']} audits deleted or emptied, {found['examples']} examples of heads, "
            f"{found['texts']} kept texts and {found['cached']} cached answers deleted"
        )
    return 0


def _heads(args: argparse.Namespace, store: Any) -> int:
    rows = [
        {"digest": row.digest, "scope": row.scope, "kind": row.kind, "version": row.version,
         "created_at": row.created_at.isoformat()}
        for row in _head_store(args, store).listed()
    ]  # fmt: skip
    if args.json:
        print(json.dumps(rows))
        return 0
    for row in rows:
        print(f"{row['digest']}  {row['kind']:<12} version {row['version']}  {row['created_at']}")
    return 0


def _export_head(args: argparse.Namespace, store: Any) -> int:
    out = replaceable_file(args.out, "--out")
    content = _head_store(args, store).signed(args.digest).exported()
    replace_named(out, content, "--out")
    store.act(_ACTOR, "export head", args.digest)
    print(json.dumps({"file": str(args.out)}) if args.json else f"{args.out} is written")
    return 0


def _head_store(args: argparse.Namespace, store: Any) -> "HeadStore":
    from serving.evidence.heads.head_store import HeadStore
    from serving.evidence.heads.keys import evidence_keys

    settings = settings_from(args)
    evidence = settings.evidence
    keys = evidence_keys(settings.state, evidence.signing_key, evidence.trusted_keys)
    return HeadStore(store.database, keys)


_ACTIONS = {
    "list": _list,
    "show": _show,
    "label": evidence_label.run,
    "withdraw": _withdraw,
    "export": _export,
    "delete": _delete,
    "heads": _heads,
    "export-head": _export_head,
}


def _replay(args: argparse.Namespace) -> int:
    """Ask the running server for its local answers, then fold them as audits."""
    from serving.evidence.replay import replay
    from serving.tasks.catalog import find_task, load_specs

    settings = settings_from(args)
    spec = find_task(load_specs(settings.tasks_dir), args.task)
    rows = read_lines(args.file, ("text", "label"))
    found = replay(_answers(args, rows), spec.target_error, settings.evidence)
    print(json.dumps(_document(found)) if args.json else _words(found, spec.target_error))
    return 0 if found.earned_after is not None else 1


def _answers(args: argparse.Namespace, rows: list[dict[str, Any]]) -> "list[Replayed]":
    import httpx

    from serving.commands.progress import step
    from serving.evidence.replay import Replayed

    key = os.environ.get(args.key_env)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    # Local answers only, made anew and not audited: a replay costs nothing and proves nothing.
    headers |= {
        "x-narrowgate-route": "local_only", "x-narrowgate-audit": "never",
        "x-narrowgate-cache": "bypass",
    }  # fmt: skip
    found = []
    url = f"{args.url.rstrip('/')}/v1/tasks/{args.task}"
    with (
        step(f"{len(rows)} inputs to {url}"),
        httpx.Client(headers=headers, timeout=120.0) as client,
    ):
        for row in rows:
            answer = _answer(client, url, row["text"])
            confidence = answer.get("calibrated_confidence")
            if confidence is None:
                confidence = answer["confidence"]
            found.append(
                Replayed(
                    row["text"],
                    confidence if answer["valid"] else -1.0,
                    float(answer["value"] != row["label"]),
                )
            )
    return found


def _answer(client: "httpx.Client", url: str, text: str) -> dict[str, Any]:
    """Return a server's answer to one input. Raises InvalidArgument where there is none."""
    import httpx

    from serving.contracts.errors import InvalidArgument

    try:
        response = client.post(url, json={"input": text, "deterministic": True})
        answer = response.json() if response.status_code == 200 else None
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise InvalidArgument(
            f"{url!r} gave no answer: {type(error).__name__}: {error}",
            field="url",
            fix="check --url; narrowgate serve prints the address",
        ) from error
    if not isinstance(answer, dict) or not {"value", "valid", "confidence"} <= answer.keys():
        raise InvalidArgument(
            f"{url!r} answered {response.status_code}: {response.text[:200]!r}",
            field="url",
            fix="check --url, --task and the key",
        )
    return answer


def _print_people(people: dict[str, Any]) -> None:
    if people["labels"]:
        print(f"people: {people['labels']} labels of {people['inputs']} inputs")
    error = people["error"]
    if error is not None:
        print(
            f"  served answers against people: {_between(error['error'], error['interval'])} wrong "
            f"by {error['labels']} labels ({error['method']})"
        )
        print(
            "  the reference itself: "
            f"{_between(error['reference_error'], error['reference_interval'])} wrong"
        )
    both = people["agreement"]
    if both is not None:
        kappa = "" if both["kappa"] is None else f", kappa {both['kappa']:.2f}"
        print(
            f"  two people agree on {_between(both['share'], both['interval'])} of "
            f"{both['inputs']} inputs{kappa}"
        )


def _between(value: float, interval: Sequence[float]) -> str:
    return f"{value:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"


def _observed(claim: dict[str, Any]) -> str:
    if claim["observed_error"] is None:
        return f"{claim['audits']} examples"
    low, high = claim["interval"]
    return (
        f"error {claim['observed_error']:.1%} ({low:.1%} to {high:.1%}) in {claim['audits']} "
        f"audits of {claim['accepted']} accepted"
    )


def _bar(point: dict[str, Any], target: float) -> str:
    """Return an interval as a line of characters from 0 to 1: `[--*--]`, the target as `|`."""
    place = {name: round(point[name] * (_WIDTH - 1)) for name in ("low", "error", "high")}
    drawn = [" "] * _WIDTH
    drawn[place["low"] : place["high"] + 1] = "-" * (place["high"] - place["low"] + 1)
    drawn[round(target * (_WIDTH - 1))] = "|"
    drawn[place["error"]] = "*"
    return "".join(drawn)


def _document(found: "Replay") -> dict[str, Any]:
    return {
        "inputs": found.inputs,
        "earned_after": found.earned_after,
        "suspended_after": found.suspended_after,
        "threshold": None if found.action is None else found.action.threshold,
        "coverage": found.coverage,
        "error": found.error,
    }


def _words(found: "Replay", target: float) -> str:
    if found.earned_after is None or found.action is None:
        return f"no claim of {target:.0%} in {found.inputs} inputs"
    text = (
        f"held after {found.earned_after} of {found.inputs} inputs, from confidence "
        f"{found.action.threshold:.3f}"
    )
    if found.coverage is not None and found.error is not None:
        text += f"; of the rest {found.coverage:.0%} answered locally, {found.error:.1%} wrong"
    if found.suspended_after is not None:
        text += f"; suspended after {found.suspended_after}"
    return text
