"""A task's answer to a chat beside the reference's, where both have the same form. Pure.

Stricter than serving.tasks.frontier_answer: what stands around an answer may be what the client
asked for, so that a text with more than the answer needs a judge.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from serving.contracts.answer import TaskRequest, Translation, Value
from serving.contracts.errors import FrontierInvalidResponse
from serving.contracts.task_spec import (
    ClassificationSpec,
    ExtractionSpec,
    TranslationSpec,
    folded_name,
)
from serving.tasks.frontier_answer import read_frontier
from serving.tasks.loss import loss_of
from serving.tasks.task import Task

_MARKUP = " \t\r\n*_`\"'“”„«».!"
_FENCED = re.compile(r"\s*```[^\n`]*\n(.*?)\n\s*```\s*", re.DOTALL)
_LENGTHS = (0.6, 1.6)
"""Of a translation, as multiples of the reference's: beyond them one of the two says more."""


@dataclass(frozen=True, slots=True)
class ReadTask:
    """A chat's task, as the router read it. labels: see Decision."""

    task: Task
    request: TaskRequest
    labels: Mapping[str, str] | None


def loss_in_form(read: ReadTask, value: Value, text: str) -> float | None:
    """Return the loss of a task's answer against a text that is such an answer and nothing else.

    None for every other text. A translation in other words than the reference's needs a judge, too.
    """
    spec = read.task.spec
    match spec:
        case ClassificationSpec():
            label = _label(spec, read.labels, text)
            return None if label is None else loss_of(spec, value, label)
        case ExtractionSpec():
            right = _entities(read, text)
            if right is None:
                return None
            return loss_of(spec, _wanted(value, read.labels), _wanted(right, read.labels))
        case TranslationSpec():
            assert isinstance(value, Translation)
            text = text.strip()
            least, most = (factor * len(text) for factor in _LENGTHS)
            if not least <= len(value.text) <= most:
                return None
            return 0.0 if loss_of(spec, value, text) == 0.0 else None


def _label(spec: ClassificationSpec, words: Mapping[str, str] | None, text: str) -> str | None:
    """Return the label that is the whole text, in its own or the client's word; None for none."""
    written = folded_name(text.strip(_MARKUP))
    names = {label.name for label in spec.labels if folded_name(label.name) == written}
    names |= {label.name for label in spec.labels if folded_name(label.verbalizer) == written}
    names |= {name for name, word in (words or {}).items() if folded_name(word) == written}
    return names.pop() if len(names) == 1 else None


def _entities(read: ReadTask, text: str) -> Value | None:
    """Return the entities of a text that is a JSON list of them; None for others."""
    fenced = _FENCED.fullmatch(text)
    try:
        items = json.loads(text if fenced is None else fenced[1])
    except (ValueError, RecursionError):
        return None
    if not isinstance(items, list):
        return None
    try:
        found = read_frontier(read.task, read.request, json.dumps(items), "stop")
    except FrontierInvalidResponse:
        return None
    return found.value if found.valid else None


def _wanted(value: Value, labels: Mapping[str, str] | None) -> Value:
    """Return the entities that the client asked for."""
    assert isinstance(value, tuple)
    return tuple(item for item in value if labels is None or item.type in labels)
