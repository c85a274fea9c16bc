"""Classification: the label's probability read from the logits, without generating."""

from serving.contracts.answer import Prediction, TaskRequest
from serving.contracts.engine import EngineOutput, ScoreOutput, ScoreWork
from serving.contracts.task_spec import ClassificationSpec
from serving.tasks.label_trie import LabelTrie
from serving.tasks.prompt import PromptFrame, PromptTokenizer, cleaned
from serving.tasks.window import refuse_frame_over_window


class ClassificationTask:
    """One label for a text. Raw confidence: the probability of the chosen label."""

    def __init__(
        self, spec: ClassificationSpec, tokenizer: PromptTokenizer, max_model_len: int
    ) -> None:
        self.spec = spec
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
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
        # Room for the deepest scoring point and the one token that vLLM always samples.
        self._reserve = 1 + max(len(point.suffix) for point in self._trie.points)
        refuse_frame_over_window(spec.name, self._frame, self._reserve, max_model_len)

    def plan(self, request: TaskRequest) -> ScoreWork:
        """Return the scoring of every point where labels differ. Raises InvalidRequest."""
        ids = self._tokenizer.encode(cleaned(request.text))
        prompt = self._frame.assemble(ids, self._max_model_len, self._reserve)
        return ScoreWork(prompt, self._trie.points)

    def read(self, request: TaskRequest, output: EngineOutput) -> Prediction:
        """Return the most probable label with the probabilities of all."""
        assert isinstance(output, ScoreOutput)
        probabilities = self._trie.probabilities(output.logprobs)
        named = {
            label.name: probability
            for label, probability in zip(self.spec.labels, probabilities, strict=True)
        }
        best = max(named, key=named.__getitem__)
        return Prediction(value=best, label_probabilities=named, confidence=min(named[best], 1.0))
