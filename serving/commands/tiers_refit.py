"""`narrowgate tiers refit`: clusters of the last weeks' chats, taken where that pays."""

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.commands.json_lines import read_lines
from serving.commands.ledger import opened_ledger
from serving.commands.options import add_settings_options, settings_from
from serving.commands.progress import step
from serving.host.numbers import whole_number

if TYPE_CHECKING:
    from serving.contracts.evidence import Claim
    from serving.contracts.settings import Settings
    from serving.tiers.clusters import Clustering
    from serving.tiers.planner import TierPlanner

_LEAST_DAYS = 7
_MOST_CHATS = 20_000
"""The newest chats of a log that are read: computing a vector takes 5 ms."""

_LEAST_SPAN = 1.0 / 24.0
"""Days: chats of a shorter time say little about a day."""


def add_refit(actions: Any) -> None:
    """Add the action and its arguments."""
    refit = actions.add_parser(
        "refit", help="fit clusters anew, and take them where they are shown to save more"
    )
    refit.add_argument("file", type=Path, metavar="LOG", help="the file of routing.decisions_log")
    refit.add_argument(
        "--clusters", type=whole_number, metavar="N", help="2 to 30 (as many as now)"
    )
    refit.add_argument(
        "--out", type=Path, default=Path("clusters.json"), metavar="FILE",
        help="written where they are taken (clusters.json); name it in tiers.clusters_file",
    )  # fmt: skip
    add_settings_options(refit)
    refit.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON document"
    )


def refit(args: argparse.Namespace) -> int:
    """Fit the older half of the log's chats, compare on the newer half, and write or keep."""
    from serving.host.safe_write import replaceable_file
    from serving.tiers.clusters import read_clustering, read_fitted_at

    out = replaceable_file(args.out, "--out")
    settings = settings_from(args)
    file = settings.tiers.clusters_file
    present, fitted_at = read_clustering(file), read_fitted_at(file)
    due = None if fitted_at is None else fitted_at + timedelta(days=_LEAST_DAYS)
    if due is not None and datetime.now(UTC) < due:
        return _print(args, {"verdict": "not_due", "due": due.isoformat(timespec="seconds")})
    found, clustering = _compared(args, settings, present)
    if found["verdict"] == "taken":
        found |= {"file": str(args.out)} | take(clustering, out)
    return _print(args, found)


def take(clustering: "Clustering", out: Path) -> dict[str, str]:
    """Write clusters to a file. Return where a file that was there before is kept, as `before`.

    The claims of the clusters before stay in the database, and go on when their file is set again.
    """
    from serving.host.safe_write import replace_file
    from serving.tiers.clusters import read_clustering

    found = {}
    if out.exists():
        kept = out.with_name(f"{out.stem}.{read_clustering(out).version}{out.suffix}")
        replace_file(kept, out.read_bytes(), mode=0o644)
        found["before"] = str(kept)
    replace_file(out, clusters_file(clustering), mode=0o644)
    return found


def clusters_file(clustering: "Clustering") -> bytes:
    """Return the content of a file of clusters that are fitted now."""
    moment = datetime.now(UTC).isoformat(timespec="seconds")
    return (json.dumps(clustering.document() | {"fitted_at": moment}) + "\n").encode()


