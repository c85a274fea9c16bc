"""The accuracy of the router's task detection."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from serving.routing.corpus import LabelledPrompt
from serving.routing.evaluation.intervals import Share, wilson
from serving.routing.evaluation.samples import Sample
from serving.routing.narrow import Detection


@dataclass(frozen=True, slots=True)
class Outcome:
    """One prompt. expected, found: task or None. exact: the payload was found exactly."""

    expected: str | None
    found: str | None
    exact: bool
    source: str


@dataclass(frozen=True, slots=True)
class TaskFigures:
    """precision: of the prompts taken for the task, those that are it with the right payload.

    recall: of the task's prompts, those that were taken for it with the right payload.
    """

    precision: Share
    recall: Share


@dataclass(frozen=True, slots=True)
class DetectionReport:
    """Figures of each task, of all tasks, and of prompts without a task by their source.

    wrongly_narrow: share of those for which a task was found.
    """

    tasks: Mapping[str, TaskFigures]
    overall: TaskFigures
    wrongly_narrow: Mapping[str, Share]


def outcome(row: LabelledPrompt | Sample, detection: Detection) -> Outcome:
    """Compare a detection with its prompt's labels."""
    found = detection.request
    source = row.kind if isinstance(row, LabelledPrompt) else row.source
    exact = found is not None and (row.payload is None or found.text == row.payload)
    return Outcome(row.task, found.task if found else None, exact, source)


def detection_report(outcomes: Sequence[Outcome]) -> DetectionReport:
    """Sum up outcomes."""
    names = sorted({one.expected for one in outcomes if one.expected})
    others = [one for one in outcomes if one.expected is None]
    sources = Counter(one.source for one in others)
    return DetectionReport(
        {name: _figures(outcomes, {name}) for name in names},
        _figures(outcomes, {one.found for one in outcomes if one.found} | set(names)),
        {
            source: wilson(sum(o.found is not None for o in others if o.source == source), count)
            for source, count in sources.items()
        }
        | {"all": wilson(sum(one.found is not None for one in others), len(others))},
    )


def _figures(outcomes: Iterable[Outcome], names: set[str]) -> TaskFigures:
    found = [one for one in outcomes if one.found in names]
    there = [one for one in outcomes if one.expected in names]
    right = sum(one.found == one.expected and one.exact for one in found)
    return TaskFigures(wilson(right, len(found)), wilson(right, len(there)))
