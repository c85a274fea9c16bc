"""`python -m benchmarks cache`: lookups, hits through HTTP, memory, and replays with repeats."""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.machine import machine
from benchmarks.processes import instant_provider, listening
from serving.host.terminal import terminal_progress

if TYPE_CHECKING:
    from serving.contracts.settings import Settings

HELP = "measure the cache: lookups, hits through HTTP beside an empty handler, memory, replays"
# A model with a known price: calls of unpriced models are refused.
MODEL = "openai/gpt-6-luna"
_CLIENTS = (1, 16)
_REQUESTS = {1: 400, 16: 2400}
_START_S = 120.0
_LOOKUP_S = 10.0


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--entries", nargs="+", type=int, default=[1000, 100_000], help="sizes (1000 100000)"
    )
    parser.add_argument(
        "--questions", nargs="+", type=int, default=[1000, 20_000],
        help="sizes of the index of lookups by meaning (1000 20000)",
    )  # fmt: skip
    parser.add_argument("--lookups", type=int, default=2000, help="of each size (2000)")
    parser.add_argument("--rounds", type=int, default=3, help="of every load (3)")
    parser.add_argument(
        "--flood-rounds", type=int, default=10, help="windows of each load of another tenant (10)"
    )
    parser.add_argument("--requests", type=int, default=2000, help="of each replay (2000)")


def run(args: argparse.Namespace) -> int:
    """Measure and report. Exit status 0; figures are reported, not judged."""
    from benchmarks.cache_lookups import time_lookups
    from benchmarks.cache_similar import time_namespaces, time_similar

    with terminal_progress() as progress:
        task = progress.add_task("lookups", total=len(args.entries) + len(args.questions) + 2)
        lookups, similar = [], []
        for entries in args.entries:
            lookups.append(time_lookups(entries, args.lookups).document())
            progress.advance(task)
        for entries in args.questions:
            similar.append(time_similar(entries, args.lookups).document())
            progress.advance(task)
        namespaces = time_namespaces(min(args.questions, default=1000), args.lookups).document()
        progress.advance(task)
        document = {
            "machine": machine(), "lookups": lookups, "similar": similar,
            "namespaces": namespaces, **_through_http(args),
        }  # fmt: skip
    _print(document, as_json=args.json)
    return 0


