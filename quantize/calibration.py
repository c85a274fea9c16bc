"""Builds the calibration set: selects, renders and orders its texts.

By default the built-in tasks' texts, in the very prompts that serving sends; or a user's JSONL.
Texts of an evaluation suite are refused by their digest.
"""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from quantize.recipe import CalibrationNeed
from serving.contracts.answer import TaskRequest
from serving.contracts.errors import (
    CalibrationOverlap,
    InvalidCalibration,
    InvalidRequest,
    NarrowgateError,
)
from serving.contracts.file_lines import file_lines
from serving.contracts.plain_file import read_plain_text
from serving.contracts.task_spec import TaskSpec, TranslationSpec
from serving.contracts.validation_words import problem_place, problem_with_value
from serving.tasks.fingerprint import text_digest
from serving.tasks.prompt import PromptTokenizer, Turn
from serving.tasks.task import Task, bind

_MOST_BYTES = 256 * 2**20
_MIN_TOKENS = 8


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Annotated[str, Field(pattern="^(system|user|assistant)$")]
    content: str


class Example(BaseModel):
    """One line of a calibration file.

    Either `messages`; or `text`, with a `task` (rendered as serving does) or without (a user's
    turn). answer: the expected output; calibrates decoding as well as prefill.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    text: Annotated[str, Field(min_length=1)] | None = None
    task: str | None = None
    answer: str | None = None
    source_language: str | None = None
    target_language: str | None = None
    messages: tuple[Message, ...] = ()

    @model_validator(mode="after")
    def _one_kind(self) -> "Example":
        if (self.text is None) == (not self.messages):
            raise ValueError("give either text or messages")
        if self.messages and self.task is not None:
            raise ValueError("task goes with text")
        return self

    def digest(self) -> str:
        """Return the digest that is compared with the suites' texts."""
        return text_digest(self.text or "\n".join(message.content for message in self.messages))


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Sequences of token ids in the order in which the model reads them.

    example_digests: of the texts, sorted; the gate refuses to test on any of them.
    left_out: how many were too long, too short, or no valid input of their task.
    """

    sequences: tuple[tuple[int, ...], ...]
    example_digests: tuple[str, ...]
    source: str
    left_out: int

    @property
    def tokens(self) -> int:
        """Return the tokens of all sequences."""
        return sum(len(sequence) for sequence in self.sequences)

    @property
    def longest(self) -> int:
        """Return the tokens of the longest sequence."""
        return max(len(sequence) for sequence in self.sequences)

    def digest(self) -> str:
        """Return `sha256:` and the hex digest of the token ids in order."""
        content = json.dumps(self.sequences, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(content.encode()).hexdigest()


def built_in_examples(specs: Mapping[str, TaskSpec], seed: int) -> list[Example]:
    """Return the shipped calibration texts of the tasks among the specs. Reads files."""
    chooser = random.Random(seed)  # noqa: S311  # a repeatable choice, not a secret
    examples: list[Example] = []
    for name in sorted(specs):
        entry = resources.files("quantize.builtin_texts") / f"{name}.jsonl"
        if not entry.is_file():
            continue
        rows = [json.loads(line) for line in file_lines(entry.read_text(encoding="utf-8"))]
        spec = specs[name]
        if isinstance(spec, TranslationSpec):
            examples += [_translation(row, spec, chooser) for row in rows]
        else:
            examples += [Example(text=row["text"], task=name) for row in rows]
    return examples


def _translation(row: Mapping[str, str], spec: TranslationSpec, chooser: random.Random) -> Example:
    source, target = chooser.sample([code for code in spec.languages if code in row], 2)
    return Example(
        text=row[source],
        task=spec.name,
        source_language=source,
        target_language=target,
        answer=row[target],
    )


def read_examples(path: Path) -> list[Example]:
    """Return the examples of a user's JSONL file. Raises InvalidCalibration with the line."""
    try:
        lines = file_lines(read_plain_text(path, _MOST_BYTES))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidCalibration(
            f"calibration file {str(path)!r} cannot be read: {error}",
            field="calibration",
        ) from error
    examples = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            examples.append(Example.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            place = problem_place(problem, "")
            raise InvalidCalibration(
                f"{path.name}, line {number}: "
                f"{place + ': ' if place else ''}{problem_with_value(problem)}",
                field="calibration",
                fix='one object a line: {"text": ..., "task": ...}, {"text": ...} or '
                '{"messages": [...]}',
            ) from error
    return examples


def held_out_digests(suites: Sequence[Path]) -> dict[str, str]:
    """Return the digests of every text in evaluation suites, with the file each is from.

    suites: JSONL files, or folders of them at any depth. Text fields are all that hold strings
    except ids, labels and tags. Raises InvalidCalibration for an unreadable line.
    """
    found: dict[str, str] = {}
    for suite in suites:
        files = sorted(suite.rglob("*.jsonl")) if suite.is_dir() else [suite]
        if not files:
            raise InvalidCalibration(f"no *.jsonl under {str(suite)!r}", field="held_out")
        for file in files:
            for text in _suite_texts(file):
                found.setdefault(text_digest(text), file.name)
    return found


def built_in_suites() -> Path:
    """Return the folder of the shipped suites.

    Raises InvalidCalibration where it is missing: without it, no overlap could be seen.
    """
    # Read as data, not imported: the packages stay independent.
    found = find_spec("evals")
    folders = found.submodule_search_locations if found is not None else None
    for folder in folders or ():
        path = Path(folder) / "suites"
        if any(path.glob("*/*.jsonl")):
            return path
    raise InvalidCalibration(
        "the built-in evaluation suites are missing from this installation, so an overlap of the "
        "calibration data with them cannot be found",
        field="calibration",
        fix="install narrowgate again",
    )


_NOT_TEXT = frozenset({"id", "label", "domain", "trait", "kind", "difficulty", "source", "license"})


def _suite_texts(file: Path) -> Iterator[str]:
    try:
        for line in file_lines(read_plain_text(file, _MOST_BYTES)):
            if line.strip():
                row: dict[str, Any] = json.loads(line)
                yield from (
                    value
                    for key, value in row.items()
                    if isinstance(value, str) and key not in _NOT_TEXT
                )
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InvalidCalibration(
            f"suite {str(file)!r} cannot be read: {error}", field="held_out"
        ) from error


def refuse_overlap(examples: Iterable[Example], held_out: Mapping[str, str]) -> None:
    """Raise CalibrationOverlap, with the first example, if examples are in an evaluation suite."""
    hits = [
        (number, held_out[example.digest()])
        for number, example in enumerate(examples, start=1)
        if example.digest() in held_out
    ]
    if hits:
        number, file = hits[0]
        raise CalibrationOverlap(
            f"{len(hits)} calibration examples are in an evaluation suite; the first is number "
            f"{number}, in {file}",
            field="calibration",
            fix="remove them: a gate that tests on calibration examples proves nothing",
        )


def build_calibration(
    examples: Sequence[Example],
    need: CalibrationNeed,
    specs: Mapping[str, TaskSpec],
    tokenizer: PromptTokenizer,
    *,
    source: str,
    seed: int,
) -> CalibrationSet:
    """Render, choose and order the examples.

    Duplicates count once. The choice is seeded and takes turns between tasks, so that a small set
    still has all of them. Sequences are ordered by length: neighbours can share a batch without
    padding. Raises InvalidCalibration when fewer than half of the wanted samples are left.
    """
    renderer = _Renderer(specs, tokenizer, need.max_tokens)
    distinct = {example.digest(): example for example in examples}
    ordered = _interleave_tasks(list(distinct.values()), seed)
    bare = _bare_numbers(min(need.samples, len(ordered)), need.plain_share)
    chosen: list[tuple[str, tuple[int, ...]]] = []
    left_out = 0
    for example in ordered:
        if len(chosen) == need.samples:
            break
        if len(chosen) in bare and example.text is not None:
            example = Example(text=example.text)
        ids = renderer.render(example)
        if ids is None:
            left_out += 1
        else:
            chosen.append((example.digest(), ids))
    if 2 * len(chosen) < min(need.samples, 2 * len(ordered)) or not chosen:
        raise InvalidCalibration(
            f"{len(chosen)} of {len(distinct)} distinct calibration examples can be used and the "
            f"recipe needs {need.samples} (at least half of them); {left_out} are longer than "
            f"{need.max_tokens} tokens, too short, or not a valid input of their task",
            field="calibration",
            fix="add examples, or lower calibration.samples in a recipe of your own",
        )
    chosen.sort(key=lambda item: (len(item[1]), item[0]))
    return CalibrationSet(
        sequences=tuple(ids for _, ids in chosen),
        example_digests=tuple(sorted(digest for digest, _ in chosen)),
        source=source,
        left_out=left_out,
    )


def batches(
    sequences: Sequence[tuple[int, ...]], max_tokens: int
) -> Iterator[list[tuple[int, ...]]]:
    """Group neighbours of equal length into batches of at most max_tokens tokens.

    Padding would count as activations in the statistics that rounding is based on.
    """
    batch: list[tuple[int, ...]] = []
    for sequence in sequences:
        full = (len(batch) + 1) * len(sequence) > max_tokens
        if batch and (len(sequence) != len(batch[0]) or full):
            yield batch
            batch = []
        batch.append(sequence)
    if batch:
        yield batch


def _interleave_tasks(examples: list[Example], seed: int) -> list[Example]:
    random.Random(seed).shuffle(examples)  # noqa: S311  # a repeatable choice, not a secret
    queues: dict[str | None, list[Example]] = {}
    for example in examples:
        queues.setdefault(example.task, []).append(example)
    ordered: list[Example] = []
    while queues:
        for task in sorted(queues, key=str):
            ordered.append(queues[task].pop())
        queues = {task: queue for task, queue in queues.items() if queue}
    return ordered


def _bare_numbers(samples: int, share: float) -> frozenset[int]:
    # Evenly spread over the tasks.
    wanted = round(samples * share)
    return frozenset(int((number + 0.5) * samples / wanted) for number in range(wanted))


class _Renderer:
    """Renders examples as token ids; None for an example that is too long or not a valid input."""

    def __init__(
        self, specs: Mapping[str, TaskSpec], tokenizer: PromptTokenizer, max_tokens: int
    ) -> None:
        self._specs = specs
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._tasks: dict[str, Task] = {}

    def render(self, example: Example) -> tuple[int, ...] | None:
        ids = self._ids(example)
        if ids is None or not _MIN_TOKENS <= len(ids) <= self._max_tokens:
            return None
        return ids

    def _ids(self, example: Example) -> tuple[int, ...] | None:
        if example.messages:
            turns = [Turn(message.role, message.content) for message in example.messages]
            return tuple(self._tokenizer.encode_rendered(self._tokenizer.render(turns)))
        assert example.text is not None
        if example.task is None:
            # As a user's turn: the model's sequences begin with the chat template.
            turn = [Turn("user", example.text)]
            return tuple(self._tokenizer.encode_rendered(self._tokenizer.render(turn)))
        request = TaskRequest(
            example.task, example.text, example.source_language, example.target_language
        )
        try:
            prompt = self._task(example.task).plan(request).prompt_token_ids
        except InvalidRequest:
            return None
        if example.answer is None:
            return prompt
        answer = self._tokenizer.encode(example.answer)
        return (*prompt, *answer, self._tokenizer.end_of_turn_id)

    def _task(self, name: str) -> Task:
        if name not in self._tasks:
            if name not in self._specs:
                raise InvalidCalibration(
                    f"a calibration example is for task {name!r}, which is not configured",
                    field="calibration",
                    fix="use one of: " + ", ".join(sorted(self._specs)) + "; see --tasks-dir",
                )
            # Nothing is generated here, so the window does not bound a prompt.
            try:
                self._tasks[name] = bind(self._specs[name], self._tokenizer, 1_000_000)
            except NarrowgateError as error:
                raise InvalidCalibration(
                    f"task {name!r} cannot be rendered for this model: {error.message}",
                    field="calibration",
                    fix=error.fix,
                ) from error
        return self._tasks[name]
