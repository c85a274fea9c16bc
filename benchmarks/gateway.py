"""`python -m benchmarks gateway`: latency that the gateway adds to an instant frontier call."""

import argparse
import asyncio
import json
import os
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.processes import instant_provider, reports_only
from serving.commands.options import add_settings_options, settings_from
from serving.host.terminal import terminal_progress

if TYPE_CHECKING:
    from benchmarks.load import LoadResult
    from serving.contracts.settings import Settings

HELP = "measure the latency that the gateway adds to an instant provider and to an empty handler"
CLIENTS = (1, 16, 64)
# A model with a known price: calls of unpriced models are refused.
MODEL = "openai/gpt-6-luna"
_REQUESTS = {1: 150, 16: 480, 64: 960}
# Looks like a task, so that the router embeds the instruction before it refuses the task.
_INSTRUCTION = "Guess the age of the writer of this message:"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    add_settings_options(parser)
    parser.add_argument("--rounds", type=int, default=3, help="rounds of every measurement (3)")
    parser.add_argument("--clients", nargs="+", type=int, choices=CLIENTS, default=CLIENTS)


@dataclass(slots=True)
class _Target:
    """One URL and model to call, and its rounds by number of clients."""

    name: str
    path: str
    model: str | None
    rounds: "dict[int, list[LoadResult]]" = field(default_factory=dict)


def run(args: argparse.Namespace) -> int:
    """Measure and report. Exit status 0; figures are reported, not judged."""
    from benchmarks.temporary_ledger import temporary_ledger, without_keys
    from serving.commands.first_start import Origin
    from serving.commands.serve import Start, prepare
    from serving.lifecycle.signals import StopRequested, signals_raise
    from serving.lifecycle.stack import local_stack

    with instant_provider() as upstream:
        settings = _with_instant_provider(without_keys(settings_from(args)), upstream)
        prepared = prepare(settings, Origin(args.config, settings.tasks_dir))
        with signals_raise():
            try:
                with (
                    reports_only(),
                    temporary_ledger(prepared) as checked,
                    local_stack(checked.settings) as stack,
                ):
                    Start(checked, stack).run()
                    targets = _measure(stack.url, upstream, args)
            except StopRequested:
                return 1
    _print(_document(targets, args), as_json=args.json)
    return 0


def _with_instant_provider(settings: "Settings", upstream: str) -> "Settings":
    """Return the settings with the instant provider as the only one."""
    from serving.contracts.frontier_settings import FrontierSettings, ProviderSettings
    from serving.contracts.routing import TIERS

    provider = ProviderSettings(
        api="openai", base_url=f"{upstream}/v1", keyless=True, max_concurrent=256
    )
    frontier = FrontierSettings(
        providers={"openai": provider}, tiers=dict.fromkeys(TIERS, (MODEL,))
    )
    return settings.model_copy(update={"frontier": frontier})


def _measure(url: str, upstream: str, args: argparse.Namespace) -> list[_Target]:
    targets = [
        _Target("empty handler", f"{url}/healthz", None),
        _Target("provider alone", f"{upstream}/v1/chat/completions", MODEL),
        _Target("frontier model by name", f"{url}/v1/chat/completions", MODEL),
        _Target("auto, with embedding", f"{url}/v1/chat/completions", "auto"),
    ]
    with terminal_progress() as progress:
        total = progress.add_task(
            "measuring", total=(args.rounds + 1) * len(args.clients) * len(targets)
        )
        # Round 0 warms connections and caches and is not counted.
        for number in range(args.rounds + 1):
            for clients in args.clients:
                for target in targets:
                    found = _load(target, clients, number)
                    if number:
                        target.rounds.setdefault(clients, []).append(found)
                    progress.advance(total)
    return targets


def _load(target: _Target, clients: int, number: int) -> "LoadResult":
    from benchmarks.load import run_load
    from benchmarks.texts import texts

    bodies: list[dict[str, Any] | None] = [None] * _REQUESTS[clients]
    if target.model is not None:
        bodies = [
            {
                "model": target.model,
                "messages": [{"role": "user", "content": f'{_INSTRUCTION} "{text}"'}],
            }
            for text in texts(_REQUESTS[clients], seed=1000 * number + clients)
        ]
    return asyncio.run(run_load(target.path, bodies, clients))


def _document(targets: list[_Target], args: argparse.Namespace) -> dict[str, Any]:
    from serving.host.processor import processor_name

    rows = []
    for clients in args.clients:
        empty_ms = _p50_ms(targets[0].rounds[clients])
        for target in targets:
            found = target.rounds[clients]
            p50_ms = _p50_ms(found)
            rows.append(
                {
                    "target": target.name,
                    "clients": clients,
                    "requests": sum(len(item.latencies_s) for item in found),
                    "p50_ms": p50_ms,
                    "over_empty_ms": p50_ms - empty_ms,
                    "over_empty": p50_ms / empty_ms,
                    "requests_per_s": statistics.median(item.requests_per_s for item in found),
                }
            )
    return {
        "machine": processor_name(),
        "cores": os.cpu_count(),
        "rounds": args.rounds,
        "workload": "chats of 25 to 40 words, all different; load, gateway, proxy and provider "
        "on the same cores",
        "rows": rows,
    }


def _p50_ms(found: "list[LoadResult]") -> float:
    return statistics.median(s for item in found for s in item.latencies_s) * 1000


def _print(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(document))
        return
    print(f"{document['machine']}, {document['cores']} cores, {document['rounds']} rounds; "
          f"{document['workload']}")  # fmt: skip
    for row in document["rows"]:
        print(
            f"{row['clients']:>3} clients  {row['target']:<24} p50 {row['p50_ms']:>7.2f} ms  "
            f"over empty {row['over_empty_ms']:>+7.2f} ms ({row['over_empty']:.2f}x)  "
            f"{row['requests_per_s']:>7.1f} requests/s"
        )
