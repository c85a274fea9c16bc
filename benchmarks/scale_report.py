"""Text and plot of the scale benchmark."""

from collections.abc import Iterator, Mapping
from typing import Any

SIMULATION = "A simulation: service times are measured, queues are computed, GPUs are not here."
_IDLE_LOAD = 1.0
"""Processes that wanted to run before the measurement, above which figures have other delays."""

_BLUE, _AMBER = "#0969da", "#9a6700"


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the report for people."""
    about = ", ".join(f"{key} {value}" for key, value in found["machine"].items())
    yield f"{SIMULATION} Measured: {about}; {found['rounds']} rounds"
    yield from _times(found["times"])
    if found["times_by"] != 1:
        yield f"  in what follows, processor times are multiplied by {found['times_by']:g}"
    yield from _checks(found["checks"])
    if found["machine"]["load_before"] > _IDLE_LOAD:
        yield (
            f"  THE MACHINE HAD OTHER WORK (load {found['machine']['load_before']:g}), which the "
            "model has not: this check says nothing. Repeat it where nothing else runs."
        )
    yield f"engine: {found['gpu']}, {found['engine']}"
    yield "assumed: " + "; ".join(found["assumed"])
    yield ""
    yield f"{found['narrow']:.0%} narrow, tenants: {found['tenants']}; what limits, and what next:"
    for step in found["steps"]:
        yield (
            f"  {_counts(step)}: {step['part']} at {step['rate']:,.0f}/s; moved by "
            f"{step['moved_by']}"
        )
    yield ""
    yield "deployments in which no part is busier than 70 %, and their first limit:"
    for row in found["rates"]:
        yield from _rate(row)
    for name, points in found["curves"].items():
        yield ""
        yield f"by {name}: most requests/s, what limits; p50 and p99 at 70 % of them"
        for point in points:
            yield (
                f"  {point[name]:>6g}  {point['most_per_s']:>9,.0f}/s  {point['part']:<16} "
                f"{_latencies(point['simulated'])}"
            )


def _times(times: Mapping[str, Any]) -> Iterator[str]:
    gateway = ", ".join(f"{path} {1000 * s:.2f}" for path, s in times["gateway_s"].items())
    yield f"processor time of a request, ms: gateway without ledger: {gateway};"
    names = ("encoder_s", "proxy_s", "provider_s", "client_s")
    yield "  " + ", ".join(f"{name[:-2]} {1000 * times[name]:.2f}" for name in names)
    for name in ("ledger", "database"):
        cost = times[name]
        yield (
            f"  {name}: a transaction {1000 * cost['once_s']:.2f}, of exits only "
            f"{1000 * cost['once_exits_s']:.2f}, a paid operation {1000 * cost['paid_s']:.3f}, "
            f"an exit {1000 * cost['exit_s']:.3f}"
        )
    yield f"  a flush of 8 KiB {1000 * times['flush_s']:.2f}"


def _checks(rows: Any) -> Iterator[str]:
    yield "predicted beside measured (range over rounds), everything on this machine's cores:"
    for row in rows:
        cells = []
        for name, unit in (("requests_per_s", "/s"), ("p50_ms", "ms p50"), ("p99_ms", "ms p99")):
            cell = row[name]
            cells.append(
                f"{cell['predicted']:.1f} {unit}, measured {cell['measured']:.1f} "
                f"({cell['low']:.1f} to {cell['high']:.1f}), {cell['error']:+.0%}"
            )
        yield (
            f"  {row['gateways']} gateways, {row['clients']:>2} clients, {row['path']:<8} "
            + "; ".join(cells)
        )


def _counts(row: Mapping[str, Any]) -> str:
    return (
        f"{row['gateways']} gateways, {row['proxies']} threads of HAProxy, "
        f"{row['database_cores']} cores of PostgreSQL, {row['gpus']} GPUs, "
        f"{row['provider_calls']} calls a gateway"
    )


def _rate(row: Mapping[str, Any]) -> Iterator[str]:
    yield f"  {row['rate']:,.0f}/s: {_counts(row)}"
    busy = sorted(row["busy"].items(), key=lambda item: -item[1])
    yield "    busy: " + ", ".join(f"{part} {share:.0%}" for part, share in busy if share > 0.005)
    yield f"    first limit: {row['part']} at {row['limit']:,.0f}/s; moved by {row['moved_by']}"
    done = row["simulated"]
    yield f"    simulated at {done['rate']:,.0f}/s: {_latencies(done)}"


def _latencies(found: Mapping[str, Any]) -> str:
    parts = [f"{_interval(found['requests_per_s'])} requests/s"]
    for name, words in (("gateway", "without local answers"), ("local", "local answers")):
        if f"{name}_p50_ms" in found:
            parts.append(
                f"{words} p50 {_interval(found[f'{name}_p50_ms'])} ms, "
                f"p99 {_interval(found[f'{name}_p99_ms'])} ms"
            )
    if not found["keeps_up"]:
        busy = sorted(found["busy"].items(), key=lambda item: -item[1])[:3]
        shares = ", ".join(f"{part} {share:.0%}" for part, share in busy)
        parts.append(f"DOES NOT KEEP UP; busiest: {shares}")
    return "; ".join(parts)


def _interval(value: Mapping[str, float]) -> str:
    digits = 0 if value["mean"] >= 100 else 1
    return (
        f"{value['mean']:,.{digits}f} ({max(0.0, value['low']):,.{digits}f} to "
        f"{value['high']:,.{digits}f})"
    )


def plot(found: Mapping[str, Any]) -> str:
    """Return requests a second and p99 by gateways, GPUs and share of narrow traffic, as SVG."""
    from serving.reporting.figures import report_figure, svg_element

    words = {
        "gateways": "gateway replicas",
        "gpus": f"GPUs ({found['gpu']})",
        "narrow": "share of narrow traffic",
    }
    with report_figure(9.6, 4.6) as figure:
        grid = figure.subplots(2, 3, sharex="col")
        for column, (name, label) in enumerate(words.items()):
            points = found["curves"].get(name, ())
            xs = [point[name] for point in points]
            rates, waits = grid[0, column], grid[1, column]
            rates.plot(xs, [point["most_per_s"] for point in points], "o-", color=_BLUE)
            for series, colour in (("gateway", _BLUE), ("local", _AMBER)):
                some = [p for p in points if f"{series}_p99_ms" in p["simulated"]]
                values = [p["simulated"][f"{series}_p99_ms"] for p in some]
                waits.errorbar(
                    [p[name] for p in some], [value["mean"] for value in values],
                    [[value["mean"] - max(0.0, value["low"]) for value in values],
                     [value["high"] - value["mean"] for value in values]],
                    fmt="o-", color=colour, capsize=2,
                    label="local answers" if series == "local" else "all others",
                )  # fmt: skip
            for axes in (rates, waits):
                axes.set_ylim(bottom=0)
                axes.grid(visible=True)
            if name != "narrow" and points:
                waits.set_xscale("log", base=2)
                waits.set_xticks(xs, labels=[f"{x:g}" for x in xs])
            waits.set_xlabel(label)
        grid[0, 0].set_ylabel("most requests/s (simulation)")
        grid[1, 0].set_ylabel("p99 at 70 % of them, ms")
        grid[1, 0].legend()
        return svg_element(figure, "Requests a second and p99 by size", {})