def _through_http(args: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.cache_replay import replay_all
    from serving.lifecycle.ports import free_port

    port = free_port()
    with tempfile.TemporaryDirectory(prefix="narrowgate-") as state, instant_provider() as upstream:
        settings = _settings(Path(state), upstream).model_dump_json()
        command = [sys.executable, "-m", "benchmarks.cache_server", str(port)]
        with listening(command, port, _START_S, settings) as url:
            before_mib = _memory_mib(port)
            load = _loads(url, args.rounds)
            replays = [found.document() for found in replay_all(url, args.requests, MODEL)]
            memory = {"before_mib": before_mib, "after_mib": _memory_mib(port)}
        replays.append(_by_meaning(Path(state) / "meaning", upstream, args.requests))
        flood = _flood(Path(state) / "flood", upstream, args.flood_rounds)
    return {"load": load, "replays": replays, "memory": memory, "flood": flood}


def _flood(state: Path, upstream: str, rounds: int) -> list[dict[str, Any]]:
    """Time a tenant's chats while another tenant floods the cache."""
    from benchmarks.cache_flood import time_flood

    settings = _settings(state, upstream, semantic="on", auth="keys")
    return time_flood(settings, MODEL, rounds).document()


def _by_meaning(state: Path, upstream: str, requests: int) -> dict[str, Any]:
    """Replay the project's pairs through a gateway that serves by meaning, without a claim."""
    from benchmarks.cache_replay import replay_meaning
    from serving.lifecycle.ports import free_port

    port = free_port()
    settings = _settings(state, upstream, semantic="on")
    command = [sys.executable, "-m", "benchmarks.cache_server", str(port)]
    with listening(command, port, _START_S, settings.model_dump_json()) as url:
        return replay_meaning(url, requests, MODEL).document()


def _settings(
    state: Path,
    upstream: str,
    semantic: Literal["off", "on"] = "off",
    auth: Literal["off", "keys"] = "off",
) -> "Settings":
    from serving.contracts.cache_settings import CacheSettings
    from serving.contracts.evidence_settings import EvidenceSettings
    from serving.contracts.frontier_settings import FrontierSettings, ProviderSettings
    from serving.contracts.ledger_settings import AuthSettings, LedgerSettings
    from serving.contracts.routing import TIERS
    from serving.contracts.settings import Settings

    provider = ProviderSettings(
        api="openai", base_url=f"{upstream}/v1", keyless=True, max_concurrent=256
    )
    return Settings(
        state=state,
        models=(),
        auth=AuthSettings(mode=auth),
        # A machine that other work starves is slow, and refuses nothing: with 2 s for the row of a
        # call, 11 busy processes on 2 cores made it answer 503 ledger_unavailable.
        ledger=LedgerSettings(call_wait_s=60.0),
        cache=CacheSettings(lookup_timeout_s=_LOOKUP_S, semantic=semantic),
        evidence=EvidenceSettings(enabled=False),
        frontier=FrontierSettings(
            providers={"openai": provider}, tiers=dict.fromkeys(TIERS, (MODEL,))
        ),
    )


def _loads(url: str, rounds: int) -> list[dict[str, Any]]:
    """Load an empty handler, hits, and calls of the provider, in turn."""
    from benchmarks.cache_replay import questions
    from benchmarks.load import LoadResult, percentile, run_load

    found: dict[tuple[str, int], list[LoadResult]] = {}
    for number in range(rounds + 1):
        for clients in _CLIENTS:
            count = _REQUESTS[clients]
            one = [_body("What is a narrow gate?")] * count
            fresh = [_body(text) for text in questions(count, seed=1000 * number + clients)]
            for name, path, bodies in (
                ("empty handler", "/healthz", [None] * count),
                ("hit", "/v1/chat/completions", one),
                ("miss, instant provider", "/v1/chat/completions", fresh),
            ):
                result = asyncio.run(run_load(url + path, bodies, clients))
                # Round 0 warms connections and the cache, and is not counted.
                if number:
                    found.setdefault((name, clients), []).append(result)
    return [
        {
            "target": name,
            "clients": clients,
            "p50_ms": percentile(_all(results), 0.5) * 1000,
            "p99_ms": percentile(_all(results), 0.99) * 1000,
            "requests_per_s": statistics.median(item.requests_per_s for item in results),
        }
        for (name, clients), results in found.items()
    ]


def _all(results: list[Any]) -> list[float]:
    return [latency for result in results for latency in result.latencies_s]


def _body(text: str) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": text}]}


def _memory_mib(port: int) -> float:
    """Return the resident memory of the process that listens on a port."""
    import psutil

    process = next(
        child
        for child in psutil.Process().children()
        if str(port) in child.cmdline() and "benchmarks.cache_server" in child.cmdline()
    )
    return float(process.memory_info().rss / 2**20)


def _print(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(document))
        return
    print(f"{document['machine']['cpu']}, {document['machine']['cores']} cores")
    for row in document["lookups"]:
        print(
            f"{row['entries']:>9,} entries  hit p50 {row['hit_p50_ms']:.2f} p99 "
            f"{row['hit_p99_ms']:.2f} ms  miss p50 {row['miss_p50_ms']:.2f} p99 "
            f"{row['miss_p99_ms']:.2f} ms  database {row['database_mib']:.0f} MiB, filled in "
            f"{row['fill_s']:.0f} s"
        )
    for row in document["similar"]:
        print(
            f"{row['entries']:>9,} questions  hit p50 {row['hit_p50_ms']:.2f} p99 "
            f"{row['hit_p99_ms']:.2f} ms  miss p50 {row['miss_p50_ms']:.2f} p99 "
            f"{row['miss_p99_ms']:.2f} ms  found {row['found']:,} of {row['asked']:,}  index "
            f"{row['index_mib']:.0f} MiB, filled in {row['fill_s']:.0f} s, loaded in "
            f"{row['load_s']:.1f} s"
        )
    found = document["namespaces"]
    print(
        f"misses by meaning of what another tenant stored: p50 {found['stored_p50_ms']:.3f} ms, of "
        f"what nobody did: {found['new_p50_ms']:.3f} ms, difference {found['difference_ms']:.3f} "
        f"({found['difference_low_ms']:.3f} to {found['difference_high_ms']:.3f}) ms"
    )
    for row in document["load"]:
        print(
            f"{row['clients']:>3} clients  {row['target']:<24} p50 {row['p50_ms']:>7.2f} p99 "
            f"{row['p99_ms']:>7.2f} ms  {row['requests_per_s']:>7.0f} requests/s"
        )
    for row in document["flood"]:
        print(
            f"another tenant {row['arm']:<10} {row['flood_per_s']:>4.0f}/s  {row['kind']:<9} p50 "
            f"{row['p50_ms']:>6.2f} p99 {row['p99_ms']:>7.2f} ms  difference of p50 "
            f"{row['difference_ms']:.2f} ({row['difference_low_ms']:.2f} to "
            f"{row['difference_high_ms']:.2f}) ms"
        )
    memory = document["memory"]
    print(f"gateway's memory {memory['before_mib']:.0f} MiB, then {memory['after_mib']:.0f} MiB")
    for row in document["replays"]:
        kinds = ", ".join(
            f"{kind} {found['hits']}/{found['requests']}" for kind, found in row["by_kind"].items()
        )
        print(f"{row['stream']}: {row['intercepted']:.1%} intercepted ({kinds})")
