"""Renders the report as a few lines of Markdown for logs and pull requests; formats numbers."""

from collections.abc import Iterable

from evals.findings import Findings, LabelRun, overall_verdict
from serving.contracts.attestation import (
    Artifact,
    Certificate,
    Interval,
    Pair,
    Population,
    ReferenceLabels,
    Speed,
    TaskResult,
    Verdict,
)
from serving.reporting.intervals import clopper_pearson

NONE = "–"  # noqa: RUF001  # an en dash for a missing value

HEADINGS = (
    "task",
    "verdict",
    "n",
    "metric",
    "baseline",
    "candidate",
    "difference",
    "margin",
    "flips (lost)",
    "threshold",
    "certified error",
    "coverage",
    "speed",
)


def number(value: float | None, *, signed: bool = False) -> str:
    """Format a value with three decimals, never as a negative zero."""
    if value is None:
        return NONE
    return f"{value:+z.3f}" if signed else f"{value:z.3f}"


def share(value: float | None) -> str:
    """Format a share in [0, 1] as a percentage."""
    return NONE if value is None else f"{value:.1%}"


def bounded(found: Interval | None, *, signed: bool = False) -> str:
    """Format an estimate with its two one-sided bounds."""
    if found is None:
        return NONE
    lower, upper = number(found.lower, signed=signed), number(found.upper, signed=signed)
    return f"{number(found.estimate, signed=signed)} ({lower} to {upper})"


def ratio(speed: Speed | None) -> str:
    """Format a throughput ratio with its bounds."""
    if speed is None:
        return NONE
    if speed.lower is None or speed.upper is None:
        return f"{speed.ratio:.2f}x"
    return f"{speed.ratio:.2f}x ({speed.lower:.2f}-{speed.upper:.2f})"


def size(found: Pair | None) -> str:
    """Format both models' bytes in GB (10^9) and their ratio."""
    if found is None:
        return NONE
    factor = f" ({found.candidate / found.baseline:.2f}x)" if found.baseline else ""
    return f"{found.baseline / 1e9:.2f} GB → {found.candidate / 1e9:.2f} GB{factor}"


def tested(artifact: Artifact) -> str:
    """Format precision and recipe."""
    recipe = "" if artifact.recipe is None else f", recipe {artifact.recipe}"
    return f"{artifact.precision}{recipe}"


def bounded_for(population: Population) -> str:
    """Return like which inputs the error bound holds."""
    return f"the error bound is for inputs like these: {population.sentence}"


def labelled(found: ReferenceLabels) -> str:
    """Return whose answers are the labels, and how they agree with labels that were there."""
    text = f"labels are the answers of {found.model} to {found.n:,} inputs"
    if found.left_out:
        text += f"; {found.left_out:,} more had no usable answer and were not tested"
    if found.compared:
        agreeing = clopper_pearson(found.agreeing, found.compared)
        text += (
            f"; they agree with the inputs' own labels on {found.agreeing:,} of "
            f"{found.compared:,} ({share(found.agreeing / found.compared)}, 95 % "
            f"{share(agreeing.low)} to {share(agreeing.high)})"
        )
    return text


def paid(run: LabelRun) -> str:
    """Return what the labels of a run cost."""
    cost = "an unknown amount" if run.paid_usd is None else f"${run.paid_usd:.4f}"
    batches = f" ({', '.join(run.batches)})" if run.batches else ""
    reused = f"; {run.reused:,} answers were there from earlier runs" if run.reused else ""
    return f"{run.labels:,} labels of {run.reference}: {cost} paid in this run{batches}{reused}"


def threshold(certificate: Certificate | None) -> str:
    """Format the certified confidence threshold, `none` if no threshold is certified."""
    if certificate is None:
        return NONE
    return "none" if certificate.threshold is None else number(certificate.threshold)


def render_markdown(findings: Findings) -> str:
    """Return the verdicts with their reasons as GitHub-flavoured Markdown; one row a task."""
    predicate = findings.predicate
    lines = [
        f"## Gate: {overall_verdict(findings).value}",
        "",
        f"{_text(findings.subject)} ({_text(tested(predicate.artifact))}), digest "
        f"`{findings.digest[:16]}`, against the 16-bit baseline `{predicate.baseline[:16]}`",
        "",
        f"{_text(predicate.engine.name)} {_text(predicate.engine.version)} on "
        f"{_text(predicate.engine.hardware)}, {predicate.date:%Y-%m-%d %H:%M %Z}; weights "
        f"{size(predicate.artifact.weight_bytes)}, memory {size(predicate.artifact.memory_bytes)}",
        "",
        *_table(HEADINGS, [_row(name, f.result) for name, f in findings.tasks.items()]),
        "",
        *_reasons(findings),
        *_labels(findings),
        *_steps(findings),
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, result: TaskResult) -> tuple[str, ...]:
    certificate = result.certificate
    certified = certificate is not None and certificate.threshold is not None
    return (
        name,
        result.verdict.value,
        str(result.suite.n),
        result.metric,
        number(result.baseline),
        number(result.candidate.estimate if result.candidate else None),
        bounded(result.difference, signed=True),
        number(result.margin),
        f"{share(result.flips.rate)} ({result.flips.lost})",
        threshold(certificate),
        f"≤ {share(certificate.bound)}" if certificate and certified else NONE,
        share(certificate.coverage if certificate else None),
        ratio(result.speed),
    )


def _table(headings: Iterable[str], rows: Iterable[tuple[str, ...]]) -> list[str]:
    cells = [tuple(headings), *rows]
    lines = ["| " + " | ".join(map(_text, row)) + " |" for row in cells]
    return [lines[0], "|" + " --- |" * len(cells[0]), *lines[1:]]


def _reasons(findings: Findings) -> list[str]:
    lines = []
    for name, found in findings.tasks.items():
        lines.append(_reason(name, found.result.verdict, found.result.reasons))
        lines += _population(name, found.result)
        lines += _reference(name, found.result)
    for name, check in findings.predicate.general.items():
        detail = f"difference {bounded(check.difference, signed=True)}, n {check.n}"
        reasons = (detail, *check.reasons)
        lines.append(_reason(f"{name} (general check)", check.verdict, reasons))
    return lines


def _population(name: str, result: TaskResult) -> list[str]:
    """Return like which inputs the error bound holds, and how these differ from the suite."""
    if result.population is None:
        return []
    warnings = [
        f"- **{_text(name)}: warning** {_text(sentence)}" for sentence in result.population.warnings
    ]
    return [f"- {_text(name)}: {_text(bounded_for(result.population))}", *warnings]


def _reference(name: str, result: TaskResult) -> list[str]:
    found = result.reference
    return [] if found is None else [f"- {_text(name)}: {_text(labelled(found))}"]


def _labels(findings: Findings) -> list[str]:
    return [] if findings.labels is None else ["", _text(paid(findings.labels))]


def _steps(findings: Findings) -> list[str]:
    """Return the duration of each step of the run, the longest first."""
    if not findings.steps_s:
        return []
    longest = sorted(findings.steps_s.items(), key=lambda step: -step[1])
    steps = ", ".join(f"{_text(name)} {seconds:.0f} s" for name, seconds in longest)
    return ["", f"The run took {sum(findings.steps_s.values()):.0f} s: {steps}"]


def _reason(name: str, verdict: Verdict, reasons: tuple[str, ...]) -> str:
    return f"- **{_text(name)}: {verdict.value}** {_text('; '.join(reasons))}".rstrip()


def _text(text: str) -> str:
    """Escape text for one Markdown table cell."""
    for mark in "\\|`*[]":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())
