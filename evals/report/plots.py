"""The plots of a gate's report, as inline SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import PercentFormatter

from evals.report.curves import Bin, Confusion, RiskPoint
from evals.report.markdown import bounded, ratio
from serving.contracts.attestation import Certificate, Interval, Speed, Verdict
from serving.reporting.figures import (
    INK,
    MUTED,
    name_rows,
    report_figure,
    shortened,
    svg_element,
    write_beside,
)

BEFORE, AFTER = "#8b6914", "#0969da"
COLOURS = {Verdict.PASS: "#1a7f37", Verdict.FAIL: "#cf222e", Verdict.INCONCLUSIVE: "#9a6700"}
VARIABLES = {
    BEFORE: "before",
    AFTER: "after",
    **{colour: verdict.value for verdict, colour in COLOURS.items()},
}
"""CSS variables by plotted colour; the page sets them for the light and the dark theme."""

LABELS_WITH_NUMBERS = 12
"""Largest number of labels for which a confusion matrix shows counts in its cells."""

_NAME_CHARS = 24


@dataclass(frozen=True, slots=True)
class ForestRow:
    """One line of the forest plot. margin: in the metric's units, None if none is stated."""

    name: str
    verdict: Verdict
    difference: Interval | None
    margin: float | None


def forest(rows: Sequence[ForestRow]) -> str:
    """Plot every paired difference with its bounds; the area beyond the margin is shaded."""
    with report_figure(9.6, 0.9 + 0.36 * len(rows)) as figure:
        axes = figure.subplots()
        start, end = _forest_range(rows)
        for position, row in enumerate(rows):
            if row.margin is not None:
                axes.barh(position, -row.margin - start, left=start, height=0.8,
                          color=COLOURS[Verdict.FAIL], alpha=0.13, linewidth=0)  # fmt: skip
                axes.vlines(-row.margin, position - 0.4, position + 0.4,
                            color=COLOURS[Verdict.FAIL], linewidth=1.6)  # fmt: skip
            _forest_interval(axes, position, row)
        axes.axvline(0.0, color=MUTED, linewidth=0.9)
        axes.set_xlim(start, end)
        name_rows(axes, _short([row.name for row in rows]))
        axes.set_xlabel("candidate - baseline, in units of each metric")
        return _svg(figure, "Paired differences with their bounds against the margins")


def _forest_range(rows: Sequence[ForestRow]) -> tuple[float, float]:
    shown = [row.difference for row in rows if row.difference is not None]
    least = min([-0.01, *(-row.margin for row in rows if row.margin), *(d.lower for d in shown)])
    most = max([0.01, *(d.upper for d in shown)])
    return least - 0.12 * (most - least), most + 0.06 * (most - least)


def _forest_interval(axes: Axes, position: int, row: ForestRow) -> None:
    colour = COLOURS[row.verdict]
    if row.difference is not None:
        found = row.difference
        axes.hlines(position, found.lower, found.upper, color=colour, linewidth=2.0)
        axes.vlines([found.lower, found.upper], position - 0.13, position + 0.13,
                    color=colour, linewidth=2.0)  # fmt: skip
        axes.plot(found.estimate, position, "o", color=colour, markersize=5.5)
    text = "not computed" if row.difference is None else bounded(row.difference, signed=True)
    write_beside(axes, position, f"{text}  {row.verdict.value}", colour)


def reliability_diagram(
    name: str, before: Sequence[Bin], after: Sequence[Bin], ece: tuple[float | None, float | None]
) -> str:
    """Plot accuracy over confidence, raw and calibrated, with the number of answers in each bin.

    ece: before and after calibration. A panel without data shows "no data".
    """
    with report_figure(6.3, 3.7) as figure:
        grid = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[4, 1])
        panels = (("raw", before, BEFORE, ece[0]), ("calibrated", after, AFTER, ece[1]))
        for column, (word, bins, colour, error) in enumerate(panels):
            _reliability_panel(grid[0, column], bins, colour)
            ending = "" if error is None else f", ECE {error:.3f}"
            grid[0, column].set_title(f"{word} confidence{ending}")
            counts = grid[1, column]
            widths = [b.end - b.start for b in bins]
            counts.bar([b.start for b in bins], [b.count for b in bins], width=widths, align="edge",
                       color=colour, alpha=0.45, linewidth=0)  # fmt: skip
            counts.set_xlabel("confidence")
            counts.locator_params(axis="y", nbins=2, integer=True)
        grid[0, 0].set_ylabel("share right")
        grid[1, 0].set_ylabel("answers")
        return _svg(figure, f"Reliability of {name} before and after calibration")


def _reliability_panel(axes: Axes, bins: Sequence[Bin], colour: str) -> None:
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xticks=[0, 0.5, 1])
    axes.grid(visible=True)
    middles = [b.confidence for b in bins]
    axes.vlines(middles, [b.lower for b in bins], [b.upper for b in bins], color=colour)
    axes.plot(middles, [b.accuracy for b in bins], "o", color=colour, markersize=4.5)
    if not bins:
        axes.text(0.5, 0.5, "no data", ha="center", color=MUTED)


