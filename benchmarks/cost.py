"""`python -m benchmarks cost`: the cost of a mix of chats, directly and through the stack."""

import argparse
import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from benchmarks.processes import reports_only
from serving.commands.options import add_settings_options, settings_from
from serving.host.terminal import terminal_progress

if TYPE_CHECKING:
    from benchmarks.cost_arms import Arm
    from benchmarks.cost_figures import LedgerTotals
    from benchmarks.cost_mix import Chat
    from serving.contracts.settings import Settings

HELP = "compare cost and latency of a mix of chats with and without the stack"
AUTO = "auto"
_BLOCK = 10
_RECORDED_WITHIN_S = 20.0


@dataclass(frozen=True, slots=True)
class Urls:
    """Base URLs of the fake provider and of the stack."""

    provider: str
    stack: str


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_settings_options(parser)
    parser.add_argument("--requests", type=int, default=100, help="chats in each arm (100)")
    parser.add_argument("--clients", type=int, default=4, help="chats in flight (4)")
    parser.add_argument("--seed", type=int, default=1, help="of the mix's order (1)")


def run(args: argparse.Namespace) -> int:
    """Measure and report. Exit status 0; figures are reported, not judged."""
    from benchmarks.cost_mix import load_texts, replay
    from benchmarks.cost_report import lines
    from benchmarks.fake_provider import fake_provider
    from benchmarks.temporary_ledger import temporary_ledger, without_keys
    from serving.commands.first_start import Origin
    from serving.commands.serve import Start, prepare
    from serving.lifecycle.ports import free_port
    from serving.lifecycle.signals import StopRequested, signals_raise
    from serving.lifecycle.stack import local_stack

    chats = replay(load_texts(), args.requests, args.seed)
    port = free_port()
    settings = with_fake_provider(without_keys(settings_from(args)), port)
    prepared = prepare(settings, Origin(args.config, settings.tasks_dir))
    with signals_raise():
        try:
            with (
                reports_only(),
                temporary_ledger(prepared) as checked,
                local_stack(checked.settings) as stack,
                fake_provider(settings, port, models_of_tiers(settings)) as upstream,
            ):
                Start(checked, stack).run()
                document = _measured(checked.settings, Urls(upstream, stack.url), chats, args)
        except StopRequested:
            return 1
    if args.json:
        print(json.dumps(document))
        return 0
    for line in lines(document):
        print(line)
    return 0


def models_of_tiers(settings: "Settings") -> list[str]:
    """Return every `provider/model` of the tiers, the reference model first."""
    listed = (target for tier in settings.frontier.tiers.values() for target in tier)
    return list(dict.fromkeys((settings.ledger.reference_model, *listed)))


def with_fake_provider(settings: "Settings", port: int) -> "Settings":
    """Return the settings with the fake provider at `port` behind every provider of the tiers."""
    from serving.contracts.frontier_settings import ProviderSettings

    provider = ProviderSettings(
        api="openai",
        base_url=f"http://127.0.0.1:{port}/v1",
        keyless=True,
        # A CPU generates slowly, and the first byte of a whole answer comes at its end.
        first_byte_timeout_s=300.0,
    )
    names = {name.partition("/")[0] for name in models_of_tiers(settings)}
    frontier = settings.frontier.model_copy(update={"providers": dict.fromkeys(names, provider)})
    return settings.model_copy(update={"frontier": frontier})


def _measured(
    settings: "Settings", urls: Urls, chats: "Sequence[Chat]", args: argparse.Namespace
) -> dict[str, Any]:
    from benchmarks.cost_report import document

    reference = settings.ledger.reference_model.partition("/")[2]
    asyncio.run(_warmed(urls, reference, chats))
    since = datetime.now(UTC)
    direct, routed = _sent(urls, reference, chats, args.clients)
    totals = _ledger_totals(settings, since, len(chats))
    return document(settings, direct, routed, totals, args)


def _sent(urls: Urls, reference: str, chats: "Sequence[Chat]", clients: int) -> "tuple[Arm, Arm]":
    """Send blocks of chats to both arms in turn, so that a slower machine slows both."""
    from benchmarks.cost_arms import Arm, require_answers, run_arm

    direct, routed = Arm(), Arm()
    with terminal_progress() as progress:
        total = progress.add_task("asking", total=2 * len(chats))
        for start in range(0, len(chats), _BLOCK):
            block = chats[start : start + _BLOCK]
            for arm in ("direct", "routed") if start % (2 * _BLOCK) else ("routed", "direct"):
                if arm == "direct":
                    direct += asyncio.run(run_arm(urls.provider, reference, block, clients))
                else:
                    routed += asyncio.run(run_arm(urls.stack, AUTO, block, clients))
                progress.advance(total, len(block))
    require_answers(direct)
    return direct, routed


async def _warmed(urls: Urls, reference: str, chats: "Sequence[Chat]") -> None:
    """Send the first chat of each kind, to warm caches and connections."""
    from benchmarks.cost_arms import run_arm

    first = list({chat.text.kind: chat for chat in reversed(chats)}.values())
    await run_arm(urls.provider, reference, first, 1)
    await run_arm(urls.stack, AUTO, first, 1)


def _ledger_totals(settings: "Settings", since: datetime, requests: int) -> "LedgerTotals":
    """Return the ledger's totals since then, once all of these requests are recorded."""
    from benchmarks.cost_figures import LedgerTotals
    from serving.contracts.errors import EngineFailure
    from serving.ledger.database import ledger_url
    from serving.ledger.reports.build import build_report
    from serving.ledger.reports.query import Scope
    from serving.ledger.reports.written import written_ledger

    deadline = time.monotonic() + _RECORDED_WITHIN_S
    with written_ledger(ledger_url(settings.ledger), settings.state) as database:
        while True:
            scope = Scope(since, datetime.now(UTC), None)
            report = build_report(database, scope, ZoneInfo(settings.ledger.time_zone))
            totals, checked = report.totals, report.reconciliation
            if totals.exits == requests and not totals.open and not totals.open_calls:
                break
            if time.monotonic() > deadline:
                raise EngineFailure(f"{requests} chats were sent; the ledger has {totals.exits}")
            time.sleep(0.5)
    assert checked is not None
    return LedgerTotals(
        provider_usd=totals.frontier_usd,
        held_usd=totals.held_usd,
        local_usd=totals.local_usd,
        wasted_usd=totals.wasted_usd,
        ledger_saving=report.savings.share,
        discrepancies=len(checked.discrepancies),
    )
