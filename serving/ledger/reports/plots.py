"""The report's plots as inline SVG: text stays text, colours are the page's CSS variables.

Figures are drawn without pyplot, one at a time: matplotlib's settings are the process's.
"""

import io
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from serving.contracts.report import Latency, Share, Spend
from serving.ledger.reports.words import milliseconds, share, visible

INK, MUTED, GRID = "#1f2328", "#59636f", "#d1d9e0"
SERIES = ("#0969da", "#8b6914", "#1a7f37", "#8250df", "#bf3989", "#0a7d91", "#59636f")
"""Colours of models; the last is that of all further ones together."""

VARIABLES = {INK: "ink", GRID: "line"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES)
}
"""CSS variables by the colour that is drawn, so that the page decides between light and dark."""

SHOWN = 12
"""Bars of a plot; further ones are in the tables."""

OTHERS = "all others"

STYLE: dict[str, object] = {
    "svg.fonttype": "none",
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
}

_drawing = threading.Lock()


def spend_plot(periods: Mapping[str, Sequence[Spend]]) -> str:
    """Return bars of what was paid or held in each period, stacked by model.

    periods: at least one, calls by model of each. Beyond six models, the cheapest are one.
    """
    names = _dearest(periods)
    with _figure(8.4, 3.4) as figure:
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
        return _svg(figure, "Spend by period and model")


def _dearest(periods: Mapping[str, Sequence[Spend]]) -> list[str]:
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
    """Return a bar for each share, with its number. none: what to call the nameless one."""
    shown = shares[:SHOWN]
    with _figure(4.6, 0.7 + 0.3 * max(len(shown), 1)) as figure:
        axes = figure.subplots()
        for position, item in enumerate(shown):
            axes.barh(position, item.share, height=0.6, color=SERIES[0], alpha=0.6, linewidth=0)
            _beside(axes, position, f"{share(item.share)}  {item.count:,}")
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.5, 1], labels=["0%", "50%", "100%"])
        _rows(axes, [item.name or none for item in shown])
        return _svg(figure, title)


def latency_plot(lines: Sequence[Latency]) -> str:
    """Return median and 95th percentile of each route."""
    with _figure(4.6, 0.7 + 0.3 * max(len(lines), 1)) as figure:
        axes = figure.subplots()
        for position, line in enumerate(lines):
            low, high = line.p50_us / 1000, line.p95_us / 1000
            axes.hlines(position, low, high, color=SERIES[0], linewidth=2.0)
            axes.plot(low, position, "o", color=SERIES[0], markersize=6)
            axes.vlines(high, position - 0.2, position + 0.2, color=SERIES[0], linewidth=2.0)
            _beside(axes, position, f"{milliseconds(line.p50_us)} / {milliseconds(line.p95_us)}")
        axes.set_xlim(left=0)
        axes.set_xlabel("ms")
        axes.locator_params(axis="x", nbins=4)
        _rows(axes, [line.route for line in lines])
        return _svg(figure, "Latency by route")


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), labels=[_short(name) for name in names], parse_math=False)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=True, axis="x")


def _beside(axes: Axes, position: int, text: str) -> None:
    axes.text(1.02, position, text, va="center", fontsize=8.5, parse_math=False,
              transform=axes.get_yaxis_transform())  # fmt: skip


def _short(name: str, length: int = 28) -> str:
    name = visible(name)
    return name if len(name) <= length else name[: length - 1] + "…"


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """Yield a figure, inches, drawn in this module's style whatever the process's is."""
    with _drawing, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure, title: str) -> str:
    """Return the figure as an <svg> element for HTML; the same figure gives the same string."""
    # The ids of clip paths and markers depend on the salt: several plots share one page.
    matplotlib.rcParams["svg.hashsalt"] = title
    file = io.StringIO()
    with warnings.catch_warnings():
        # Only the reader's browser has to have the glyphs.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        absent = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=absent)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    # A style element inside would apply to the whole page; ids of groups are the same in all plots.
    svg = re.sub(r"<style.*?</style>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for colour, variable in VARIABLES.items():
        svg = re.sub(rf"(fill|stroke): {colour}", rf"\1: var(--{variable})", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
