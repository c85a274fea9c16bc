"""`python -m benchmarks check`: does a request cost more than the figures in the repository?

Each figure is a ratio to the empty handler of the same process in the same round, so that another
machine, or a busy one, has about the same.
"""

import argparse
import asyncio
import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gateway_processes import MODEL, gateway, settings_of
from benchmarks.machine import machine
from benchmarks.processes import instant_provider
from benchmarks.texts import INSTRUCTION, NEW_INSTRUCTION, instructed, texts
from serving.host.terminal import terminal_progress

if TYPE_CHECKING:
    from benchmarks.gateway_processes import GatewayProcess

HELP = "compare the gateway's own cost with the figures in the repository; status 1: above a limit"
FIGURES = "check.json"
_REQUESTS = {1: 80, 16: 480}
_CPU, _P50 = "processor time at 16 clients", "p50 at 1 client"
TOLERANCES = {_CPU: 0.3, _P50: 1.0}
"""How much above its kept figure a ratio may be. p50 holds a flush to disk, which differs more from
machine to machine than processor time."""

_RESAMPLES = 2000


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("--rounds", type=int, default=8, help="rounds of every measurement (8)")
    parser.add_argument(
        "--keep", action="store_true", help="write the figures into the repository, judge nothing"
    )


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request.

    model: None for the empty handler. repeated: one body for all. instruction: before each text,
    with the request's number in the place of `{number}`.
    """

    name: str
    model: str | None
    repeated: bool = False
    cached: bool = False
    instruction: str = INSTRUCTION


EMPTY = "empty handler"
PATHS = (
    Kind("frontier model by name", MODEL),
    Kind("auto, with embedding", "auto", instruction=NEW_INSTRUCTION),
    Kind("auto, known instruction", "auto"),
    Kind("exact cache hit", MODEL, repeated=True, cached=True),
)


@dataclass(slots=True)
class Ratios:
    """One path's ratios to the empty handler, one a round."""

    values: list[float] = field(default_factory=list)

    @property
    def middle(self) -> float:
        """Return the median."""
        return statistics.median(self.values)

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the median: percentile bootstrap over rounds."""
        rng = random.Random(1)  # noqa: S311  # not for secrets
        found = sorted(
            statistics.median(rng.choices(self.values, k=len(self.values)))
            for _ in range(_RESAMPLES)
        )
        return found[_RESAMPLES // 40], found[-_RESAMPLES // 40]


@dataclass(frozen=True, slots=True)
class Judged:
    """A ratio beside its kept figure; limit: the most that it may be."""

    path: str
    figure: str
    ratio: float
    low: float
    high: float
    kept: float | None

    @property
    def limit(self) -> float | None:
        """Return the most that the ratio may be; None where no figure is kept."""
        return None if self.kept is None else self.kept * (1 + TOLERANCES[self.figure])

    @property
    def is_above_limit(self) -> bool:
        """Return whether the whole interval is above the limit."""
        return self.limit is not None and self.low > self.limit


def run(args: argparse.Namespace) -> int:
    """Measure, compare and report. Exit status 1 where a ratio is above its limit."""
    found = _measured(args.rounds)
    kept = {} if args.keep else kept_figures()
    rows = judged(found, kept)
    if args.keep:
        _keep(rows, args.rounds)
    document = {
        "machine": machine(),
        "rounds": args.rounds,
        "rows": [
            {
                "path": row.path, "figure": row.figure, "ratio": row.ratio, "low": row.low,
                "high": row.high, "kept": row.kept, "limit": row.limit,
                "above_limit": row.is_above_limit,
            }
            for row in rows
        ],
    }  # fmt: skip
    if args.json:
        print(json.dumps(document))
    else:
        for line in lines(rows):
            print(line)
    return 1 if any(row.is_above_limit for row in rows) else 0


def judged(found: dict[tuple[str, str], Ratios], kept: dict[str, dict[str, float]]) -> list[Judged]:
    """Return each ratio beside its kept figure. found: by path and figure."""
    return [
        Judged(path, figure, ratios.middle, *ratios.interval(), kept.get(path, {}).get(figure))
        for (path, figure), ratios in found.items()
    ]


def lines(rows: Sequence[Judged]) -> list[str]:
    """Return the report for people."""
    return [
        f"{row.path:<24} {row.figure:<28} {row.ratio:6.1f} times the empty handler "
        f"({row.low:.1f} to {row.high:.1f})"
        + ("" if row.kept is None else f"  kept {row.kept:.1f}, limit {row.limit:.1f}")
        + ("  ABOVE THE LIMIT" if row.is_above_limit else "")
        for row in rows
    ]


def kept_figures() -> dict[str, dict[str, float]]:
    """Return the figures in the repository, by path and figure."""
    content = json.loads((files("benchmarks") / FIGURES).read_text(encoding="utf-8"))
    return dict(content["ratios"])


def _keep(rows: Sequence[Judged], rounds: int) -> None:
    ratios: dict[str, dict[str, float]] = {}
    for row in rows:
        ratios.setdefault(row.path, {})[row.figure] = round(row.ratio, 2)
    content = {"machine": machine(), "rounds": rounds, "ratios": ratios}
    path = Path(__file__).with_name(FIGURES)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _measured(rounds: int) -> dict[tuple[str, str], Ratios]:
    from serving.contracts.frontier_settings import ProviderSettings

    found: dict[tuple[str, str], Ratios] = {}
    with ExitStack() as running, terminal_progress() as progress:
        total = progress.add_task("measuring", total=(rounds + 1) * len(PATHS))
        upstream = running.enter_context(instant_provider())
        provider = ProviderSettings(
            api="openai", base_url=f"{upstream}/v1", keyless=True, max_concurrent=256
        )
        gateways = {}
        for cached in (False, True):
            state = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="check-")))
            settings = settings_of(state, provider, cached=cached)
            gateways[cached] = running.enter_context(gateway(settings))
        # Round 0 warms connections and caches and is not counted.
        for number in range(rounds + 1):
            for path in PATHS:
                cpu, p50 = _ratios(gateways[path.cached], path, number)
                if number:
                    found.setdefault((path.name, _CPU), Ratios()).values.append(cpu)
                    found.setdefault((path.name, _P50), Ratios()).values.append(p50)
                progress.advance(total)
    return found


def _ratios(server: "GatewayProcess", path: Kind, number: int) -> tuple[float, float]:
    """Return the ratios of processor time and of p50 to the empty handler's, just before."""
    empty = Kind(EMPTY, None)
    cpu = [_load(server, each, 16, number)[0] for each in (empty, path)]
    p50 = [_load(server, each, 1, number)[1] for each in (empty, path)]
    return cpu[1] / cpu[0], p50[1] / p50[0]


def _load(server: "GatewayProcess", path: Kind, clients: int, number: int) -> tuple[float, float]:
    """Return the processor time a request and the median latency, seconds."""
    from benchmarks.load import run_load

    # An empty request takes 0.1 ms, and the system counts processor time in steps of 10 ms.
    count = _REQUESTS[clients] * (8 if path.model is None else 1)
    bodies: list[dict[str, Any] | None] = [None] * count
    if path.model is not None:
        found = ["one text"] * count if path.repeated else texts(count, 1000 * number + clients)
        # No number comes twice, so that each instruction is new.
        first = (1000 * number + clients) * 10_000
        bodies = [*instructed(path.model, path.instruction, found, first)]
    url = f"{server.url}/healthz" if path.model is None else f"{server.url}/v1/chat/completions"
    before_s = server.cpu_s()
    load = asyncio.run(run_load(url, bodies, clients))
    return (server.cpu_s() - before_s) / count, statistics.median(load.latencies_s)
