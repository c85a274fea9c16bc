"""Translation: greedy generation, bounded by the input's length."""

import math

from serving.contracts.answer import Prediction, TaskRequest, Translation
from serving.contracts.engine import EngineOutput, GenerateOutput, GenerateWork
from serving.contracts.errors import UnknownLanguage
from serving.contracts.task_spec import TranslationSpec
from serving.tasks.confidence import sequence_confidence
from serving.tasks.language import LanguageDetector, LinguaDetector
from serving.tasks.prompt import PromptFrame, PromptTokenizer, cleaned
from serving.tasks.window import refuse_frame_over_window

_OUTPUT_TOKENS_BASE = 16


class TranslationTask:
    """A text into another language. Raw confidence: as for extraction, over the output tokens."""

    def __init__(
        self,
        spec: TranslationSpec,
        tokenizer: PromptTokenizer,
        max_model_len: int,
        detector: LanguageDetector | None = None,
    ) -> None:
        self.spec = spec
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._detector = detector or LinguaDetector(spec.languages)
        self._frames = {
            (source, target): self._frame(source, target)
            for source in spec.languages
            for target in spec.languages
            if source != target
        }
        for frame in self._frames.values():
            refuse_frame_over_window(spec.name, frame, _OUTPUT_TOKENS_BASE, max_model_len)

    def plan(self, request: TaskRequest) -> GenerateWork:
        """Return a generation that stops at the end of the translation. Raises InvalidRequest."""
        text = cleaned(request.text)
        source, target = self.direction(request)
        ids = self._tokenizer.encode(text)
        bound = min(
            self.spec.max_output_tokens,
            _OUTPUT_TOKENS_BASE + math.ceil(self.spec.output_tokens_per_input_token * len(ids)),
        )
        prompt = self._frames[source, target].assemble(ids, self._max_model_len, bound)
        # A translation has as many lines as its source: what a single line is followed by is
        # talk about the translation.
        stop = () if "\n" in text else ("\n",)
        return GenerateWork(prompt, max_tokens=bound, stop=stop)

    def direction(self, request: TaskRequest) -> tuple[str, str]:
        """Return source and target language.

        Raises UnknownLanguage for a language not offered, none given, none detected, or twice
        the same.
        """
        offered = ", ".join(self.spec.languages)
        target = request.target_language
        if target not in self.spec.languages:
            raise UnknownLanguage(
                "target_language is missing" if target is None else f"no language {target!r} here",
                field="target_language",
                fix=f"use one of: {offered}",
            )
        source = request.source_language or self._detector.detect(request.text)
        if source is None:
            raise UnknownLanguage(
                "the input's language could not be detected",
                field="source_language",
                fix=f"name it; one of: {offered}",
            )
        if source not in self.spec.languages:
            raise UnknownLanguage(
                f"no language {source!r} here",
                field="source_language",
                fix=f"use one of: {offered}",
            )
        if source == target:
            raise UnknownLanguage(
                f"source and target language are both {target!r}"
                + ("" if request.source_language else " (the source was detected)"),
                field="target_language",
                fix="name two different languages, or name source_language where it was detected",
            )
        return source, target

    def read(self, request: TaskRequest, output: EngineOutput) -> Prediction:
        """Return the translation; one that was cut at its bound or is empty is not valid."""
        assert isinstance(output, GenerateOutput)
        source, target = self.direction(request)
        text = output.text.strip()
        notes = []
        if output.finish_reason == "length":
            notes.append("the output was cut at its bound")
        if not text:
            notes.append("the output is empty")
        return Prediction(
            value=Translation(
                text=text,
                source_language=source,
                target_language=target,
                source_detected=request.source_language is None,
            ),
            confidence=sequence_confidence(output.token_logprobs),
            valid=not notes,
            notes=tuple(notes),
        )

    def _frame(self, source: str, target: str) -> PromptFrame:
        names = self.spec.languages
        instruction = self.spec.instruction.replace("{source}", names[source]).replace(
            "{target}", names[target]
        )
        shots = [(example[source], example[target]) for example in self.spec.examples]
        return PromptFrame.build(self._tokenizer, instruction, shots)
