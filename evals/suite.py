"""Reads suites: the examples on which one task is tested, and the task's spec.

A suite is a folder with JSONL files and, except for the built-in ones, the task's spec as
`task.yaml`. docs/gate.md lists the fields of a line for each kind of task.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from serving.contracts.answer import TaskRequest
from serving.contracts.errors import InvalidSuite
from serving.contracts.plain_file import read_plain_text, unread_because
from serving.contracts.task_spec import (
    ClassificationSpec,
    EntityMention,
    ExtractionSpec,
    TaskSpec,
    Text,
    TranslationSpec,
)
from serving.contracts.validation_words import problem_words
from serving.tasks.catalog import read_task_file
from serving.tasks.fingerprint import text_digest

SPEC_FILE = "task.yaml"
BUILT_IN = "builtin"
EXTENDED = "builtin-extended"
_BASE_FILE = "test.jsonl"
MOST_SUITE_BYTES = 256 * 2**20
"""The largest file of examples that is read."""
_SHOWN_CHARS = 80


@dataclass(frozen=True, slots=True)
class Example:
    """One input with the expected answer. id: unique within the suite. group: examples of one group
    are the same text in several directions; they are split and resampled together. expected: a
    label, a sorted tuple of (entity text, type), or a reference translation. slice: part of the
    suite with a result of its own (a translation's direction), or None. labelled_by: whose answer
    `expected` is; where nobody has labelled the input it is empty.
    """

    id: str
    group: str
    request: TaskRequest
    expected: str | tuple[tuple[str, str], ...]
    slice: str | None = None
    labelled_by: Literal["suite", "reference", "nobody"] = "suite"


@dataclass(frozen=True, slots=True)
class Suite:
    """A task with its examples, in the order of the files."""

    name: str
    source: str
    spec: TaskSpec
    examples: tuple[Example, ...]

    def digest(self) -> str:
        """Return `sha256:` and the hex digest of the examples."""
        rows = [
            [e.id, e.group, e.request.text, e.request.source_language, e.request.target_language,
             e.expected, e.slice]
            for e in self.examples
        ]  # fmt: skip
        canonical = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()

    def text_digests(self) -> dict[str, str]:
        """Return the example ids by text digest, in every language of the suite."""
        found: dict[str, str] = {}
        for example in self.examples:
            found.setdefault(text_digest(example.request.text), example.id)
            if self.spec.kind == "translation" and example.labelled_by != "nobody":
                found.setdefault(text_digest(str(example.expected)), example.id)
        return found

    def independent(self, inside: Callable[[Example], bool] | None = None) -> NDArray[np.intp]:
        """Return the index of one example of each group, another slice from group to group.

        inside: which examples to choose from; None for all. Examples of one group share a text:
        only the groups are independent.
        """
        members: dict[str, list[int]] = {}
        for index, example in enumerate(self.examples):
            if inside is None or inside(example):
                members.setdefault(example.group, []).append(index)
        return np.array(
            [found[number % len(found)] for number, found in enumerate(members.values())],
            dtype=np.intp,
        )

    def between(self, first: int, end: int) -> "Suite":
        """Return a suite of the examples from `first` to before `end`."""
        return self.holding(self.examples[first:end])

    def among(self, indices: Sequence[int]) -> "Suite":
        """Return a suite of the examples at these indices."""
        return self.holding([self.examples[index] for index in indices])

    def holding(self, examples: Sequence[Example]) -> "Suite":
        """Return a suite of these examples, with this suite's name and spec."""
        return Suite(self.name, self.source, self.spec, tuple(examples))

    def first(self, limit: int) -> "Suite":
        """Return a suite of the first `limit` groups."""
        kept: list[str] = []
        for example in self.examples:
            if example.group not in kept:
                if len(kept) == limit:
                    break
                kept.append(example.group)
        chosen = frozenset(kept)
        return self.holding([e for e in self.examples if e.group in chosen])


def calibration_half(group: str) -> bool:
    """Return whether a group of examples is in the calibration half; the other half certifies. A
    hash of the group's name decides, so adding or reordering examples moves none to the other half.
    """
    return hashlib.sha256(f"narrowgate-half:{group}".encode()).digest()[0] % 2 == 0


_Line: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])
_Text: TypeAdapter[str] = TypeAdapter(Text)


class _Row(BaseModel):
    # Other fields are comments for readers: domain, trait, ...
    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str | int | None = None


class _Classified(_Row):
    text: Text
    label: str


