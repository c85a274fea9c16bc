"""What a narrow task is: a validated, immutable description with a stable digest.

A task is one YAML file. Its digest goes into attestations, so whatever changes what the model
sees or how its output is read must change the digest: every field below takes part, and
PROMPT_FORMAT stands for the code that renders and parses.
"""

import hashlib
import json
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from serving.contracts.errors import InvalidTaskSpec

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PROMPT_FORMAT = 1
"""Raised by one whenever serving.tasks renders a prompt or reads an output differently."""

MAX_LABELS = 150

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Line = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^\S(.*\S)?$")]
Text = Annotated[str, Field(min_length=1, max_length=20_000)]
LanguageCode = Annotated[str, Field(pattern=r"^[a-z]{2}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=False)


class Margins(_Frozen):
    """Largest loss against the 16-bit baseline that still counts as no worse, in metric units."""

    int8: Share = 0.02
    # No default: 4-bit weights break tasks in ways that perplexity does not show, so the loss
    # that is acceptable must be somebody's decision.
    int4: Share | None = None


class _Spec(_Frozen):
    name: Name
    description: str = Field(default="", max_length=500)
    instruction: Text
    max_output_tokens: int = Field(ge=1, le=4096, description="bound on generated tokens")
    floor: Share = Field(description="lowest acceptable metric, whatever the baseline reaches")
    margins: Margins = Margins()
    target_error: float = Field(
        gt=0.0, lt=0.5, description="alpha: error rate to certify among accepted answers"
    )

    def digest(self) -> str:
        """Return `sha256:` and the hex digest of the spec's canonical JSON and PROMPT_FORMAT.

        White space, comments and key order of the YAML do not matter; every value does.
        """
        content = {"prompt_format": PROMPT_FORMAT, "spec": self.model_dump(mode="json")}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


class Label(_Frozen):
    """One class. `verbalizer` is what the model writes for it; the name is what clients get."""

    name: Line
    verbalizer: Line

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value, "verbalizer": value}
        if isinstance(value, dict) and "verbalizer" not in value:
            return {**value, "verbalizer": value.get("name")}
        return value


class LabelledExample(_Frozen):
    """A few-shot example of a classification."""

    text: Text
    label: Line


class ClassificationSpec(_Spec):
    """Exactly one label out of 2 to 150 for a text."""

    kind: Literal["classification"]
    labels: tuple[Label, ...] = Field(min_length=2, max_length=MAX_LABELS)
    examples: tuple[LabelledExample, ...] = ()
    metric: Literal["accuracy", "macro_f1"] = "macro_f1"
    max_output_tokens: int = Field(default=32, ge=1, le=4096)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [label.name for label in self.labels]
        _refuse_repeated("labels", names)
        _refuse_repeated("labels (verbalizer)", [label.verbalizer for label in self.labels])
        for example in self.examples:
            if example.label not in names:
                raise ValueError(f"example has label {example.label!r}, which is none of {names}")
        return self


class EntityType(_Frozen):
    """A kind of entity and what it covers."""

    name: Name
    description: Line


class EntityMention(_Frozen):
    """An entity of a few-shot example."""

    text: Line
    type: Name


class ExtractionExample(_Frozen):
    """A few-shot example of an extraction, mentions in order of appearance."""

    text: Text
    entities: tuple[EntityMention, ...]

    @model_validator(mode="after")
    def _mentions_occur(self) -> Self:
        for entity in self.entities:
            if entity.text not in self.text:
                raise ValueError(f"entity {entity.text!r} does not occur in {self.text!r}")
        return self


class ExtractionSpec(_Spec):
    """Spans of the input text, each with a type."""

    kind: Literal["extraction"]
    entity_types: tuple[EntityType, ...] = Field(min_length=1, max_length=50)
    examples: tuple[ExtractionExample, ...] = ()
    max_entities: int = Field(default=64, ge=1, le=256)
    max_entity_chars: int = Field(default=120, ge=1, le=1000)
    metric: Literal["micro_f1"] = "micro_f1"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [entity_type.name for entity_type in self.entity_types]
        _refuse_repeated("entity_types", names)
        for example in self.examples:
            for entity in example.entities:
                if entity.type not in names:
                    raise ValueError(f"example has type {entity.type!r}, which is none of {names}")
        return self


class TranslationSpec(_Spec):
    """A text in one of the languages into another of them.

    `instruction` may hold {source} and {target}, which become the languages' names.
    Each example is one sentence in every language, so that it serves every direction.
    """

    kind: Literal["translation"]
    languages: dict[LanguageCode, Line] = Field(min_length=2)
    examples: tuple[dict[LanguageCode, Text], ...] = ()
    output_tokens_per_input_token: float = Field(default=2.0, gt=0.0, le=8.0)
    metric: Literal["chrf", "bleu"] = "chrf"
    acceptable: Share = Field(
        default=0.5, description="chrF++ from which one translation counts as right, in [0, 1]"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for example in self.examples:
            if set(example) != set(self.languages):
                raise ValueError(
                    f"an example has languages {sorted(example)}, needs {sorted(self.languages)}"
                )
        return self


TaskSpec = Annotated[
    ClassificationSpec | ExtractionSpec | TranslationSpec, Field(discriminator="kind")
]
_ADAPTER: TypeAdapter[TaskSpec] = TypeAdapter(TaskSpec)


def parse_task_spec(content: object, source: str) -> TaskSpec:
    """Return the task that a parsed YAML document describes.

    source: where the document came from, for the message.
    Raises InvalidTaskSpec, which names every field at fault.
    """
    try:
        return _ADAPTER.validate_python(content)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in item['loc']) or 'document'}: {_problem(item)}"
            for item in error.errors(include_url=False, include_context=False)
        )
        raise InvalidTaskSpec(
            f"{source} is not a task: {problems}",
            field=source,
            fix="compare with the built-in tasks: narrowgate tasks show sentiment",
        ) from error


def _problem(item: "ErrorDetails") -> str:
    if isinstance(item["input"], bool):
        return (
            f"{item['msg']}; YAML reads yes, no, on, off, true and false as truth values: put such "
            "a text in quotes"
        )
    return item["msg"]


def _refuse_repeated(what: str, values: list[str]) -> None:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{what} must be distinct, repeated: {repeated}")
