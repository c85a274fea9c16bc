"""The protocol of a task, and the class that implements each kind of spec."""

from collections.abc import Mapping
from typing import Protocol

from serving.contracts.answer import Prediction, TaskRequest
from serving.contracts.engine import EngineOutput, EngineWork
from serving.contracts.task_spec import (
    ClassificationSpec,
    ExtractionSpec,
    TaskSpec,
    TranslationSpec,
)
from serving.tasks.classification import ClassificationTask
from serving.tasks.extraction import ExtractionTask
from serving.tasks.prompt import PromptTokenizer
from serving.tasks.translation import TranslationTask


class Task(Protocol):
    """A spec bound to a model's tokenizer and context window.

    Both methods are pure. `plan` takes time linear in the input's length: call it in a thread for
    long inputs, and where `must_load` says so.
    """

    @property
    def spec(self) -> TaskSpec:
        """Return the spec."""
        ...

    def plan(self, request: TaskRequest) -> EngineWork:
        """Return a request's work for the engine. Raises InvalidRequest."""
        ...

    def read(self, request: TaskRequest, output: EngineOutput) -> Prediction:
        """Return the prediction in an engine's output; `valid` is False for unreadable output."""
        ...


def must_load(task: Task, request: TaskRequest) -> bool:
    """Return whether `plan` would load what it needs first, which takes up to a second."""
    return isinstance(task, TranslationTask) and task.must_load(request)


def bind(
    spec: TaskSpec,
    tokenizer: PromptTokenizer,
    max_model_len: int,
    label_offsets: Mapping[str, float] | None = None,
) -> Task:
    """Bind a spec to a model.

    max_model_len: the model's context window, tokens. label_offsets: of a classification, as
    attested. Raises InvalidTaskSpec where the spec does not fit this tokenizer or window.
    """
    match spec:
        case ClassificationSpec():
            return ClassificationTask(spec, tokenizer, max_model_len, label_offsets)
        case ExtractionSpec():
            return ExtractionTask(spec, tokenizer, max_model_len)
        case TranslationSpec():
            return TranslationTask(spec, tokenizer, max_model_len)