class _Extracted(_Row):
    text: Text
    entities: tuple[EntityMention, ...]


class _Unlabelled(_Row):
    text: Text


class _Untranslated(_Row):
    text: Text
    source_language: str
    target_language: str


class _Directed(_Untranslated):
    reference: Text = Field(min_length=1)


_LABELS = {"classification": "label", "extraction": "entities", "translation": "reference"}


def built_in_suites(specs: Mapping[str, TaskSpec], *, extended: bool = False) -> list[Suite]:
    """Return the built-in suites of those specs that have one.

    extended: with the inputs of `test_hard.jsonl`, which the first start leaves out for its time.
    Blocking. Raises InvalidSuite.
    """
    root = Path(str(resources.files("evals") / "suites"))
    source, pattern = (EXTENDED, "*.jsonl") if extended else (BUILT_IN, _BASE_FILE)
    folders = sorted(path for path in root.iterdir() if (path / _BASE_FILE).is_file())
    return [_read(p, specs[p.name], source, pattern) for p in folders if p.name in specs]


def named_suites(
    name: str, specs: Mapping[str, TaskSpec], *, may_lack_labels: bool = False
) -> list[Suite]:
    """Return the suites that `--suite` names: built-in ones by name, or those of a folder.

    Blocking. Raises InvalidSuite, InvalidTaskSpec.
    """
    if name in (BUILT_IN, EXTENDED):
        return built_in_suites(specs, extended=name == EXTENDED)
    return load_suites(Path(name), may_lack_labels=may_lack_labels)


def load_suites(folder: Path, *, may_lack_labels: bool = False) -> list[Suite]:
    """Return the suite of a folder, or the suites of the folders in it.

    may_lack_labels: a reference model labels them. Blocking. Raises InvalidSuite with file and
    line, and InvalidTaskSpec.
    """
    folders = [folder] if (folder / SPEC_FILE).is_file() else _below(folder)
    if not folders:
        raise InvalidSuite(
            f"{str(folder)!r} has no {SPEC_FILE}",
            field="suite",
            fix=f"a suite is a folder with {SPEC_FILE} and *.jsonl, or a folder of such folders",
        )
    return [
        _read(
            path,
            read_task_file(path / SPEC_FILE, str(path / SPEC_FILE)),
            path.name,
            may_lack_labels=may_lack_labels,
        )
        for path in folders
    ]


