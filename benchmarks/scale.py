"""`python -m benchmarks scale`: how many gateways, engines and cores a rate needs, and what is busy
first. A simulation, fitted to service times that are measured on this machine.
"""

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path as File
from typing import TYPE_CHECKING, Any

from benchmarks.machine import machine
from benchmarks.scale_model import PAID, PATHS, Cost, Deployment, Load, Path, Simulation, Times
from benchmarks.scale_sizes import MOST_CALLS, MOVES, Step, busy, limit, sized, steps
from serving.host.numbers import refuse_outside, signed_number, whole_number
from serving.host.terminal import terminal_progress

if TYPE_CHECKING:
    from benchmarks.scale_measure import Cell, Seen
    from benchmarks.scale_model import Outcome

HELP = "simulate many gateways and engines, fitted to measured service times"
RATES = (100.0, 1000.0, 10_000.0)
MOST_BUSY = 0.7
"""Share of the time that a part may be busy in a deployment that is large enough."""

ENGINES: Mapping[str, tuple[str, tuple[tuple[int, float], ...] | None]] = {
    "a10g": (
        "arithmetic of `narrowgate plan` from the data sheet; no A10G was ever measured",
        None,
    ),
    "h200": (
        "one H200, random weights in the shape of Llama-3-8B, INT8, CUDA graphs, 300 tokens of "
        "which 240 are shared, without HTTP (docs/gpu-results.md)",
        ((1, 1 / 148), (16, 16 / 591), (64, 64 / 905)),
    ),
}
"""Where the steps of a card come from, and their seconds by inputs; None: computed."""

PROMPT_TOKENS, SHARED_TOKENS = 300, 240
HOP_S, ANSWER_S = 0.001, 1.0
SHARES: Mapping[Path, float] = {"hit": 0.2, "auto": 0.4, "by name": 0.4}
"""Assumed shares of the requests that are not narrow."""

ASSUMED = (
    f"{SHARES['hit']:.0%} of what is not narrow repeats an earlier request, "
    f"{SHARES['auto']:.0%} is `auto` with a new instruction, {SHARES['by name']:.0%} by name",
    f"a provider answers in {ANSWER_S:g} s and refuses nothing",
    f"the call to an engine's replica costs the gateway {HOP_S * 1000:g} ms of processor time",
    "every narrow request is answered locally; a free replica is always found",
    "a draw's standard deviation is half of its mean; arrivals are independent (Poisson)",
    "a core of gateways, PostgreSQL and HAProxy is as fast as one here; the network takes no time",
)
_CURVES: Mapping[str, Sequence[float]] = {
    "gateways": (1, 2, 4, 8, 16, 32),
    "gpus": (1, 2, 4, 8, 16),
    "narrow": (0.0, 0.2, 0.4, 0.6, 0.8, 0.95),
}
_KEEPS_UP = 0.9
"""Share of the offered requests that must be answered in a run, which has its own chance."""

_STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776}
"""97.5 % points of Student's distribution, by seeds."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument(
        "--measured", type=File, metavar="FILE",
        help="take service times and checks from the JSON document of an earlier run "
        "(benchmarks/scale.json), measure nothing",
    )  # fmt: skip
    parser.add_argument("--rounds", type=whole_number, default=3, help="of every measurement (3)")
    parser.add_argument(
        "--narrow", type=signed_number, default=0.4, metavar="SHARE",
        help="of requests that a local model answers, 0 to 1 (0.4)",
    )  # fmt: skip
    parser.add_argument("--gpu", choices=tuple(ENGINES), default="a10g", help="of the engine")
    parser.add_argument("--tenants", type=whole_number, default=1, help="equally busy ones (1)")
    parser.add_argument("--seeds", type=whole_number, default=5, help="runs of a simulation (5)")
    parser.add_argument(
        "--requests", type=whole_number, default=3000, help="counted in one run, at least (3000)"
    )
    parser.add_argument(
        "--times-by", type=signed_number, default=1.0, metavar="FACTOR",
        help="multiply processor times by this, for a faster or an idle machine (1)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="few requests, one round, no curves")
    parser.add_argument("--plot", type=File, metavar="FILE", help="also write the curves as SVG")


def run(args: argparse.Namespace) -> int:
    """Measure, simulate and report. Exit status 0; figures are reported, not judged."""
    from benchmarks import scale_report as report

    refuse_outside("--rounds", args.rounds, least=1, most=50)
    refuse_outside("--narrow", args.narrow, least=0, most=1)
    refuse_outside("--tenants", args.tenants, least=1, most=10_000)
    refuse_outside("--seeds", args.seeds, least=2, most=5)
    refuse_outside("--requests", args.requests, least=100, most=1_000_000)
    refuse_outside("--times-by", args.times_by, least=0.01, most=100)
    if args.quick:
        args.rounds, args.seeds, args.requests = 1, 2, min(args.requests, 600)
    measured = _measured(args) if args.measured is None else read_measured(args.measured)
    found = document(measured, args)
    if args.plot is not None:
        args.plot.write_text(report.plot(found), encoding="utf-8")
    if args.json:
        print(json.dumps(found))
        return 0
    for line in report.lines(found):
        print(line)
    return 0


def _measured(args: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.scale_measure import CHECKED, CLIENTS, Plan, measure

    plan = Plan(args.rounds, CLIENTS, CHECKED)
    if args.quick:
        plan = Plan(args.rounds, CLIENTS, CHECKED[:1], share=0.2)
    load = os.getloadavg()[0]
    times, seen = measure(plan)
    return {
        "machine": {**machine(), "load_before": round(load, 1)},
        "rounds": args.rounds,
        "times": asdict(times),
        "checks": checks(times, seen, args.seeds),
    }


def checks(times: Times, seen: "Mapping[Cell, Seen]", seeds: int) -> list[dict[str, Any]]:
    """Return what the model predicts beside what was measured."""
    found = []
    for cell, measured in seen.items():
        row: dict[str, Any] = {
            "gateways": cell.gateways, "path": cell.path, "clients": cell.clients,
        }  # fmt: skip
        values = {
            "requests_per_s": measured.requests_per_s,
            "p50_ms": [1000 * s for s in measured.p50_s],
            "p99_ms": [1000 * s for s in measured.p99_s],
        }
        for name, each in values.items():
            row[name] = {
                "measured": statistics.median(each), "low": min(each), "high": max(each),
            }  # fmt: skip
        found.append(predicted(times, row, seeds))
    return found


def predicted(times: Times, row: Mapping[str, Any], seeds: int) -> dict[str, Any]:
    """Return a check with the model's prediction, in which all share this machine's processors."""
    deployment = Deployment(
        gateways=row["gateways"], proxies=1, provider_calls=MOST_CALLS, cores=os.cpu_count()
    )
    # Instructions were known to the router.
    known = replace(times, encoder_s=0.0)
    load = Load({row["path"]: 1.0}, 1000, 200, clients=row["clients"])
    runs = [Simulation(known, deployment, load, seed).run() for seed in range(seeds)]
    figures = {
        "requests_per_s": [each.requests_per_s for each in runs],
        "p50_ms": [1000 * _percentile(each.latencies_s, 0.5) for each in runs],
        "p99_ms": [1000 * _percentile(each.latencies_s, 0.99) for each in runs],
    }
    found = dict(row)
    for name, values in figures.items():
        middle = statistics.mean(values)
        error = middle / row[name]["measured"] - 1
        found[name] = {**row[name], "predicted": middle, "error": error}
    return found


def _percentile(values: Sequence[float], share: float) -> float:
    from benchmarks.load import percentile

    return percentile(values, share)


def read_measured(path: File) -> dict[str, Any]:
    """Return the measured part of an earlier run's document. Raises InvalidArgument."""
    from serving.contracts.errors import InvalidArgument

    def refused(why: str) -> InvalidArgument:
        return InvalidArgument(
            f"--measured {str(path)!r} {why}",
            field="measured",
            fix="give the output of `python -m benchmarks scale --json`, or leave it out",
        )

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise refused(f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise refused("is not JSON") from error
    try:
        times_of(found)
        return {name: found[name] for name in ("machine", "rounds", "times", "checks")}
    except (KeyError, TypeError, ValueError) as error:
        raise refused(f"lacks service times, or has wrong ones: {error}") from error


def times_of(found: Mapping[str, Any]) -> Times:
    """Return the service times of a document. Raises KeyError, TypeError or ValueError."""
    times = dict(found["times"])
    costs = {name: Cost(**times.pop(name)) for name in ("ledger", "database")}
    gateway_s = {path: times["gateway_s"][path] for path in PATHS}
    numbers = [*gateway_s.values(), *(v for c in costs.values() for v in asdict(c).values())]
    numbers += [times[name] for name in times if name != "gateway_s"]
    for number in numbers:
        if not isinstance(number, int | float) or not 0 <= number < 60:
            raise ValueError(f"{number!r} is no time in seconds from 0 to 60")
    return Times(**{**times, **costs, "gateway_s": gateway_s})


def faster(times: Times, factor: float) -> Times:
    """Return the times with every processor time multiplied; a flush stays as it is."""

    def cost(of: Cost) -> Cost:
        return Cost(**{name: factor * seconds for name, seconds in asdict(of).items()})

    return replace(
        times,
        gateway_s={path: factor * seconds for path, seconds in times.gateway_s.items()},
        encoder_s=factor * times.encoder_s,
        proxy_s=factor * times.proxy_s,
        provider_s=factor * times.provider_s,
        client_s=factor * times.client_s,
        ledger=cost(times.ledger),
        database=cost(times.database),
    )


def mix_of(narrow: float) -> dict[Path, float]:
    """Return the weights of the paths. narrow: share of requests for a local model."""
    mix: dict[Path, float] = {path: (1 - narrow) * share for path, share in SHARES.items()}
    return {**mix, "local": narrow}


def engine_s(gpu: str) -> tuple[tuple[int, float], ...]:
    """Return the seconds of a step of one card by its inputs, Llama-3-8B in INT8."""
    from serving.kubernetes.capacity import GPUS, LLAMA_3_8B, Workload, estimate, weight_bytes

    _, curve = ENGINES[gpu]
    if curve is not None:
        return curve
    card, work = GPUS[gpu], Workload(PROMPT_TOKENS, SHARED_TOKENS, 1)
    full = estimate(card, LLAMA_3_8B, "int8", work).requests_per_s
    # One input needs all weights once; as in `narrowgate plan`, half of the peak is reached.
    alone_s = max(1 / full, 2 * weight_bytes(LLAMA_3_8B, "int8") / card.bandwidth)
    return (1, alone_s), (64, max(alone_s, 64 / full))


def document(measured: Mapping[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Return the whole report."""
    times = faster(times_of(measured), args.times_by)
    rows = [predicted(times, row, args.seeds) for row in measured["checks"]]
    times = replace(times, gateway_s={**times.gateway_s, "local": times.gateway_s["local"] + HOP_S})
    start = Deployment(tenants=args.tenants, provider_wait_s=ANSWER_S, engine_s=engine_s(args.gpu))
    mix = mix_of(args.narrow)
    runs = _Runs(times, args)
    found = {
        **measured,
        "checks": rows,
        "times_by": args.times_by,
        "narrow": args.narrow,
        "tenants": args.tenants,
        "gpu": args.gpu,
        "engine": ENGINES[args.gpu][0],
        "engine_s": start.engine_s,
        "assumed": list(ASSUMED),
        "steps": [_step(step) for step in steps(times, start, mix, RATES[-1])],
    }
    with terminal_progress() as progress:
        curves = {} if args.quick else _CURVES
        total = len(RATES) + sum(map(len, curves.values()))
        task = progress.add_task("simulating", total=total)
        found["rates"] = []
        for rate in RATES:
            found["rates"].append(_at_rate(runs, start, mix, rate))
            progress.advance(task)
        found["curves"] = {}
        for name, values in curves.items():
            found["curves"][name] = []
            for value in values:
                found["curves"][name].append(_point(runs, start, args.narrow, name, value))
                progress.advance(task)
    return found


class _Runs:
    """Simulations of one run of the benchmark."""

    def __init__(self, times: Times, args: argparse.Namespace) -> None:
        self.times = times
        self._seeds, self._requests = args.seeds, args.requests

    def simulated(
        self, deployment: Deployment, mix: Mapping[Path, float], rate: float
    ) -> dict[str, Any]:
        """Return requests a second and latencies, each with its 95 % interval over seeds."""
        # Calls of a provider fill the slots for as long as one takes.
        warm = max(self._requests // 4, int(1.5 * rate * deployment.provider_wait_s))
        load = Load(mix, max(self._requests, int(rate / 2)), warm, rate=rate)
        runs = [Simulation(self.times, deployment, load, seed).run() for seed in range(self._seeds)]
        found: dict[str, Any] = {
            "rate": rate,
            "requests_per_s": _interval([each.requests_per_s for each in runs]),
            "busy": {
                name: statistics.mean(each.busy[name] for each in runs) for name in runs[0].busy
            },
        }
        # What is offered beyond what is answered waits in a queue that grows.
        found["keeps_up"] = found["requests_per_s"]["mean"] > _KEEPS_UP * rate
        for name, paths in (("gateway", (*PAID, "hit")), ("local", ("local",))):
            if latencies := [each for each in (_of(one, paths) for one in runs) if each]:
                for share in (50, 99):
                    values = [1000 * _percentile(each, share / 100) for each in latencies]
                    found[f"{name}_p{share}_ms"] = _interval(values)
        return found


def _of(outcome: "Outcome", paths: Sequence[str]) -> list[float]:
    return [s for path in paths for s in outcome.by_path_s.get(path, ())]


def _interval(values: Sequence[float]) -> dict[str, float]:
    """Return the mean and its 95 % interval (Student)."""
    middle = statistics.mean(values)
    if len(values) < 2:
        return {"mean": middle, "low": middle, "high": middle}
    half = _STUDENT[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return {"mean": middle, "low": middle - half, "high": middle + half}


def _step(step: Step) -> dict[str, Any]:
    return {
        **_counts(step.deployment),
        "part": step.limit.part,
        "rate": step.limit.rate,
        "moved_by": MOVES[step.limit.part][1],
    }


def _counts(deployment: Deployment) -> dict[str, int]:
    names = ("gateways", "proxies", "database_cores", "gpus", "provider_calls", "tenants")
    return {name: getattr(deployment, name) for name in names}


def _at_rate(
    runs: _Runs, start: Deployment, mix: Mapping[Path, float], rate: float
) -> dict[str, Any]:
    """Return the deployment for a rate, what limits it, and its simulation."""
    deployment = sized(runs.times, start, mix, rate, MOST_BUSY)
    reached = limit(runs.times, deployment, mix)
    # Beyond its limit a queue grows without end: there is no p99.
    load = min(rate, MOST_BUSY * reached.rate if reached.rate < rate else rate)
    return {
        "rate": rate,
        **_counts(deployment),
        "busy": busy(runs.times, deployment, mix, rate),
        "part": reached.part,
        "limit": reached.rate,
        "moved_by": MOVES[reached.part][1],
        "simulated": runs.simulated(deployment, mix, load),
    }


def _point(
    runs: _Runs, start: Deployment, narrow: float, name: str, value: float
) -> dict[str, Any]:
    """Return one point of a curve: the most requests a second, and p99 at 70 % of them."""
    wide = replace(start, proxies=64, database_cores=256, gpus=2000, provider_calls=MOST_CALLS)
    if name == "gateways":
        mix, deployment = mix_of(narrow), replace(wide, gateways=int(value))
    elif name == "gpus":
        mix, deployment = mix_of(narrow), replace(wide, gateways=32, gpus=int(value))
    else:
        mix = mix_of(value)
        deployment = sized(runs.times, start, mix_of(narrow), RATES[1], MOST_BUSY)
    reached = limit(runs.times, deployment, mix)
    return {
        name: value,
        "part": reached.part,
        "most_per_s": reached.rate,
        "simulated": runs.simulated(deployment, mix, MOST_BUSY * reached.rate),
    }
