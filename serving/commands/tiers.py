"""`narrowgate tiers`: what each cluster of open-ended chats has earned; clusters of your own."""

import argparse
import json
import os
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.commands.json_lines import read_lines
from serving.commands.ledger import opened_ledger
from serving.commands.options import add_settings_options, settings_from
from serving.commands.progress import step
from serving.host.numbers import whole_number

if TYPE_CHECKING:
    from serving.contracts.evidence import Claim
    from serving.contracts.requests import Message
    from serving.contracts.settings import Settings
    from serving.tiers.planner import TierPlanner
    from serving.tiers.summary import ClusterState, TierState

HELP = "show which tier each cluster of open-ended chats has earned; fit clusters of your own"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="present tier, claims, saving, what is explored next")
    fit = actions.add_parser("fit", help="fit clusters to your own chats")
    fit.add_argument(
        "file", type=Path, metavar="FILE",
        help='JSON Lines with "messages", or with "body": {"messages"} as the decision log has',
    )  # fmt: skip
    fit.add_argument("--clusters", type=whole_number, default=16, metavar="N", help="2 to 30 (16)")
    fit.add_argument(
        "--out", type=Path, default=Path("clusters.json"), metavar="FILE",
        help="the clusters (clusters.json); name it in the setting tiers.clusters_file",
    )  # fmt: skip
    for action in (show, fit):
        add_settings_options(action)
        action.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document"
        )


def run(args: argparse.Namespace) -> int:
    """Show or fit."""
    return _fit(args) if args.action == "fit" else _show(args)


def _show(args: argparse.Namespace) -> int:
    from serving.evidence.store import EvidenceStore
    from serving.tiers.summary import summary

    settings = settings_from(args)
    with opened_ledger(args) as database:
        store = EvidenceStore(database)
        planner = _planner(settings, store.states().claims)
        planner.refresh(database, store)
        found = summary(planner, database)
    if args.json:
        clusters = [one.document() for one in found]
        print(json.dumps({"mode": settings.tiers.mode, "clusters": clusters}))
        return 0
    print(f"mode {settings.tiers.mode}, target {settings.tiers.target_error:.0%} net worse")
    if not found:
        print("no open-ended chat was clustered in the last 7 days")
    for one in found:
        print(_line(one, settings.tiers.mode))
        for tier in one.tiers:
            print(f"    {_tier(tier)}")
        print(f"    next  {_next(one)}")
    return 0


def _line(one: "ClusterState", mode: str) -> str:
    would = "" if mode == "on" or one.tiers == () else " (would answer)"
    return (
        f"{one.topic}  tenant {one.tenants}, {one.requests_a_day:g} a day: {one.present}{would}, "
        f"{one.answered_cheaper} of {one.answered} answered cheaper, saved ${one.saved_usd} net of "
        f"${one.own_usd} for exploring, judging and auditing"
    )


def _tier(tier: "TierState") -> str:
    known = "no pair yet" if tier.net_worse is None else f"net worse {tier.net_worse:.1%}"
    if tier.interval is not None:
        known += f" ({tier.interval[0]:.1%} to {tier.interval[1]:.1%})"
    done = "" if tier.state == "held" else f", evidence {tier.progress:.0%}"
    return (
        f"{tier.tier:<9} {tier.state:<13} {tier.claim or '-':<16} {tier.model}: "
        f"{tier.pairs} pairs, {known}{done}"
    )


def _next(one: "ClusterState") -> str:
    if one.next is None:
        return "nothing: every cheaper tier is held or given up"
    payback = "never" if one.next.payback_days is None else f"in {one.next.payback_days:g} days"
    share = f"{one.next.share:.0%} of requests" if one.next.share else "not explored now"
    return (
        f"{one.next.tier}: about {one.next.pairs_left} pairs, ${one.next.cost_usd}, paid back "
        f"{payback}; {share}"
    )


class _NoEvents:
    """Counts nothing: no request is served here."""

    def tier_chosen(self, cluster: str, tier: Any, outcome: Any) -> None:
        """Count nothing."""

    def tier_compared(self, cluster: str, tier: Any, verdict: str) -> None:
        """Count nothing."""


