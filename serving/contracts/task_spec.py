"""The specification of a narrow task: validated, immutable, with a stable digest.

A task is one YAML file. Attestations contain its digest, so everything that changes what the model
sees or how its output is read must change the digest: every field below is part of it, and
PROMPT_FORMATS is the version of the code that renders and parses.
"""

import datetime
import hashlib
import json
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from serving.contracts.errors import InvalidTaskSpec
from serving.contracts.validation_words import problem_with_value

PROMPT_FORMATS: Mapping[str, int] = {"classification": 1, "extraction": 2, "translation": 2}
"""By kind; raised by one whenever serving.tasks renders a prompt or reads an output differently."""

MAX_LABELS = 150

# Marks and letters without a visible form, in addition to the characters of category C: joiners,
# fillers, Khmer inherent vowels and variation selectors.
_INVISIBLE = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
    + "".join(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
)


def folded_name(name: str) -> str:
    """Return a name without case, width, outer and repeated white space, invisible characters.

    Names that are equal in this form look the same to a reader.
    """
    folded = unicodedata.normalize("NFKC", name).casefold()
    visible = (
        character
        for character in folded
        if character.isspace()
        or (unicodedata.category(character)[0] != "C" and character not in _INVISIBLE)
    )
    return " ".join("".join(visible).split())


def _text(value: object) -> object:
    """Refuse a value that YAML does not read as text, with the reason."""
    if isinstance(value, bool):
        raise ValueError(  # noqa: TRY004  # pydantic reports only this class
            f"YAML reads this as {str(value).lower()}, not as text (as it does yes, no, on, off, "
            "true and false): put it in quotes"
        )
    if value is None or isinstance(value, int | float | datetime.date):
        raise ValueError(f"YAML reads this as {value!r}, not as text: put it in quotes")
    return value


def _shown(value: str) -> str:
    if not folded_name(value):
        raise ValueError(f"{value!r} has no visible character")
    return value


Name = Annotated[str, BeforeValidator(_text), Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Line = Annotated[
    str,
    BeforeValidator(_text),
    Field(min_length=1, max_length=200, pattern=r"^\S(.*\S)?$"),
    AfterValidator(_shown),
]
Text = Annotated[
    str, BeforeValidator(_text), Field(min_length=1, max_length=20_000), AfterValidator(_shown)
]
LanguageCode = Annotated[str, BeforeValidator(_text), Field(pattern=r"^[a-z]{2}$")]
Share = Annotated[float, Field(ge=0.0, le=1.0, strict=True)]
Count = Annotated[int, Field(ge=1, strict=True)]

LossName = Literal[
    "exact", "one_minus_f1", "chrf_below", "judged_worse", "not_equivalent", "net_worse"
]
"""The loss of an answer against the right one, in [0, 1]; serving.tasks.loss computes it.

exact: 1 where the answers differ. one_minus_f1: 1 less the F1 of entities. chrf_below: 1 where the
chrF++ of a translation is below `acceptable`. judged_worse: a judge's preference. not_equivalent: 1
where a judge finds a cached answer badly worse than a fresh one, a cascade's answer worse than the
reference's in both orders, or the answer to a chat that was read as a task (of labels and entities
no judge is needed). net_worse: by a judge, (1 + worse - better) / 2; its target is the share judged
worse less the share judged better. The last three by evidence alone.
"""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=False)


class Margins(_Frozen):
    """Largest loss against the 16-bit baseline that counts as no worse, in units of the metric."""

    int8: Share = 0.02
    # No default: 4-bit weights break tasks in ways that perplexity does not show. A person must
    # decide which loss is acceptable.
    int4: Share | None = None


class _Spec(_Frozen):
    name: Name
    description: str = Field(default="", max_length=500)
    instruction: Text
    max_output_tokens: Count = Field(le=4096, description="bound on generated tokens")
    floor: Share = Field(description="lowest acceptable metric, independent of the baseline")
    margins: Margins = Margins()
    target_error: float = Field(
        gt=0.0,
        lt=0.5,
        strict=True,
        description="alpha: error rate to certify among accepted answers",
    )

    def digest(self) -> str:
        """Return `sha256:` and the hex digest of the spec's canonical JSON and its prompt format.

        It depends on every value, not on the YAML's white space, comments and key order.
        """
        spec = self.model_dump(mode="json")
        # Specs had no loss before; a digest without it means the default, so that their
        # attestations still cover them.
        if spec.get("loss") == type(self).model_fields["loss"].default:
            del spec["loss"]
        content = {"prompt_format": PROMPT_FORMATS[spec["kind"]], "spec": spec}
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


class Label(_Frozen):
    """One class. The model writes the verbalizer; clients get the name."""

    name: Line
    verbalizer: Line

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        if not isinstance(value, dict | list | Label):
            value = _text(value)
        if isinstance(value, str):
            return {"name": value, "verbalizer": value}
        if isinstance(value, dict) and "verbalizer" not in value:
            return {**value, "verbalizer": value.get("name")}
        return _text(value)


