"""Classification: label probabilities from the model's logits, without generation."""

import math
from collections.abc import Mapping, Sequence

from serving.contracts.answer import Prediction, TaskRequest
from serving.contracts.engine import EngineOutput, ScoreOutput, ScoreWork
from serving.contracts.task_spec import ClassificationSpec
from serving.tasks.label_trie import LabelTrie
from serving.tasks.prompt import PromptFrame, PromptTokenizer, cleaned, longest_input


class ClassificationTask:
    """Gives a text one label. Raw confidence: the probability of that label.

    label_offsets: subtracted from the labels' log-probabilities, nats. They correct the model's
    preference for some labels independent of the text; a gate measures and attests them.
    """

    def __init__(
        self,
        spec: ClassificationSpec,
        tokenizer: PromptTokenizer,
        max_model_len: int,
        label_offsets: Mapping[str, float] | None = None,
    ) -> None:
        self.spec = spec
        self._offsets = label_offsets
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._max_chars = longest_input(tokenizer, max_model_len)
        verbalizers = {label.name: label.verbalizer for label in spec.labels}
        self._frame = PromptFrame.build(
            tokenizer,
            spec.instruction,
            [(example.text, verbalizers[example.label]) for example in spec.examples],
        )
        self._trie = LabelTrie.build(
            [tokenizer.encode(label.verbalizer) for label in spec.labels],
            tokenizer.end_of_turn_id,
        )
        # For the deepest scoring point and the one token that vLLM always samples.
        self._reserve = 1 + max(len(point.suffix) for point in self._trie.points)
        self._frame.require_space(spec.name, self._reserve, max_model_len)

    def plan(self, request: TaskRequest) -> ScoreWork:
        """Return the scoring of every point at which labels differ. Raises InvalidRequest."""
        ids = self._tokenizer.encode(cleaned(request.text, self._max_chars))
        prompt = self._frame.assemble(ids, self._max_model_len, self._reserve)
        return ScoreWork(prompt, self._trie.points)

    def read(self, request: TaskRequest, output: EngineOutput) -> Prediction:
        """Return the most probable label and the probabilities of all labels."""
        assert isinstance(output, ScoreOutput)
        probabilities = self._trie.probabilities(output.logprobs)
        named = {
            label.name: probability
            for label, probability in zip(self.spec.labels, probabilities, strict=True)
        }
        if self._offsets is not None:
            named = without_offsets(named, self._offsets)
        best = max(named, key=named.__getitem__)
        return Prediction(value=best, label_probabilities=named, confidence=min(named[best], 1.0))


def label_offsets(predictions: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return each label's mean log-probability over predictions for balanced texts, in nats.

    predictions: label probabilities without offsets, at least one; true labels are not needed.
    Source: Zhou et al., "Batch Calibration", ICLR 2024, with the mean of logarithms. Raises
    ValueError where there are no predictions.
    """
    if not predictions:
        raise ValueError("no predictions to average")
    return {
        label: sum(log_probability(found[label]) for found in predictions) / len(predictions)
        for label in predictions[0]
    }


def without_offsets(
    probabilities: Mapping[str, float], offsets: Mapping[str, float]
) -> dict[str, float]:
    """Return label probabilities corrected by the offsets. They sum to 1."""
    shifted = {label: log_probability(p) - offsets[label] for label, p in probabilities.items()}
    highest = max(shifted.values())
    weights = {label: math.exp(value - highest) for label, value in shifted.items()}
    total = sum(weights.values())
    return {label: weight / total for label, weight in weights.items()}


def log_probability(probability: float) -> float:
    """Return the natural logarithm of a probability, at least log(1e-12)."""
    # A small probability may have been rounded to 0.
    return math.log(max(probability, 1e-12))
