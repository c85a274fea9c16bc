"""Reads the inputs of a comparison: passages for divergence and speed, task inputs for labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from quantize.calibration import Example, read_examples
from serving.contracts.answer import TaskRequest
from serving.contracts.engine import ScoreWork
from serving.contracts.errors import InvalidCalibration
from serving.contracts.file_lines import file_lines
from serving.contracts.plain_file import read_plain_text
from serving.contracts.task_spec import TaskSpec
from serving.tasks.prompt import CheckpointTokenizer
from serving.tasks.task import Task, bind

WINDOW = 512
"""Tokens of the longest passage; longer texts are split."""
_LEAST = 16
_MAX_MODEL_LEN = 2048


@dataclass(frozen=True, slots=True)
class Passages:
    """Token ids of texts. source: the file's name."""

    source: str
    token_ids: tuple[tuple[int, ...], ...]

    @property
    def tokens(self) -> int:
        """Return the tokens of all passages."""
        return sum(len(ids) for ids in self.token_ids)

    def slices(self, length: int, number: int) -> list[tuple[int, ...]]:
        """Return up to `number` different stretches of `length` tokens."""
        flat = [token for ids in self.token_ids for token in ids]
        starts = range(0, len(flat) - length + 1, length)
        return [tuple(flat[start : start + length]) for start in starts][:number]


@dataclass(frozen=True, slots=True)
class Inputs:
    """Classification inputs with the engine's work for each. answers: None where unknown."""

    source: str
    requests: tuple[TaskRequest, ...]
    answers: tuple[str | None, ...]
    works: tuple[ScoreWork, ...]
    tasks: Mapping[str, Task]


def passages_from(file: Path | None, checkpoint: Path) -> Passages:
    """Return the passages of a JSONL file of texts, or of the prose that is shipped.

    Blocking. Raises InvalidCalibration for a file that holds too little.
    """
    from transformers import AutoTokenizer

    path = file or Path(str(resources.files("quantize.compare") / "heldout.jsonl"))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    found: list[tuple[int, ...]] = []
    for example in _texts(path):
        ids = tuple(tokenizer(example, verbose=False).input_ids)
        found += [ids[start : start + WINDOW] for start in range(0, len(ids), WINDOW)]
    kept = tuple(ids for ids in found if len(ids) >= _LEAST)
    if sum(len(ids) for ids in kept) < 2 * WINDOW:
        raise InvalidCalibration(
            f"{path.name!r} holds fewer than {2 * WINDOW} tokens of text", field="text"
        )
    return Passages(path.name, kept)


def _texts(path: Path) -> list[str]:
    import json

    try:
        rows = [json.loads(line) for line in file_lines(read_plain_text(path))]
        return [row["text"] for row in rows]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidCalibration(
            f"{str(path)!r} cannot be read: {error!r}",
            field="text",
            fix='one {"text": ...} a line',
        ) from error


def refuse_unfit_files(
    text: Path | None, inputs: Path | None, specs: Mapping[str, TaskSpec]
) -> None:
    """Read the files of a comparison. Raises InvalidCalibration for what needs no model to see."""
    if text is not None:
        _texts(text)
    if inputs is not None:
        for number, example in enumerate(read_examples(inputs), start=1):
            _refuse_other_task(inputs, number, example, specs)


def _refuse_other_task(
    file: Path, number: int, example: Example, specs: Mapping[str, TaskSpec]
) -> None:
    name = example.task or ""
    if name not in specs or specs[name].kind != "classification":
        raise InvalidCalibration(
            f"{file.name}, line {number}: {name!r} is not a classification task",
            field="inputs",
            fix="name the task of every input",
        )


def inputs_from(
    file: Path | None, specs: Mapping[str, TaskSpec], checkpoint: Path
) -> Inputs | None:
    """Return the classification inputs of a JSONL file, None without a file.

    Blocking. Raises InvalidCalibration for examples of other tasks than classifications.
    """
    if file is None:
        return None
    tokenizer = CheckpointTokenizer.load(checkpoint)
    tasks: dict[str, Task] = {}
    requests, answers, works = [], [], []
    for number, example in enumerate(read_examples(file), start=1):
        name = example.task or ""
        _refuse_other_task(file, number, example, specs)
        if name not in tasks:
            tasks[name] = bind(specs[name], tokenizer, _MAX_MODEL_LEN)
        assert example.text is not None
        request = TaskRequest(name, example.text)
        work = tasks[name].plan(request)
        assert isinstance(work, ScoreWork)
        requests.append(request)
        answers.append(example.answer)
        works.append(work)
    return Inputs(file.name, tuple(requests), tuple(answers), tuple(works), tasks)