def risk_coverage_plot(
    name: str, points: Sequence[RiskPoint], certificate: Certificate | None, target: float
) -> str:
    """Plot the error rate among accepted answers, with its bound, over coverage.

    points: from strict to permissive, at least one. target: error rate to certify.
    """
    with report_figure(4.4, 3.7) as figure:
        axes = figure.subplots()
        coverage = [point.coverage for point in points]
        axes.plot(coverage, [point.risk for point in points], color=AFTER, label="errors",
                  marker=".", markersize=4)  # fmt: skip
        axes.plot(coverage, [point.bound for point in points], color=AFTER, linewidth=1.0,
                  linestyle=(0, (4, 2)), label="95 % upper bound")  # fmt: skip
        axes.axhline(target, color=COLOURS[Verdict.FAIL], linewidth=1.2, label="target error")
        if certificate is not None and certificate.threshold is not None:
            axes.plot(certificate.coverage, certificate.bound, "D", markersize=7,
                      color=COLOURS[Verdict.PASS], label="certified")  # fmt: skip
        axes.set(xlim=(0, 1.02), ylim=(0, min(1.0, 1.5 * max(target, points[-1].bound))))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.grid(visible=True)
        axes.set(xlabel="coverage: share of answers accepted", ylabel="errors among accepted")
        figure.legend(loc="outside upper left", ncols=2)
        return _svg(figure, f"Error over coverage of {name}")


def confusion_plot(name: str, baseline: Confusion, candidate: Confusion) -> str:
    """Plot both models' confusion matrices, shaded by the share of the expected label."""
    labels = baseline.labels
    side = min(max(3.0, 1.4 + 0.42 * len(labels)), 9.0)
    with report_figure(2 * side + 0.6, side) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, word, found in zip(
            panels, ("baseline", "candidate"), (baseline, candidate), strict=True
        ):
            _matrix(axes, found)
            axes.set_title(word)
            axes.set_xlabel("answered")
        panels[0].set_ylabel("expected")
        # 4 points a label avoid overlaps with up to 150 labels.
        size = min(9.0, 60.0 * side / len(labels))
        panels[0].set_yticks(range(len(labels)), labels=_short(labels), parse_math=False)
        for axes in panels:
            axes.tick_params(labelsize=size)
        return _svg(figure, f"Confusion matrices of {name}")


def _matrix(axes: Axes, found: Confusion) -> None:
    n = len(found.labels)
    shares = found.shares
    for row, column in np.argwhere(found.counts > 0).tolist():
        colour = AFTER if row == column else COLOURS[Verdict.FAIL]
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=colour, linewidth=0,
                                 alpha=0.08 + 0.5 * float(shares[row, column])))  # fmt: skip
    if n <= LABELS_WITH_NUMBERS:
        for row in range(n):
            for column in range(n):
                axes.text(column, row, str(found.counts[row, column]), ha="center", va="center")
    axes.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), aspect="equal")
    axes.spines[:].set_visible(True)
    axes.tick_params(length=0)
    # Short labels fit below their cells horizontally, longer ones only vertically.
    upright = max(map(len, _short(found.labels))) * n > 36
    axes.set_xticks(range(n), labels=_short(found.labels), parse_math=False,
                    rotation=90 if upright else 0)  # fmt: skip


def speed_plot(speeds: Mapping[str, Speed]) -> str:
    """Plot the throughput ratios with their bounds, and the required ratio."""
    with report_figure(9.6, 0.9 + 0.36 * len(speeds)) as figure:
        axes = figure.subplots()
        for position, speed in enumerate(speeds.values()):
            axes.barh(position, speed.ratio, height=0.5, color=AFTER, alpha=0.45, linewidth=0)
            if speed.lower is not None and speed.upper is not None:
                axes.hlines(position, speed.lower, speed.upper, color=INK, linewidth=1.2)
                ends = [speed.lower, speed.upper]
                axes.vlines(ends, position - 0.12, position + 0.12, color=INK)
            axes.vlines(speed.required, position - 0.4, position + 0.4,
                        color=COLOURS[Verdict.FAIL], linewidth=1.6)  # fmt: skip
            write_beside(axes, position, ratio(speed), INK)
        axes.axvline(1.0, color=MUTED, linewidth=0.9)
        axes.set_xlim(left=0.0)
        name_rows(axes, _short(list(speeds)))
        axes.set_xlabel("throughput, candidate / baseline")
        return _svg(figure, "Throughput of the candidate relative to the baseline")


def _short(names: Sequence[str]) -> list[str]:
    return [shortened(name, _NAME_CHARS) for name in names]


def _svg(figure: Figure, title: str) -> str:
    return svg_element(figure, title, VARIABLES)
