"""The audit as one HTML file without scripts and without references to other files."""

from typing import Any

from serving.reporting.amounts import moment
from serving.reporting.figures import name_rows, report_figure, svg_element, write_beside
from serving.reporting.page import Plot, page_environment
from serving.savings.audit import Audit
from serving.savings.estimate import Saving
from serving.savings.text import BASIS, NAMES, usd, visible

_BLUE, _BROWN = "#0969da", "#8b6914"
_VARIABLES = {_BLUE: "series-0", _BROWN: "series-1"}


def render_page(audit: Audit) -> str:
    """Return the audit as a self-contained page; the same audit gives the same string."""
    filters: dict[str, Any] = {
        "usd": usd, "visible": visible, "between": _between, "share": lambda v: f"{v:.1%}",
        "moment": lambda at: f"{moment(at)} UTC",
    }  # fmt: skip
    template = page_environment("serving.savings", filters).get_template("page.html.j2")
    return template.render(
        audit=audit, names=NAMES, basis=BASIS, plots=[_saved(audit), _remaining(audit)]
    )


def _between(ends: tuple[float, float] | None) -> str:
    return "-" if ends is None else f"{usd(ends[0])} to {usd(ends[1])}"


def _saved(audit: Audit) -> Plot:
    rows: list[tuple[str, Saving]] = [(NAMES[one.lever], one.saving) for one in audit.levers]
    rows.append(("all together", audit.total))
    with report_figure(6.2, 3.0) as figure:
        axes = figure.subplots()
        for place, (_, saving) in enumerate(rows):
            low, high = saving.span
            axes.hlines(place, low, high, color=_BROWN, linewidth=1.2)
            if saving.interval is not None:
                axes.hlines(place, *saving.interval, color=_BLUE, linewidth=5.0, alpha=0.45)
            axes.plot(saving.usd, place, "o", color=_BLUE, markersize=6)
            write_beside(axes, place, f"{usd(saving.usd)}  {saving.share:.1%}")
        axes.axvline(0.0, color="#59636f", linewidth=0.8)
        axes.set_xlabel("US dollars saved")
        axes.locator_params(axis="x", nbins=5)
        name_rows(axes, [name for name, _ in rows])
        svg = svg_element(figure, "Saving by lever", _VARIABLES)
    return Plot(
        svg, "Dot: at the central assumptions. Thick: 95 % interval, bootstrap over conversations. "
        "Thin: all assumptions at the ends of their ranges.", "Saving by lever",
    )  # fmt: skip


def _remaining(audit: Audit) -> Plot:
    left = [audit.bill_usd]
    for one in audit.levers:
        left.append(left[-1] - one.saving.usd)
    names = ["as logged", *(f"after {NAMES[one.lever]}" for one in audit.levers)]
    with report_figure(6.2, 2.8) as figure:
        axes = figure.subplots()
        axes.barh(range(len(left)), left, height=0.6, color=_BLUE, alpha=0.6, linewidth=0)
        for place, amount in enumerate(left):
            write_beside(axes, place, usd(amount))
        axes.set_xlim(left=0)
        axes.set_xlabel("US dollars")
        axes.locator_params(axis="x", nbins=5)
        name_rows(axes, names)
        svg = svg_element(figure, "Remaining bill", _VARIABLES)
    return Plot(svg, "The bill after each lever, in the order of removal.", "Remaining bill")
