"""Presents both models to lm-eval as language models.

Prompts, constraints, parsers and confidences are those of serving.tasks, and the engine is the
serving engine: a document's text is processed like a client's request. Public tasks of lm-eval are
scored as in lm-eval's own backends.
"""

from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from evals.continuations import continue_text, score_continuations
from evals.definition import INDEX, PREFIX, entities_json
from evals.pair import Side
from serving.contracts.answer import Prediction, Translation
from serving.tasks.classification import log_probability

P = ParamSpec("P")
R = TypeVar("R")


class Models(Protocol):
    """Interface to both models; implemented by evals.pair.Pair."""

    def prediction(self, side: Side, name: str, index: int) -> Prediction:
        """Return a model's answer to an example of a suite."""
        ...

    def call(
        self,
        side: Side,
        function: Callable[Concatenate[Any, P], R],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Call a function in a model's engine."""
        ...


class ServedModel(LM):  # type: ignore[misc]  # untyped upstream
    """The model on one side of a pair."""

    def __init__(self, models: Models, side: Side) -> None:
        super().__init__()
        self._models = models
        self._side = side

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation and whether it is the most likely one."""
        foreign = [item for item in requests if not _ours(item)]
        scored = iter(self._scored([item.args for item in foreign]))
        return [self._label(item) if _ours(item) else next(scored) for item in requests]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Return the answer to each request as generated text."""
        foreign = [item for item in requests if not _ours(item)]
        written = iter(self._continued([item.args for item in foreign]))
        return [
            _as_text(self._prediction(item)) if _ours(item) else next(written) for item in requests
        ]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Raise NotImplementedError: gates do not measure perplexity; quantize --compare does."""
        raise NotImplementedError("a gate does not measure perplexity")

    def _label(self, item: Instance) -> tuple[float, bool]:
        prediction = self._prediction(item)
        assert prediction.label_probabilities is not None
        name = list(prediction.label_probabilities)[item.idx]
        return (
            log_probability(prediction.label_probabilities[name]),
            name == prediction.value,
        )

    def _prediction(self, item: Instance) -> Prediction:
        assert item.task_name is not None
        name = item.task_name.removeprefix(PREFIX)
        return self._models.prediction(self._side, name, item.doc[INDEX])

    def _scored(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        return self._models.call(self._side, score_continuations, pairs) if pairs else []

    def _continued(self, pairs: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        return self._models.call(self._side, continue_text, pairs) if pairs else []


def _ours(item: Instance) -> bool:
    return INDEX in item.doc


def _as_text(prediction: Prediction) -> str:
    if isinstance(prediction.value, Translation):
        return prediction.value.text
    assert isinstance(prediction.value, tuple)
    text = entities_json([(entity.text, entity.type) for entity in prediction.value])
    # A truncated output must not parse as a complete list in lm-eval.
    return text if prediction.valid else text.removesuffix("]")
