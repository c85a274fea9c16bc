"""Renders the report as one HTML file without scripts or external resources."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from evals.findings import Findings, Outcome, OwnOutcome, TaskFindings, overall_verdict
from evals.report import curves, markdown, plots
from serving.contracts.task_spec import ClassificationSpec
from serving.reporting.page import Plot, page_environment

TEMPLATE = "report.html.j2"

SHOWN_FLIPS = 50
"""Number of changed answers shown for a task, lost ones first."""

SHOWN_CHARS = 300
"""Number of characters shown of a text or an answer."""


@dataclass(frozen=True, slots=True)
class Section:
    """One task with its plots. slice_counts: examples by slice; flips: all changed answers."""

    name: str
    found: TaskFindings
    plots: tuple[Plot, ...]
    slice_counts: Counter[str | None]
    flips: Sequence[curves.Flip]


def render_html(findings: Findings, *, texts: bool = True) -> str:
    """Return the report as a self-contained page; the same findings give the same string.

    texts: whether to show inputs and answers of the changed examples, or only their ids.
    """
    template = page_environment("evals.report", _FILTERS).get_template(TEMPLATE)
    return template.render(
        findings=findings,
        predicate=findings.predicate,
        overall_verdict=overall_verdict(findings),
        summary=list(_summary_plots(findings)),
        sections=[_section(name, found) for name, found in findings.tasks.items()],
        texts=texts,
        shown_flips=SHOWN_FLIPS,
        nothing=markdown.NONE,
    )


def shorten(text: str) -> str:
    """Return a text cut to SHOWN_CHARS characters."""
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 1] + "…"


_FILTERS: dict[str, Callable[..., str]] = {
    "number": markdown.number,
    "share": markdown.share,
    "bounded": markdown.bounded,
    "ratio": markdown.ratio,
    "size": markdown.size,
    "threshold": markdown.threshold,
    "tested": markdown.tested,
    "labelled": markdown.labelled,
    "paid": markdown.paid,
    "shorten": shorten,
}


def _summary_plots(findings: Findings) -> Iterator[Plot]:
    rows = [
        plots.ForestRow(name, found.result.verdict, found.result.difference, found.result.margin)
        for name, found in findings.tasks.items()
    ]
    rows += [
        plots.ForestRow(f"{name} (general)", check.verdict, check.difference, check.margin)
        for name, check in findings.predicate.general.items()
    ]
    if rows:
        yield Plot(
            plots.forest(rows),
            "Difference to the baseline on the same examples, with one-sided 95 % bounds. Non-"
            "inferior: the whole interval lies right of the shaded area, which begins at the "
            "non-inferiority margin. Colours show the verdicts, which depend on further checks as "
            "well.",
        )
    speeds = {name: f.result.speed for name, f in findings.tasks.items() if f.result.speed}
    if speeds:
        yield Plot(
            plots.speed_plot(speeds),
            "Throughput ratio: geometric mean over the timed blocks of examples, whiskers at its "
            "one-sided 95 % bounds. The thick tick is the lowest acceptable ratio, the thin line "
            "the baseline.",
        )


def _section(name: str, found: TaskFindings) -> Section:
    return Section(
        name=name,
        found=found,
        plots=tuple(_task_plots(name, found)),
        slice_counts=Counter(outcome.slice for outcome in found.outcomes),
        flips=curves.flips(found.outcomes),
    )


def _task_plots(name: str, found: TaskFindings) -> Iterator[Plot]:
    half = found.own_outcomes or curves.certification_half(found.outcomes)
    tested = "Own inputs." if found.own_outcomes else "Certification half."
    if half:
        yield _reliability(name, found, half, tested)
    calibrated = [(o.calibrated, o.candidate_right) for o in half if o.calibrated is not None]
    if calibrated:
        points = curves.risk_coverage(
            [c for c, _ in calibrated], [right for _, right in calibrated]
        )
        yield Plot(
            plots.risk_coverage_plot(
                name, points, found.result.certificate, found.spec.target_error
            ),
            f"{tested} Stricter thresholds lie to the left; each bound holds for its own "
            "threshold only; the certificate holds for the chosen threshold.",
        )
    if isinstance(found.spec, ClassificationSpec) and found.outcomes:
        labels = [label.name for label in found.spec.labels]
        yield Plot(
            plots.confusion_plot(
                name,
                curves.confusion(labels, found.outcomes, "baseline"),
                curves.confusion(labels, found.outcomes, "candidate"),
            ),
            "All examples. Rows are expected labels, columns answers; shading is the share of the "
            "row, blue where the answer is right.",
        )


def _reliability(
    name: str, found: TaskFindings, half: Sequence[Outcome | OwnOutcome], tested: str
) -> Plot:
    calibrated = [(o.calibrated, o.candidate_right) for o in half if o.calibrated is not None]
    svg = plots.reliability_diagram(
        name,
        curves.reliability([o.raw for o in half], [o.candidate_right for o in half]),
        curves.reliability([c for c, _ in calibrated], [right for _, right in calibrated]),
        (found.result.ece_before, found.result.ece_after),
    )
    return Plot(
        svg,
        f"{tested} On the diagonal, confidence is the share of right answers; vertical "
        "lines are one-sided 95 % Clopper-Pearson bounds.",
    )
