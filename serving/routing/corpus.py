"""The texts that the router is trained and tested on: the shipped texts and a user's own logs."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from serving.contracts.errors import InvalidRequest
from serving.contracts.file_lines import file_lines
from serving.contracts.plain_file import read_plain
from serving.contracts.requests import PART_SEPARATOR, Message
from serving.routing.conversation import Prompt, prompt_of

_FILES = ("instructions.jsonl", "payloads.jsonl", "prompts.jsonl", "task_words.jsonl")
# A log is held in memory whole, several times.
_MOST_LOG_BYTES = 256 * 2**20
_GAP = "{payload}"
# First hex digits of an origin's SHA-256. Its prompts, 3 of 16, are not used for training.
_HELD_OUT = frozenset("def")


@dataclass(frozen=True, slots=True)
class LabelledPrompt:
    """A prompt with its labels.

    task: its task, None where it has none, `unknown` where it has no label. payload: the task's
    input. complexity: in [0, 1]; None where it is not rated. origin: the text from which it was
    made; all prompts of one origin are on the same side of the split. kind: its group in reports.
    """

    prompt: Prompt
    task: str | None
    payload: str | None
    complexity: float | None
    origin: str
    kind: str

    @property
    def held_out(self) -> bool:
        """Return whether the prompt is kept for evaluation."""
        return hashlib.sha256(self.origin.encode()).hexdigest()[0] in _HELD_OUT


UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Corpus:
    """LabelledPrompt prompts and a digest of the files they came from.

    cues: for each task the words that only its instructions have. others: further words of its
    instructions; both in addition to those in the prompts.
    """

    prompts: tuple[LabelledPrompt, ...]
    cues: Mapping[str, frozenset[str]]
    others: Mapping[str, frozenset[str]]
    digest: str

    def part(self, *, held_out: bool) -> tuple[LabelledPrompt, ...]:
        """Return the prompts of one side of the split."""
        return tuple(row for row in self.prompts if row.held_out == held_out)


def shipped_corpus(logs: Iterable[Path] = ()) -> Corpus:
    """Return the shipped prompts and those of a user's logs. Reads files, blocking.

    Raises InvalidRequest, which names the file and line at fault.
    """
    folder = resources.files("serving.routing.texts")
    contents = [(name, (folder / name).read_bytes()) for name in _FILES]
    contents += [(str(path), _content(path)) for path in logs]
    total = hashlib.sha256()
    for _, content in contents:
        total.update(hashlib.sha256(content).digest())
    instructions, payloads, prompts, vocabulary, *own = (
        _rows(name, content) for name, content in contents
    )
    rows = [*_wrapped(instructions, [row["text"] for row in payloads]), *map(_plain, prompts)]
    for (name, _), log in zip(contents[len(_FILES) :], own, strict=True):
        found = (_logged(row, f"{name}:{number}") for number, row in enumerate(log, 1))
        rows += [row for row in found if row is not None]
    cues = {row["task"]: frozenset(row["cues"].split()) for row in vocabulary}
    others = {row["task"]: frozenset(row["others"].split()) for row in vocabulary}
    return Corpus(tuple(rows), cues, others, total.hexdigest())


def _content(path: Path) -> bytes:
    try:
        return read_plain(path, _MOST_LOG_BYTES)
    except OSError as error:
        raise InvalidRequest(
            f"{str(path)!r} cannot be read: {error.strerror or error}",
            field="--logs",
            fix="name a file of JSON Lines that you may read",
        ) from error


def _rows(name: str, content: bytes) -> list[dict[str, Any]]:
    rows = []
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _bad_row(name, f"it is not UTF-8 at byte {error.start + 1}") from error
    for number, line in enumerate(file_lines(text), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _bad_row(f"{name}:{number}", str(error)) from error
        if not isinstance(row, dict):
            raise _bad_row(f"{name}:{number}", "it is not an object")
        rows.append(row)
    return rows


def _bad_row(where: str, problem: str) -> InvalidRequest:
    return InvalidRequest(
        f"{where} is not a labelled prompt: {problem}",
        field=where,
        fix='write rows as {"text": …} or {"body": …}, with "task" or "complexity"',
    )


# Payloads for each instruction. The head never sees them; the rules do.
_PAYLOADS_EACH = 4


def _wrapped(
    instructions: Sequence[Mapping[str, Any]], payloads: Sequence[str]
) -> list[LabelledPrompt]:
    rows = []
    for number, row in enumerate(instructions):
        for step in range(_PAYLOADS_EACH):
            payload = payloads[(number * 7 + step * 11) % len(payloads)]
            prompt = Prompt(row.get("system", ""), row["text"].replace(_GAP, payload))
            origin = f"{row.get('system', '')}\n{row['text']}"
            rows.append(LabelledPrompt(prompt, row["task"], payload, None, origin, row["task"]))
    return rows


def _plain(row: Mapping[str, Any]) -> LabelledPrompt:
    prompt = Prompt(row.get("system", ""), row["text"])
    return LabelledPrompt(prompt, None, None, row["complexity"], prompt.text, row["kind"])


def _logged(row: Mapping[str, Any], where: str) -> LabelledPrompt | None:
    """Return a row of a log as a prompt; None where it has neither a task nor a complexity."""
    prompt = _prompt_of(row, where)
    task, complexity = row.get("task", UNKNOWN), row.get("complexity")
    if not (task is None or isinstance(task, str)):
        raise _bad_row(where, f"task is {task!r}")
    if complexity is not None and not (
        isinstance(complexity, int | float) and 0.0 <= complexity <= 1.0
    ):
        raise _bad_row(where, f"complexity is {complexity!r}, needs a number in [0, 1]")
    if task == UNKNOWN and complexity is None:
        return None
    # All rows of a log are used for training.
    return LabelledPrompt(prompt, task, None, complexity, _trained_origin(prompt.text), "log")


def _trained_origin(text: str) -> str:
    origin = text
    while hashlib.sha256(origin.encode()).hexdigest()[0] in _HELD_OUT:
        origin += " "
    return origin


def _prompt_of(row: Mapping[str, Any], where: str) -> Prompt:
    body = row.get("body")
    if isinstance(body, Mapping):
        messages = body.get("messages")
        if not isinstance(messages, list):
            raise _bad_row(where, "its body has no list of messages")
        return prompt_of([_message(message, where) for message in messages])
    if isinstance(row.get("text"), str):
        return Prompt("", row["text"])
    raise _bad_row(where, "it has neither text nor body")


def _message(message: object, where: str) -> Message:
    """Return a logged message with only its text parts."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise _bad_row(where, "a message has no role")
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, Mapping)]
    text = PART_SEPARATOR.join(text for text in texts if isinstance(text, str))
    return Message(message["role"], text)
