"""The plot of a claim's course, as inline SVG."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from serving.evidence.history import Period
from serving.reporting.figures import MUTED, report_figure, svg_element

HELD, SUSPENDED, TARGET = "#0969da", "#cf222e", "#9a6700"
VARIABLES: Mapping[str, str] = {HELD: "held", SUSPENDED: "suspended", TARGET: "target"}
"""CSS variables by the colour that is drawn, so that the page selects the light or dark theme."""

_SHADE = {"held": HELD, "suspended": SUSPENDED, "withdrawn": SUSPENDED}


def course_plot(title: str, periods: Sequence[Period], target_error: float) -> str:
    """Return the error of accepted answers with its confidence sequence, and the states."""
    with report_figure(9.6, 3.4) as figure:
        axes = figure.subplots()
        for before, period in zip((None, *periods), periods, strict=False):
            # Another hypothesis that is claimed instead is no other state.
            _state(axes, period, is_new=before is None or before.state != period.state)
            _sequence(axes, period)
        axes.axhline(target_error, color=TARGET, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate(
            f"target {target_error:.0%}", (1.0, target_error), xycoords=("axes fraction", "data"),
            xytext=(-2, 3), textcoords="offset points", ha="right", color=TARGET, fontsize=8.5,
        )  # fmt: skip
        axes.set_xlim(0, max(1, periods[-1].end))
        axes.set_ylim(0.0, _most(periods, target_error))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.grid(visible=True, axis="y")
        axes.set_xlabel("inputs of the claim that were compared with the reference")
        axes.set_ylabel("error of accepted answers")
        return svg_element(figure, title, VARIABLES)


def _state(axes: Axes, period: Period, *, is_new: bool) -> None:
    colour = _SHADE.get(period.state, MUTED)
    end = max(period.end, period.begin)
    axes.axvspan(period.begin, end, color=colour, alpha=0.10, linewidth=0)
    if not is_new:
        axes.axvline(period.begin, color=colour, linewidth=0.7, linestyle=":")
        return
    if period.begin:
        axes.axvline(period.begin, color=colour, linewidth=0.9)
    axes.annotate(
        period.state.replace("_", " "), (period.begin, 1.0), xycoords=("data", "axes fraction"),
        xytext=(3, 3), textcoords="offset points", fontsize=8.5, color=colour,
    )  # fmt: skip


def _sequence(axes: Axes, period: Period) -> None:
    if not period.points:
        return
    numbers = [point.number for point in period.points]
    axes.fill_between(
        numbers, [p.low for p in period.points], [p.high for p in period.points],
        color=HELD, alpha=0.22, linewidth=0,
    )  # fmt: skip
    axes.plot(numbers, [point.error for point in period.points], color=HELD, linewidth=1.6)


def _most(periods: Sequence[Period], target_error: float) -> float:
    """Return the top of the error axis: wide first intervals need not fit."""
    errors = [point.error for period in periods for point in period.points[10:]]
    return min(1.0, max([2.5 * target_error, 0.1, *(1.3 * error for error in errors)]))