def _planner(settings: "Settings", claims: "Mapping[str, Claim]") -> "TierPlanner":
    """Return what plans as a gateway of these settings would. Blocking."""
    from serving.contracts.ledger import Tenant
    from serving.evidence.rulings import Evidence
    from serving.evidence.snapshot import ClaimSnapshot
    from serving.frontier.keys import resolve_key
    from serving.ledger.pricing.book import PriceBook
    from serving.tiers.clusters import read_clustering
    from serving.tiers.planner import TierPlanner

    snapshot = ClaimSnapshot(settings.evidence.max_snapshot_age_s)
    snapshot.replace(claims, time.monotonic())
    evidence = Evidence(
        settings.evidence, snapshot, None, Tenant, lambda _: None, b"",
        now=lambda: datetime.now(UTC),
    )  # fmt: skip
    usable = {
        name
        for name, provider in settings.frontier.providers.items()
        if provider.keyless or resolve_key(name, provider, os.environ) is not None
    }

    def configured(targets: tuple[str, ...]) -> tuple[str, ...]:
        # Without any key here, as on an operator's machine, the settings alone decide.
        return tuple(t for t in targets if not usable or t.partition("/")[0] in usable)

    return TierPlanner(
        settings.tiers, read_clustering(settings.tiers.clusters_file), settings.frontier.tiers,
        configured, PriceBook.load(settings.ledger.prices_file), evidence, _NoEvents(),
        settings.frontier.may_give_logprobs,
    )  # fmt: skip


def _fit(args: argparse.Namespace) -> int:
    from serving.embedding.embedder import build_embedder
    from serving.host.safe_write import refuse_unwritable_file, replace_file
    from serving.tiers.clusters import fitted, read_clustering

    refuse_unwritable_file(args.out, "--out")
    settings = settings_from(args)
    start = read_clustering(settings.tiers.clusters_file)
    texts = _texts(args.file)
    with step(f"computing {len(texts)} vectors"):
        vectors = build_embedder(settings.state).embed_all(texts)
    with step("fitting"):
        found = fitted(vectors, args.clusters, start)
    replace_file(args.out, (json.dumps(found.document()) + "\n").encode(), mode=0o644)
    sizes = [0] * len(found.names)
    for vector in vectors:
        sizes[found.nearest(vector)] += 1
    if args.json:
        clusters = dict(zip(found.names, sizes, strict=True))
        print(json.dumps({"file": str(args.out), "version": found.version, "clusters": clusters}))
        return 0
    for name, size in sorted(zip(found.names, sizes, strict=True), key=lambda one: -one[1]):
        print(f"{size:>7}  {name}")
    print(f"{args.out}: version {found.version}; set tiers.clusters_file to use it")
    return 0


def _texts(file: Path) -> list[str]:
    """Return the text of each chat. Raises InvalidArgument, which names the row at fault."""
    from serving.contracts.errors import InvalidArgument
    from serving.tiers.clusters import clustered_text

    texts = []
    for number, row in enumerate(read_lines(file, ()), 1):
        body = row.get("body", row)
        messages = body.get("messages") if isinstance(body, dict) else None
        try:
            found = [_message(message) for message in messages or ()]
        except (KeyError, TypeError) as error:
            found = []
            reason = f"a message lacks {error}" if isinstance(error, KeyError) else str(error)
        else:
            reason = "it has no messages"
        if not found:
            raise InvalidArgument(
                f"{file}, chat {number}: {reason}", field="FILE",
                fix='give one {"messages": [{"role": ..., "content": ...}]} a line',
            )  # fmt: skip
        if text := clustered_text(found):
            texts.append(text)
    return texts


def _message(value: dict[str, Any]) -> "Message":
    from serving.contracts.requests import Message

    content = value["content"]
    if isinstance(content, list):
        content = tuple(content)
    if not isinstance(content, str | tuple):
        raise TypeError(f"content is {type(content).__name__}, not text")
    return Message(value["role"], content)
