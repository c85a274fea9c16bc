"""The texts that the router is trained and tested on: the shipped ones and a user's own log."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from serving.contracts.errors import InvalidRequest
from serving.routing.conversation import Prompt, read

_FILES = ("instructions.jsonl", "payloads.jsonl", "prompts.jsonl", "task_words.jsonl")
_GAP = "{payload}"
# First hex digits of a text's SHA-256: three of sixteen are never trained on.
_HELD_OUT = frozenset("def")


@dataclass(frozen=True, slots=True)
class Labelled:
    """A prompt and what is known of it.

    task: its task; None where it is none; `unknown` where nobody said. payload: of a task.
    complexity: in [0, 1], None where nobody rated it. origin: what it was made from; everything
    with one origin is on one side of a split.
    """

    prompt: Prompt
    task: str | None
    payload: str | None
    complexity: float | None
    origin: str
    kind: str

    @property
    def held_out(self) -> bool:
        """Tell whether this may not be trained on."""
        return hashlib.sha256(self.origin.encode()).hexdigest()[0] in _HELD_OUT


UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Corpus:
    """Labelled prompts and a digest of the files they came from.

    cues: for each task words that tell it from others. others: words of its instructions that do
    not; both beside those in the prompts.
    """

    prompts: tuple[Labelled, ...]
    cues: Mapping[str, frozenset[str]]
    others: Mapping[str, frozenset[str]]
    digest: str

    def part(self, *, held_out: bool) -> tuple[Labelled, ...]:
        """Return the prompts of one side of the split."""
        return tuple(row for row in self.prompts if row.held_out == held_out)


def shipped_corpus(logs: Iterable[Path] = ()) -> Corpus:
    """Return the shipped prompts and those of logs. Reads files, blocking.

    Raises InvalidRequest, which names the line at fault.
    """
    folder = resources.files("serving.routing.texts")
    contents = [(name, (folder / name).read_bytes()) for name in _FILES]
    contents += [(str(path), path.read_bytes()) for path in logs]
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


def _rows(name: str, content: bytes) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(content.decode("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise _bad_row(f"{name}:{number}", str(error)) from error
        if not isinstance(row, dict):
            raise _bad_row(f"{name}:{number}", "not an object")
        rows.append(row)
    return rows


def _bad_row(where: str, problem: str) -> InvalidRequest:
    return InvalidRequest(
        f"{where} is not a labelled prompt: {problem}",
        field=where,
        fix='a row is {"text": …} or {"body": …}, with "task" and "complexity"',
    )


# Payloads for each instruction: enough to show that they do not matter.
_PAYLOADS_EACH = 4


def _wrapped(instructions: Sequence[Mapping[str, Any]], payloads: Sequence[str]) -> list[Labelled]:
    rows = []
    for number, row in enumerate(instructions):
        for step in range(_PAYLOADS_EACH):
            payload = payloads[(number * 7 + step * 11) % len(payloads)]
            prompt = Prompt(row.get("system", ""), row["text"].replace(_GAP, payload))
            origin = f"{row.get('system', '')}\n{row['text']}"
            rows.append(Labelled(prompt, row["task"], payload, None, origin, row["task"]))
    return rows


def _plain(row: Mapping[str, Any]) -> Labelled:
    prompt = Prompt(row.get("system", ""), row["text"])
    return Labelled(prompt, None, None, row["complexity"], prompt.text, row["kind"])


def _logged(row: Mapping[str, Any], where: str) -> Labelled | None:
    """Return a row that a person labelled; None where neither task nor complexity is filled in."""
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
    # A log is the user's to split; all of it is trained on.
    return Labelled(prompt, task, None, complexity, _trained_origin(prompt.text), "log")


def _trained_origin(text: str) -> str:
    origin = text
    while hashlib.sha256(origin.encode()).hexdigest()[0] in _HELD_OUT:
        origin += " "
    return origin


def _prompt_of(row: Mapping[str, Any], where: str) -> Prompt:
    body = row.get("body")
    if isinstance(body, Mapping):
        return read(body, max_chars=1 << 30).prompt
    if isinstance(row.get("text"), str):
        return Prompt("", row["text"])
    raise _bad_row(where, "neither text nor body")