def _below(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InvalidSuite(
            f"{str(folder)!r} is not a folder", field="suite", fix="correct the path"
        )
    return sorted(path for path in folder.iterdir() if (path / SPEC_FILE).is_file())


def _read(
    folder: Path,
    spec: TaskSpec,
    source: str,
    pattern: str = "*.jsonl",
    *,
    may_lack_labels: bool = False,
) -> Suite:
    examples: list[Example] = []
    for file in sorted(folder.glob(pattern)):
        for number, line in enumerate(_lines(file), start=1):
            if line.strip():
                where = f"{file.name}, line {number}"
                examples += parse_line(line, spec, where, may_lack_labels=may_lack_labels)
    if not examples:
        raise InvalidSuite(
            f"{str(folder)!r} has no examples", field="suite", fix="add lines to a *.jsonl file"
        )
    _refuse_repeated_ids(examples, folder)
    return Suite(spec.name, source, spec, tuple(examples))


def _lines(file: Path) -> list[str]:
    try:
        # splitlines would also split at separators that may occur in JSON strings.
        return read_plain_text(file, MOST_SUITE_BYTES).replace("\r\n", "\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSuite(
            f"{file.name} cannot be read as UTF-8 text: {unread_because(error)}", field="suite"
        ) from error


def parse_line(
    line: str, spec: TaskSpec, where: str, *, may_lack_labels: bool = False
) -> list[Example]:
    """Return the examples of one line of JSON. Raises InvalidSuite. where: file and line, for the
    message. may_lack_labels: a line without a label is an example that nobody has labelled.
    """
    try:
        row = _Line.validate_json(line)
        _refuse_other_than_text(row, spec)
        if may_lack_labels and _lacks_label(row, spec):
            return [_unlabelled(row, spec, where)]
        match spec:
            case ClassificationSpec():
                return [_classified(row, spec, where)]
            case ExtractionSpec():
                return [_extracted(row, spec, where)]
            case TranslationSpec():
                return list(_translated(row, spec, where))
    except (ValueError, TypeError, ValidationError) as error:
        reason = _reason(error) if isinstance(error, ValidationError) else error
        raise InvalidSuite(
            f"{where}: {reason}", field="suite", fix="docs/gate.md lists the fields of each kind"
        ) from error


def _lacks_label(row: Mapping[str, Any], spec: TaskSpec) -> bool:
    if isinstance(spec, TranslationSpec) and "target_language" not in row:
        # A text for each language.
        return False
    return row.get(_LABELS[spec.kind]) is None


def _unlabelled(row: dict[str, Any], spec: TaskSpec, where: str) -> Example:
    name = _id(_Row.model_validate(row), where)
    if isinstance(spec, TranslationSpec):
        directed = _Untranslated.model_validate(row)
        pair = _direction(directed.source_language, directed.target_language, spec)
        request = TaskRequest(spec.name, directed.text, *pair)
        return Example(name, name, request, "", "-".join(pair), "nobody")
    text = _Unlabelled.model_validate(row).text
    expected = () if isinstance(spec, ExtractionSpec) else ""
    return Example(name, name, TaskRequest(spec.name, text), expected, None, "nobody")


def _refuse_other_than_text(row: Mapping[str, Any], spec: TaskSpec) -> None:
    fields = {"classification": ("text", "label"), "extraction": ("text",)}
    languages = spec.languages if isinstance(spec, TranslationSpec) else ()
    for name in fields.get(spec.kind, ("text", "reference", *languages)):
        if row.get(name) is not None and not isinstance(row[name], str):
            raise ValueError(f"{name} is {row[name]!r}, not a string")


def _reason(error: ValidationError) -> str:
    """Return the first problem with its field and value, in one line."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"field {place!r} is missing"
    value = repr(problem["input"])
    shown = value if len(value) <= _SHOWN_CHARS else value[: _SHOWN_CHARS - 1] + "…"
    return f"{place + ' ' if place else ''}{shown}: {problem_words(problem)}"


def _classified(row: dict[str, Any], spec: ClassificationSpec, where: str) -> Example:
    parsed = _Classified.model_validate(row)
    names = [label.name for label in spec.labels]
    if parsed.label not in names:
        raise ValueError(f"label {parsed.label!r} is not one of {names}")
    name = _id(parsed, where)
    return Example(name, name, TaskRequest(spec.name, parsed.text), parsed.label)


def _extracted(row: dict[str, Any], spec: ExtractionSpec, where: str) -> Example:
    parsed = _Extracted.model_validate(row)
    types = [item.name for item in spec.entity_types]
    for entity in parsed.entities:
        if entity.type not in types:
            raise ValueError(f"type {entity.type!r} is not one of {types}")
        if entity.text not in parsed.text:
            raise ValueError(f"entity {entity.text!r} does not occur in the text")
    expected = tuple(sorted((entity.text, entity.type) for entity in parsed.entities))
    name = _id(parsed, where)
    return Example(name, name, TaskRequest(spec.name, parsed.text), expected)


def _translated(row: dict[str, Any], spec: TranslationSpec, where: str) -> Iterator[Example]:
    if "reference" in row:
        parsed = _Directed.model_validate(row)
        pair = _direction(parsed.source_language, parsed.target_language, spec)
        name = _id(parsed, where)
        request = TaskRequest(spec.name, parsed.text, *pair)
        yield Example(name, name, request, parsed.reference, "-".join(pair))
        return
    name = _id(_Row.model_validate(row), where)
    found = {code: row[code] for code in spec.languages if row.get(code)}
    texts = {code: _Text.validate_python(text) for code, text in found.items()}
    if len(texts) < 2:
        raise ValueError(f"a line must have a text in two or more of {list(spec.languages)}")
    for source, text in texts.items():
        for target, reference in texts.items():
            if source != target:
                request = TaskRequest(spec.name, text, source, target)
                direction = f"{source}-{target}"
                yield Example(f"{name}/{direction}", name, request, reference, direction)


def _direction(source: str, target: str, spec: TranslationSpec) -> tuple[str, str]:
    pair = (source, target)
    if not set(pair) <= set(spec.languages) or source == target:
        raise ValueError(f"{pair} is not a direction of {list(spec.languages)}")
    return pair


def _id(row: _Row, where: str) -> str:
    return where if row.id is None else str(row.id)


def _refuse_repeated_ids(examples: Sequence[Example], folder: Path) -> None:
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise InvalidSuite(
                f"{str(folder)!r} has two examples with id {example.id!r}",
                field="suite",
                fix="give every example a unique id, or no id",
            )
        seen.add(example.id)