def _compared(
    args: argparse.Namespace, settings: "Settings", present: "Clustering"
) -> tuple[dict[str, Any], "Clustering"]:
    from serving.embedding.embedder import build_embedder
    from serving.evidence.store import EvidenceStore
    from serving.tiers.clusters import fitted
    from serving.tiers.logged_comparisons import LoggedComparisons
    from serving.tiers.refit import LoggedChat

    log = sorted(filter(_is_clustered, read_chats(args.file)), key=_time)[-_MOST_CHATS:]
    older, newer = log[: len(log) // 2], log[len(log) // 2 :]
    embedder = build_embedder(settings.state)
    with step(f"computing {len(log)} vectors"):
        vectors = embedder.embed_all([one.text for one in log])
    with step("fitting"):
        clusters = args.clusters or len(present.names)
        clustering = fitted(vectors[: len(older)], clusters, present)
    with opened_ledger(args) as database:
        store = EvidenceStore(database)
        planner = planner_of(settings, store.states().claims)
        planner.refresh(database, store)
        logged = LoggedComparisons(planner, store)
        starts = {n: one for n, chat in enumerate(newer) if (one := logged.start(chat.row["tier"]))}
        chats = [LoggedChat(newer[n].row["request_id"], one.tier) for n, one in starts.items()]
        found = logged.judged(chats, vectors[len(older) :][list(starts)], clustering, _days(newer))
    return found, clustering


def _days(chats: Sequence["Chat"]) -> float:
    return max((_time(chats[-1]) - _time(chats[0])) / timedelta(days=1), _LEAST_SPAN)


def _is_clustered(chat: "Chat") -> bool:
    """Return whether a row is one of an open-ended chat, which alone have clusters."""
    row = chat.row
    has_names = all(isinstance(row.get(name), str) for name in ("request_id", "tier", "time"))
    return has_names and row.get("reason") == "out_of_scope"


def _time(chat: "Chat") -> datetime:
    from serving.contracts.errors import InvalidArgument

    try:
        return datetime.fromisoformat(chat.row["time"]).astimezone(UTC)
    except ValueError as error:
        raise InvalidArgument(
            f"time {chat.row['time']!r} is no moment", field="FILE",
            fix="give the file that routing.decisions_log names",
        ) from error  # fmt: skip


def _print(args: argparse.Namespace, found: dict[str, Any]) -> int:
    if args.json:
        print(json.dumps(found))
        return 0
    if found["verdict"] == "not_due":
        print(f"not due before {found['due']}: at most one fit in {_LEAST_DAYS} days")
        return 0
    print(f"present clusters {found['present']}, fitted clusters {found['fitted']}")
    if "comparisons" in found:
        _print_figures(found)
    if found["verdict"] == "kept":
        print(f"KEPT the present clusters: {found['because']}")
        return 0
    print(f"TAKEN: {found['file']}; a restart of the gateway with tiers.clusters_file reads it")
    if "before" in found:
        print(f"  the clusters before are {found['before']}: set it again, and their claims go on")
    return 0


def _print_figures(found: dict[str, Any]) -> None:
    print(
        f"  {found['comparisons']} comparisons of {found['chats']} chats in {found['days']:g} days "
        "after the fit's"
    )
    for name in ("present", "fitted"):
        one = found[name + "_clusters"]
        print(
            f"  {name:<8} {one['sent']:.0%} to cheaper tiers, net worse {one['net_worse']:.1%}, "
            f"saves ${one['saving_usd']:.4f}"
        )
    print(
        f"  difference ${found['gain_usd']:.4f}, at least ${found['gain_low_usd']:.4f} (95 %, one "
        f"side); ${found['gain_in_payback_usd']:.4f} in the payback time"
    )
    print(
        f"  to begin anew: {found['earning_days']:g} days, ${found['earning_usd']:.4f} to earn, "
        f"${found['lost_usd']:.4f} not saved under {len(found['held_claims'])} held claims"
    )


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat of a file, with the text by which it is clustered. row: its line."""

    text: str
    row: Mapping[str, Any]


def read_chats(file: Path) -> list[Chat]:
    """Return the chats that have a text. Raises InvalidArgument, which names the row at fault."""
    from serving.contracts.errors import InvalidArgument, InvalidRequest
    from serving.pipeline.read import read_message
    from serving.tiers.clusters import clustered_text

    chats = []
    for number, row in enumerate(read_lines(file, ()), 1):
        body = row.get("body", row)
        messages = body.get("messages") if isinstance(body, dict) else None
        reason = "it has no messages"
        try:
            found = [
                read_message(message, f"messages.{index}")
                for index, message in enumerate(messages if isinstance(messages, list) else ())
            ]
        except InvalidRequest as error:
            found, reason = [], error.message
        if not found:
            raise InvalidArgument(
                f"{file}, chat {number}: {reason}", field="FILE",
                fix='give one {"messages": [{"role": ..., "content": ...}]} a line',
            )  # fmt: skip
        if text := clustered_text(found):
            chats.append(Chat(text, row))
    return chats


class _NoEvents:
    """Counts nothing: no request is served here."""

    def tier_chosen(self, cluster: str, tier: Any, outcome: Any) -> None:
        """Count nothing."""

    def tier_compared(self, cluster: str, tier: Any, verdict: str) -> None:
        """Count nothing."""


def planner_of(settings: "Settings", claims: "Mapping[str, Claim]") -> "TierPlanner":
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
