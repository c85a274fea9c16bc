"""Plots as inline SVG: text stays text, and colours are CSS variables of the page.

Figures are drawn without pyplot and one at a time, because matplotlib's settings belong to the
whole process.
"""

import io
import re
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2328", "#59636f", "#d1d9e0"

_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line"}

_STYLE: dict[str, object] = {
    # With text as text, the reader's fonts draw labels in any script, and labels can be searched.
    "svg.fonttype": "none",
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
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


@contextmanager
def report_figure(width_in: float, height_in: float) -> Iterator[Figure]:
    """Yield a figure in the reports' style; create the axes and export it inside the block.

    width_in, height_in: inches. Blocks while another thread draws. The process's own matplotlib
    settings are neither used nor changed.
    """
    with _drawing, matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield Figure(figsize=(width_in, height_in), layout="constrained")


def svg_element(figure: Figure, title: str, variables: Mapping[str, str]) -> str:
    """Return a figure as an <svg> element for HTML; the same figure gives the same string.

    title: read aloud by screen readers; different for every plot of a page. variables: CSS
    variable by the colour that is drawn (`#0969da`), in addition to `ink`, `muted` and `line`, so
    that the page can change colours in dark mode.
    """
    # matplotlib derives the ids of clip paths and markers from the salt. Plots of one page need
    # different ids.
    matplotlib.rcParams["svg.hashsalt"] = title
    file = io.StringIO()
    with warnings.catch_warnings():
        # The reader's browser supplies the glyphs, so this machine's fonts do not matter.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        absent = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=absent)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    # A style element would apply to the whole page, and group ids are the same in all plots.
    svg = re.sub(r"<style.*?</style>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    for colour, variable in {**_VARIABLES, **variables}.items():
        svg = re.sub(rf"(fill|stroke): {colour}", rf"\1: var(--{variable})", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Label the rows of a horizontal plot, the first row on top. Names are not read as formulas."""
    axes.set_yticks(range(len(names)), labels=names, parse_math=False)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=True, axis="x")


def write_beside(axes: Axes, row: int, text: str, colour: str = INK) -> None:
    """Write a text to the right of a row of a horizontal plot."""
    axes.text(1.02, row, text, color=colour, va="center", fontsize=8.5, parse_math=False,
              transform=axes.get_yaxis_transform())  # fmt: skip


def shortened(name: str, length: int) -> str:
    """Return a name cut to a number of characters, the last one an ellipsis where it was cut."""
    return name if len(name) <= length else name[: length - 1] + "…"
