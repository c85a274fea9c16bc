"""Translation: greedy generation, bounded by the input's length."""

import math
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from serving.contracts.answer import Prediction, TaskRequest, Translation
from serving.contracts.engine import EngineOutput, GenerateOutput, GenerateWork
from serving.contracts.errors import UnknownLanguage
from serving.contracts.task_spec import TranslationSpec
from serving.tasks.blank_text import is_blank
from serving.tasks.confidence import sequence_confidence
from serving.tasks.prompt import PromptFrame, PromptTokenizer, cleaned, longest_input
from serving.tasks.translation_check import Losses, losses

if TYPE_CHECKING:
    import lingua

_OUTPUT_TOKENS_BASE = 16
# Longer texts take longer and give the same language.
_DETECTION_CHARS = 2000


class LanguageDetector(Protocol):
    """Detects the language of a text."""

    @property
    def loaded(self) -> bool:
        """Return whether a detection has nothing to load first."""
        ...

    def detect(self, text: str) -> str | None:
        """Return an ISO 639-1 code, or None where the text gives no evidence."""
        ...


class LinguaDetector:
    """Language detection with lingua, restricted to some languages.

    codes: ISO 639-1. The first detection loads the models, which takes 0.6 s and 110 MB for four
    languages; from then on one takes about 0.1 ms for a short text. Safe to use in threads.
    """

    def __init__(self, codes: Iterable[str]) -> None:
        self._codes = tuple(codes)
        self._loading = threading.Lock()
        self._detector: lingua.LanguageDetector | None = None

    @property
    def loaded(self) -> bool:
        """Return whether the models are loaded."""
        return self._detector is not None

    def detect(self, text: str) -> str | None:
        """Return the most likely language, or None where the text has no letters. Blocking until
        the models are loaded.
        """
        with self._loading:
            detector = self._detector = self._detector or _preloaded(self._codes)
        language = detector.detect_language_of(text[:_DETECTION_CHARS])
        return None if language is None else str(language.iso_code_639_1.name.lower())


def _preloaded(codes: Iterable[str]) -> "lingua.LanguageDetector":
    from lingua import IsoCode639_1, Language, LanguageDetectorBuilder

    languages = [
        Language.from_iso_code_639_1(getattr(IsoCode639_1, code.upper())) for code in codes
    ]
    builder = LanguageDetectorBuilder.from_languages(*languages)
    return builder.with_preloaded_language_models().build()


class TranslationTask:
    """Translates a text. Raw confidence: geometric mean of the output tokens' probabilities."""

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
        self._max_chars = longest_input(tokenizer, max_model_len)
        self._detector = detector or LinguaDetector(spec.languages)
        self._frames = {
            (source, target): self._frame(source, target)
            for source in spec.languages
            for target in spec.languages
            if source != target
        }
        for frame in self._frames.values():
            frame.require_space(spec.name, _OUTPUT_TOKENS_BASE, max_model_len)

    def plan(self, request: TaskRequest) -> GenerateWork:
        """Return a generation that stops at the end of the translation. Raises InvalidRequest."""
        text = cleaned(request.text, self._max_chars)
        source, target = self.direction(request)
        ids = self._tokenizer.encode(text)
        bound = min(
            self.spec.max_output_tokens,
            _OUTPUT_TOKENS_BASE + math.ceil(self.spec.output_tokens_per_input_token * len(ids)),
        )
        prompt = self._frames[source, target].assemble(ids, self._max_model_len, bound)
        # A translation has as many lines as its source. What follows a single line is a comment on
        # the translation.
        stop = () if "\n" in text else ("\n",)
        return GenerateWork(prompt, max_tokens=bound, stop=stop)

    def must_load(self, request: TaskRequest) -> bool:
        """Return whether `plan` and `direction` would load the models of the detection first."""
        return request.source_language is None and not self._detector.loaded

    def direction(self, request: TaskRequest) -> tuple[str, str]:
        """Return the codes of source and target language as the spec writes them.

        Language codes are compared without regard to case. Raises UnknownLanguage where a language
        is missing, not offered or not detected, or where both are the same.
        """
        target = self._offered(request.target_language, "target_language")
        if request.source_language is not None:
            source = self._offered(request.source_language, "source_language")
        elif (detected := self._detector.detect(request.text)) is not None:
            source = detected
        else:
            raise UnknownLanguage(
                "the input's language could not be detected",
                field="source_language",
                fix=f"name it; one of: {', '.join(self.spec.languages)}",
            )
        if source == target:
            raise UnknownLanguage(
                f"source and target language are both {target!r}"
                + (" (the source was detected)" if request.source_language is None else ""),
                field="target_language",
                fix="name two different languages; name source_language if it was detected wrongly",
            )
        return source, target

    def _offered(self, code: str | None, field: str) -> str:
        if code is not None and code.lower() in self.spec.languages:
            return code.lower()
        raise UnknownLanguage(
            f"{field} is missing"
            if code is None
            else f"task {self.spec.name!r} has no language {code!r}",
            field=field,
            fix=f"use one of: {', '.join(self.spec.languages)}",
        )

    def read(self, request: TaskRequest, output: EngineOutput) -> Prediction:
        """Return the translation.

        One that is empty, was cut at its bound or lost a part of the input is not valid.
        """
        assert isinstance(output, GenerateOutput)
        source, target = self.direction(request)
        text = output.text.strip()
        ended = []
        if output.finish_reason == "length":
            ended.append("the output was cut at its bound")
        if is_blank(text):
            ended.append("the output is empty")
            check = Losses(valid=False, notes=())
        else:
            check = losses(request.text, text, source, target)
        return Prediction(
            value=Translation(
                text=text,
                source_language=source,
                target_language=target,
                source_detected=request.source_language is None,
            ),
            confidence=sequence_confidence(output.token_logprobs),
            valid=check.valid and not ended,
            notes=(*ended, *check.notes),
        )

    def _frame(self, source: str, target: str) -> PromptFrame:
        names = self.spec.languages
        instruction = self.spec.instruction.replace("{source}", names[source]).replace(
            "{target}", names[target]
        )
        shots = [(example[source], example[target]) for example in self.spec.examples]
        return PromptFrame.build(self._tokenizer, instruction, shots)
