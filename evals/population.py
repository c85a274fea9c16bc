"""The user's own labelled inputs, whose errors a gate bounds in place of a half of the suite."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evals.certification import accepted_needed
from evals.listing import first_of
from evals.suite import MOST_SUITE_BYTES, Example, Suite, calibration_half, parse_line
from evals.suite_check import few_shot_digests
from serving.contracts.attestation import Difference, Population
from serving.contracts.errors import InvalidSuite, NarrowgateError
from serving.contracts.plain_file import read_plain
from serving.tasks.fingerprint import text_digest

_SHOWN_PROBLEMS = 3
_SHOWN_CHARS = 60


@dataclass(frozen=True, slots=True)
class OwnInputs:
    """Labelled inputs of one task.

    suite: the file's inputs as a suite, whose source is the file's name. digest: `sha256:` and the
    hex digest of the file. differences: from the suite that the task is tested on. reference: the
    model whose answers are the labels; None where they are the file's.
    """

    suite: Suite
    digest: str
    differences: tuple[Difference, ...] = ()
    reference: str | None = None

    @property
    def population(self) -> Population:
        """Return what an attestation says of them."""
        return Population.of(
            "file", self.suite.source, self.digest, len(self.suite.examples), self.differences,
            self.reference,
        )  # fmt: skip


def suite_population(suite: Suite, reference: str | None = None) -> Population:
    """Return what an attestation says where the suite itself is the population."""
    return Population.of(
        "suite", suite.name, suite.digest(), len(suite.examples), reference=reference
    )


def file_of_each_task(given: Sequence[str], tasks: Sequence[str]) -> dict[str, Path]:
    """Return the file for each task from arguments of the form FILE or TASK=FILE.

    tasks: those that are tested; FILE alone is for a run that tests one. Raises InvalidSuite.
    """
    found: dict[str, Path] = {}
    for text in given:
        name, separator, rest = text.partition("=")
        if separator and name in tasks:
            task, file = name, rest
        elif len(tasks) == 1:
            task, file = tasks[0], text
        else:
            raise _refused(
                f"--examples {text!r} does not say which of {len(tasks)} tasks it is for",
                f"write --examples TASK=FILE with one of: {', '.join(tasks)}",
            )
        if task in found:
            raise _refused(
                f"--examples names two files for task {task!r}: {str(found[task])!r} and {file!r}",
                "put all inputs of a task into one file",
            )
        found[task] = Path(file)
    return found


def read_inputs(path: Path, suite: Suite, *, may_lack_labels: bool = False) -> OwnInputs:
    """Return a file's labelled inputs: one JSON object a line, with the fields of a suite's lines.

    may_lack_labels: a reference model labels them.

    Blocking. Raises InvalidSuite, which names line, value and fix, for a line that is no example of
    the task, texts that occur twice or on which the task is tuned (the suite's calibration half and
    the prompt's examples), and a file too small for any bound.
    """
    content = _read(path)
    found: dict[int, list[Example]] = {}
    problems: list[str] = []
    # splitlines would also split at separators that JSON strings may hold.
    for number, line in enumerate(_text(content, path).split("\n"), start=1):
        if line.strip():
            try:
                found[number] = parse_line(
                    line, suite.spec, f"line {number}", may_lack_labels=may_lack_labels
                )
            except InvalidSuite as error:
                problems.append(error.message)
    problems += [*_repeated(found), *_tuned_on(found, suite)]
    if problems:
        raise _refused(
            f"{path.name}: {first_of(problems, _SHOWN_PROBLEMS)}",
            "correct or remove these lines; docs/gate.md lists the fields of each kind of task",
        )
    examples = tuple(_named(example, path) for line in found.values() for example in line)
    inputs = Suite(suite.name, path.name, suite.spec, examples)
    refuse_too_few(inputs)
    return OwnInputs(inputs, "sha256:" + hashlib.sha256(content).hexdigest())


def _read(path: Path) -> bytes:
    try:
        return read_plain(path, MOST_SUITE_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _refused(
            f"{str(path)!r} cannot be read: {reason}", "name a JSONL file with labelled inputs"
        ) from error


def _text(content: bytes, path: Path) -> str:
    try:
        # Some editors begin a file with a byte order mark.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise _refused(
            f"{path.name}: line {line} is not UTF-8 text: byte {content[error.start]:#04x}",
            "save the file in UTF-8",
        ) from error


def _repeated(found: Mapping[int, Sequence[Example]]) -> Iterator[str]:
    for what, key in (("text", _text_key), ("id", lambda example: example.id)):
        first: dict[str, int] = {}
        for number, examples in found.items():
            for example in examples:
                earlier = first.setdefault(key(example), number)
                if earlier != number:
                    shown = example.request.text if what == "text" else example.id
                    yield f"line {number}: {what} {_short(shown)} is that of line {earlier}"
                    break


def _text_key(example: Example) -> str:
    return f"{text_digest(example.request.text)} {example.slice}"


def _tuned_on(found: Mapping[int, Sequence[Example]], suite: Suite) -> Iterator[str]:
    half = [example for example in suite.examples if calibration_half(example.group)]
    calibrates = suite.holding(half).text_digests()
    shown = few_shot_digests(suite.spec)
    for number, examples in found.items():
        digest = text_digest(examples[0].request.text)
        text = _short(examples[0].request.text)
        if digest in shown:
            yield f"line {number}: text {text} is shown in the task's own prompt"
        elif digest in calibrates:
            yield (
                f"line {number}: text {text} is example {calibrates[digest]!r} of the suite's half "
                "on which confidences are calibrated"
            )


def _named(example: Example, path: Path) -> Example:
    """Return the example with the file's name in its id and group, so that messages name it."""
    return Example(
        f"{path.name}, {example.id}",
        f"{path.name}, {example.group}",
        example.request,
        example.expected,
        example.slice,
        example.labelled_by,
    )


def refuse_too_few(inputs: Suite) -> None:
    """Refuse a file's inputs that are too few for any bound. Raises InvalidSuite."""
    groups = len({example.group for example in inputs.examples})
    target = inputs.spec.target_error
    needed = accepted_needed(target)
    if groups < needed:
        raise _refused(
            f"{inputs.source} has {groups} inputs, and {needed} accepted ones, all answered right, "
            f"are the fewest that certify the task's target error {target:g}",
            f"add {needed - groups} or more inputs; where half are accepted and some are wrong, "
            f"{4 * needed} are more likely to do",
        )


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…")


def _refused(message: str, fix: str) -> NarrowgateError:
    return InvalidSuite(message, field="examples", fix=fix)
