"""The plots of the report: spend by period, shares, latency."""

from collections.abc import Mapping, Sequence
from decimal import Decimal

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from serving.contracts.report import Latency, Share, Spend
from serving.ledger.reports.formats import milliseconds, share, visible
from serving.reporting.figures import (
    name_rows,
    report_figure,
    shortened,
    svg_element,
    write_beside,
)

SERIES = ("#0969da", "#8b6914", "#1a7f37", "#8250df", "#bf3989", "#0a7d91", "#59636f")
"""Colours of models. The last colour stands for all remaining models together."""

VARIABLES = {colour: f"series-{number}" for number, colour in enumerate(SERIES)}
"""CSS variable by the colour that is drawn."""

SHOWN = 12
"""Bars of a plot. The tables of the page list the rest as well."""

OTHERS = "all others"


def spend_plot(periods: Mapping[str, Sequence[Spend]]) -> str:
    """Return stacked bars: US dollars paid or held in each period, by model.

    periods: calls by model of each period, at least one period. Beyond six models, the cheapest
    ones are drawn as one.
    """
    names = _most_expensive(periods)
    with report_figure(8.4, 3.4) as figure:
        axes = figure.subplots()
        bottom = [0.0] * len(periods)
        for number, name in enumerate(names):
            heights = [float(_paid(lines, name, names)) for lines in periods.values()]
            axes.bar(range(len(periods)), heights, bottom=bottom, width=0.8, linewidth=0,
                     color=SERIES[number])  # fmt: skip
            bottom = [low + high for low, high in zip(bottom, heights, strict=True)]
        step = -(-len(periods) // 12)
        ticks = range(0, len(periods), step)
        labels = list(periods)
        axes.set_xticks(ticks, labels=[labels[at].removeprefix("20") for at in ticks])
        axes.set_xlim(-0.6, len(periods) - 0.4)
        axes.grid(visible=True, axis="y")
        axes.set_ylabel("US dollars")
        _legend(figure, names)
        return svg_element(figure, "Spend by period and model", VARIABLES)


def _most_expensive(periods: Mapping[str, Sequence[Spend]]) -> list[str]:
    sums: dict[str, Decimal] = {}
    for line in (line for lines in periods.values() for line in lines):
        sums[line.name or ""] = sums.get(line.name or "", Decimal(0)) + line.paid_usd
    names = sorted(sums, key=lambda name: (-sums[name], name))
    return names if len(names) < len(SERIES) else [*names[: len(SERIES) - 1], OTHERS]


def _paid(lines: Sequence[Spend], name: str, names: Sequence[str]) -> Decimal:
    rest = name == OTHERS and len(names) == len(SERIES)
    return sum(
        (
            line.paid_usd
            for line in lines
            if (line.name not in names if rest else line.name == name)
        ),
        Decimal(0),
    )


def _legend(figure: Figure, names: Sequence[str]) -> None:
    # Labels that begin with an underscore are left out, and dollar signs begin a formula.
    handles = [Patch(color=SERIES[number]) for number, _ in enumerate(names)]
    labels = [f"\N{HAIR SPACE}{_short(name)}" for name in names]
    legend = figure.legend(handles, labels, loc="outside upper left", ncols=3)
    for text in legend.get_texts():
        text.set_parse_math(False)


def shares_plot(title: str, shares: Sequence[Share], none: str) -> str:
    """Return a bar for each share, with its count. none: label of the share without a name."""
    shown = shares[:SHOWN]
    with report_figure(4.6, 0.7 + 0.3 * max(len(shown), 1)) as figure:
        axes = figure.subplots()
        for position, item in enumerate(shown):
            axes.barh(position, item.share, height=0.6, color=SERIES[0], alpha=0.6, linewidth=0)
            write_beside(axes, position, f"{share(item.share)}  {item.count:,}")
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], labels=["0%", "50%", "100%"])
        name_rows(axes, [_short(item.name or none) for item in shown])
        return svg_element(figure, title, VARIABLES)


def latency_plot(lines: Sequence[Latency]) -> str:
    """Return the median and the 95th percentile of each route, in milliseconds."""
    with report_figure(4.6, 0.7 + 0.3 * max(len(lines), 1)) as figure:
        axes = figure.subplots()
        for position, line in enumerate(lines):
            low, high = line.p50_us / 1000, line.p95_us / 1000
            axes.hlines(position, low, high, color=SERIES[0], linewidth=2.0)
            axes.plot(low, position, "o", color=SERIES[0], markersize=6)
            axes.vlines(high, position - 0.2, position + 0.2, color=SERIES[0], linewidth=2.0)
            write_beside(
                axes, position, f"{milliseconds(line.p50_us)} / {milliseconds(line.p95_us)}"
            )
        axes.set_xlim(left=0)
        axes.set_xlabel("ms")
        axes.locator_params(axis="x", nbins=4)
        name_rows(axes, [_short(line.route) for line in lines])
        return svg_element(figure, "Latency by route", VARIABLES)


def _short(name: str) -> str:
    return shortened(visible(name), 28)
