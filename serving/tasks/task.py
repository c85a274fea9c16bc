"""The protocol of a task, and which class implements which kind of spec."""

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
    """A spec bound to a model's tokenizer and window.

    Both methods are pure computation. `plan` takes time in proportion to the input's length:
    run it in a thread for long inputs.
    """

    @property
    def spec(self) -> TaskSpec:
        """Return the spec."""
        ...

    def plan(self, request: TaskRequest) -> EngineWork:
        """Turn a request into work for the engine. Raises InvalidRequest."""
        ...

    def read(self, request: TaskRequest, output: EngineOutput) -> Prediction:
        """Turn the engine's output into a prediction; unreadable output is `valid=False`."""
        ...


def bind(
    spec: TaskSpec,
    tokenizer: PromptTokenizer,
    max_model_len: int,
    label_offsets: Mapping[str, float] | None = None,
) -> Task:
    """Return the task of a spec for a model.

    max_model_len: the model's window in tokens. label_offsets: for classifications, as attested.
    Raises InvalidTaskSpec when the spec cannot work with this tokenizer or window.
    """
    match spec:
        case ClassificationSpec():
            return ClassificationTask(spec, tokenizer, max_model_len, label_offsets)
        case ExtractionSpec():
            return ExtractionTask(spec, tokenizer, max_model_len)
        case TranslationSpec():
            return TranslationTask(spec, tokenizer, max_model_len)
