"""`narrowgate tiers`: what each cluster of open-ended chats has earned; clusters of your own."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from serving.commands.ledger import opened_ledger
from serving.commands.options import add_settings_options, settings_from
from serving.commands.progress import step
from serving.commands.tiers_refit import add_refit, clusters_file, planner_of, read_chats, refit
from serving.host.numbers import whole_number

if TYPE_CHECKING:
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
    add_refit(actions)
    for action in (show, fit):
        add_settings_options(action)
        action.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document"
        )


def run(args: argparse.Namespace) -> int:
    """Show, fit or refit."""
    found = {"fit": _fit, "refit": refit, "show": _show}
    return found[args.action](args)


def _show(args: argparse.Namespace) -> int:
    from serving.evidence.store import EvidenceStore
    from serving.tiers.summary import held_elsewhere, summary

    settings = settings_from(args)
    with opened_ledger(args) as database:
        store = EvidenceStore(database)
        planner = planner_of(settings, store.states().claims)
        planner.refresh(database, store)
        found, elsewhere = summary(planner, database), held_elsewhere(planner)
    if args.json:
        clusters = [one.document() for one in found]
        document = {"mode": settings.tiers.mode, "clusters": clusters}
        print(json.dumps(document | {"held_by_other_clusters": elsewhere}))
        return 0
    print(f"mode {settings.tiers.mode}, target {settings.tiers.target_error:.0%} net worse")
    for version, claims in elsewhere.items():
        print(
            f"{len(claims)} claims held by the clusters {version}, which answer nothing now: "
            "another tiers.clusters_file is set"
        )
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


def _fit(args: argparse.Namespace) -> int:
    from serving.embedding.embedder import build_embedder
    from serving.host.safe_write import replace_file, replaceable_file
    from serving.tiers.clusters import fitted, read_clustering

    out = replaceable_file(args.out, "--out")
    settings = settings_from(args)
    start = read_clustering(settings.tiers.clusters_file)
    texts = [chat.text for chat in read_chats(args.file)]
    with step(f"computing {len(texts)} vectors"):
        vectors = build_embedder(settings.state).embed_all(texts)
    with step("fitting"):
        found = fitted(vectors, args.clusters, start)
    replace_file(out, clusters_file(found), mode=0o644)
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
