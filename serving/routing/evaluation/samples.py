"""Makes prompts from a user's development samples.

The wrappers are instructions that are in no training text. The samples never become part of the
project and nothing is trained on them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from serving.contracts.errors import InvalidRequest
from serving.contracts.file_lines import file_lines
from serving.contracts.plain_file import read_plain_text
from serving.routing.conversation import Prompt

# Data sets by file name: the tasks whose texts they are, and the field with the text.
_PAYLOADS: Mapping[str, tuple[str, str]] = {
    "sst2": ("sentiment", "text"),
    "tweet_sentiment": ("sentiment", "text"),
    "ag_news": ("topic", "text"),
    "wnut17": ("ner", "text"),
    "multi30k": ("translation", "en"),
}
# Sets of prompts that are not a task, one prompt a row.
_PROMPTS: Mapping[str, str] = {
    "clinc150": "text",
    "banking77": "text",
    "mmlu_routing": "prompt",
    "gsm8k_routing": "prompt",
}
_CHAT = "mt_bench_questions"
_GAP = "{payload}"
_MOST_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt with its known task. task: None where none. payload: of a task."""

    prompt: Prompt
    task: str | None
    payload: str | None
    source: str


@dataclass(frozen=True, slots=True)
class RoutingSample:
    """A prompt that a cheap and an expensive model answered. source: the data set."""

    text: str
    cheap_right: bool
    expensive_right: bool
    source: str


@dataclass(frozen=True, slots=True)
class ChatSample:
    """An open question. category: as its authors filed it."""

    text: str
    category: str


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of a folder on which the router is measured."""

    tasks: tuple[Sample, ...]
    routing: tuple[RoutingSample, ...]
    chats: tuple[ChatSample, ...]


def read_samples(data: Path, limit: int) -> Samples:
    """Return the samples in a folder, or in one of its files. Reads files, blocking.

    limit: rows read from the beginning of a file. Raises InvalidRequest where there are no samples.
    """
    paths = sorted(data.glob("*.jsonl")) if data.is_dir() else [data]
    files = {path.stem: _rows(path, limit) for path in paths if path.exists()}
    chats = [ChatSample(_turn(row), _text(row, "category", _CHAT)) for row in files.get(_CHAT, [])]
    found = Samples(
        (*_wrapped(files), *_plain(files, chats)),
        tuple(
            sample
            for name, rows in files.items()
            for row in rows
            if (sample := _routing(row, name)) is not None
        ),
        tuple(chats),
    )
    if not found.tasks and not found.routing:
        raise InvalidRequest(
            f"no samples in {str(data)!r}",
            field="--data",
            fix="name a folder with files such as sst2.jsonl or mmlu_routing.jsonl",
        )
    return found


# Names of the fields that state whether the two models were right.
_CHEAP_AND_EXPENSIVE = (("cheap_right", "expensive_right"), ("mixtral_correct", "gpt4_correct"))


def _routing(row: Mapping[str, Any], source: str) -> RoutingSample | None:
    for cheap, expensive in _CHEAP_AND_EXPENSIVE:
        if {"prompt", cheap, expensive} <= set(row):
            return RoutingSample(
                _text(row, "prompt", source), bool(row[cheap]), bool(row[expensive]), source
            )
    return None


def _wrapped(files: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[Sample]:
    """Wrap each text twice: in an instruction of its task, and in one of no task."""
    text = (resources.files(__package__) / "wrappers.jsonl").read_text("utf-8")
    wrappers = [json.loads(line) for line in text.splitlines()]
    others = [wrapper for wrapper in wrappers if wrapper["task"] is None]
    for name, (task, field) in _PAYLOADS.items():
        own = [wrapper for wrapper in wrappers if wrapper["task"] == task]
        for number, row in enumerate(files.get(name, [])):
            payload = " ".join(_text(row, field, name).split())
            yield _wrap(own[number % len(own)], payload, name)
            yield _wrap(others[number % len(others)], payload, f"{name}, other instructions")


def _wrap(wrapper: Mapping[str, Any], payload: str, source: str) -> Sample:
    prompt = Prompt(wrapper.get("system", ""), wrapper["text"].replace(_GAP, payload))
    return Sample(prompt, wrapper["task"], payload if wrapper["task"] else None, source)


def _plain(
    files: Mapping[str, Sequence[Mapping[str, Any]]], chats: Sequence[ChatSample]
) -> Iterator[Sample]:
    for name, field in _PROMPTS.items():
        for row in files.get(name, []):
            yield Sample(Prompt("", _text(row, field, name)), None, None, name)
    for chat in chats:
        yield Sample(Prompt("", chat.text), None, None, _CHAT)


def _text(row: Mapping[str, Any], field: str, name: str) -> str:
    if not isinstance(row.get(field), str):
        raise InvalidRequest(
            f"a row of {name}.jsonl has no text {field!r}",
            field="--data",
            fix=f"give each row of this file a text {field!r}, or remove the file",
        )
    return str(row[field])


def _turn(row: Mapping[str, Any]) -> str:
    turns = row.get("turns")
    first = turns[0] if isinstance(turns, list) and turns else None
    return _text({"turns.0": first}, "turns.0", _CHAT)


def _rows(path: Path, limit: int) -> list[dict[str, Any]]:
    fix = "write one JSON object a line, in UTF-8"
    try:
        lines = file_lines(read_plain_text(path, _MOST_BYTES))
        rows = [json.loads(line) for line in lines[:limit]]
    except OSError as error:
        raise InvalidRequest(
            f"{str(path)!r} cannot be read: {error.strerror}", field="--data", fix=fix
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(
            f"{path.name} is not JSON Lines: {error}", field="--data", fix=fix
        ) from error
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InvalidRequest(
                f"{path.name}, line {number} is not an object", field="--data", fix=fix
            )
    return rows