class LabelledExample(_Frozen):
    """A few-shot example of a classification."""

    text: Text
    label: Line


class ClassificationSpec(_Spec):
    """Gives a text exactly one of 2 to 150 labels."""

    kind: Literal["classification"]
    labels: tuple[Label, ...] = Field(min_length=2, max_length=MAX_LABELS)
    examples: tuple[LabelledExample, ...] = ()
    metric: Literal["accuracy", "macro_f1"] = "macro_f1"
    loss: Literal["exact"] = "exact"
    max_output_tokens: Count = Field(default=32, le=4096)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [label.name for label in self.labels]
        _require_distinct("labels", names)
        _require_distinct("labels (verbalizer)", [label.verbalizer for label in self.labels])
        for example in self.examples:
            if example.label not in names:
                raise ValueError(f"an example has label {example.label!r}; labels are {names}")
        return self


class EntityType(_Frozen):
    """A type of entity. description: the mentions that it covers."""

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
    """Finds spans of the input text, each with a type."""

    kind: Literal["extraction"]
    entity_types: tuple[EntityType, ...] = Field(min_length=1, max_length=50)
    examples: tuple[ExtractionExample, ...] = ()
    max_entities: Count = Field(default=64, le=256)
    max_entity_chars: Count = Field(default=120, le=1000)
    metric: Literal["micro_f1"] = "micro_f1"
    loss: Literal["exact", "one_minus_f1"] = Field(
        default="exact", description="target_error bounds its mean"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [entity_type.name for entity_type in self.entity_types]
        _require_distinct("entity_types", names)
        for example in self.examples:
            for entity in example.entities:
                if entity.type not in names:
                    raise ValueError(f"an example has type {entity.type!r}; types are {names}")
        return self


class TranslationSpec(_Spec):
    """Translates a text from one of the languages into another.

    In `instruction`, {source} and {target} are replaced by the languages' names. Each example is
    one sentence in every language, so that it serves every direction.
    """

    kind: Literal["translation"]
    languages: dict[LanguageCode, Line] = Field(min_length=2)
    examples: tuple[dict[LanguageCode, Text], ...] = ()
    output_tokens_per_input_token: float = Field(default=2.0, gt=0.0, le=8.0, strict=True)
    metric: Literal["chrf", "bleu"] = "chrf"
    loss: Literal["chrf_below"] = "chrf_below"
    acceptable: Share = Field(
        default=0.5, description="lowest chrF++ of a translation that counts as right, in [0, 1]"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for example in self.examples:
            if set(example) != set(self.languages):
                raise ValueError(
                    f"an example has languages {sorted(example)} and needs {sorted(self.languages)}"
                )
        return self


TaskSpec = Annotated[
    ClassificationSpec | ExtractionSpec | TranslationSpec, Field(discriminator="kind")
]
_ADAPTER: TypeAdapter[TaskSpec] = TypeAdapter(TaskSpec)


def parse_task_spec(content: object, source: str) -> TaskSpec:
    """Return the task that a parsed YAML document describes.

    source: the document's file, for messages.
    Raises InvalidTaskSpec, which names every field at fault.
    """
    try:
        return _ADAPTER.validate_python(content)
    except ValidationError as error:
        items = error.errors(include_url=False)
        problems = "; ".join(
            f"{_field(item['loc'])}: {_problem(item)}"
            for item in items
            # A list whose items are at fault is also too short: that says nothing more.
            if not any(_is_inside(other["loc"], item["loc"]) for other in items)
        )
        raise InvalidTaskSpec(
            f"{source} is not a valid task: {problems}",
            field=source,
            fix="compare it with a built-in task: narrowgate tasks show sentiment",
        ) from error


_PROBLEMS: Mapping[str, str] = {
    "extra_forbidden": "unknown field",
    "missing": "missing",
    "tuple_type": "must be a list",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "union_tag_not_found": "must be a mapping with the field 'kind'",
}


def _problem(item: Mapping[str, Any]) -> str:
    return _PROBLEMS.get(item["type"]) or problem_with_value(item)


def _is_inside(location: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(location) > len(outer) and location[: len(outer)] == outer


def _field(location: tuple[int | str, ...]) -> str:
    """Return a field's path in the file, without the kind that pydantic puts in front."""
    parts = location[1:] if location and location[0] in PROMPT_FORMATS else location
    return ".".join(map(str, parts)) or "document"


def _require_distinct(what: str, values: list[str]) -> None:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{what} must be distinct, repeated: {repeated}")
    seen: dict[str, str] = {}
    for value in values:
        other = seen.setdefault(folded_name(value), value)
        if other != value:
            raise ValueError(
                f"{what} must differ in more than case, width, white space and invisible "
                f"characters: {other!a} and {value!a}"
            )
