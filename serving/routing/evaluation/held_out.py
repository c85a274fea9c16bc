"""The held-out phrasings: requests and near misses that were written before the rules were read.

Nothing is trained on them. Each row belongs to a part: A and B were written before the rules were
read, C when the rules were nearly done, D by another author who had read a part of the rules, E by
a third who had read none of them, F and G by a fourth who had read none of them. Each was measured
once before the errors that it showed were corrected; G after those of F.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from itertools import count
from typing import Any, Literal, get_args

from serving.routing.conversation import Prompt
from serving.routing.evaluation.samples import Sample

Half = Literal["A", "B", "C", "D", "E", "F", "G"]
HALVES: tuple[Half, ...] = get_args(Half)
_GAP = "{t}"
# Texts for each near miss, and additions for each request.
_TEXTS_EACH = 4
_ADDITIONS_EACH = 4

_Row = Mapping[str, Any]


def held_out_samples(half: Half) -> tuple[Sample, ...]:
    """Return the conversations of one half, always the same. Reads a file, blocking.

    Sources: `requests` of a task; `near misses`, written as such; `additions`, a request with an
    addition that asks for more or other.
    """
    text = (resources.files(__package__) / "held_out.jsonl").read_text("utf-8")
    rows: list[_Row] = [json.loads(line) for line in text.splitlines()]
    texts: dict[str, list[str]] = {}
    for row in rows:
        if row["part"] == "text":
            texts.setdefault(row["language"], []).append(row["template"])
    own = [row for row in rows if row.get("half") == half]
    numbers = count()
    narrow = [row for row in own if row["part"] == "narrow"]
    return (
        *(sample for row in narrow for sample in _requests(row, texts, numbers)),
        *_near_misses([row for row in own if row["part"] == "other"], texts, numbers),
        *_additions(narrow, [row for row in own if row["part"] == "twist"], texts, numbers),
    )


def _text_of(row: _Row, texts: Mapping[str, Sequence[str]], number: int) -> str:
    found = texts[row.get("source") or row["language"]]
    return found[number % len(found)]


def _requests(
    row: _Row, texts: Mapping[str, Sequence[str]], numbers: Iterator[int]
) -> Iterator[Sample]:
    """Yield a phrasing as one message, and with the instruction as the system message."""
    template: str = row["template"]
    text = _text_of(row, texts, next(numbers))
    yield Sample(Prompt("", template.replace(_GAP, text)), row["task"], text, "requests")
    order = template.removesuffix(_GAP).rstrip(" \n:")
    if order != template.rstrip(" \n:") and _GAP not in order:
        text = _text_of(row, texts, next(numbers))
        yield Sample(Prompt(order, text), row["task"], text, "requests")


def _near_misses(
    rows: Sequence[_Row], texts: Mapping[str, Sequence[str]], numbers: Iterator[int]
) -> Iterator[Sample]:
    for row in rows:
        for _ in range(_TEXTS_EACH if _GAP in row["template"] else 1):
            text = _text_of(row, texts, next(numbers))
            prompt = Prompt("", row["template"].replace(_GAP, text))
            yield Sample(prompt, None, None, "near misses")


def _additions(
    narrow: Sequence[_Row],
    additions: Sequence[_Row],
    texts: Mapping[str, Sequence[str]],
    numbers: Iterator[int],
) -> Iterator[Sample]:
    for number, row in enumerate(narrow):
        same = [one for one in additions if one["language"] == row["language"]]
        for step in range(_ADDITIONS_EACH if same else 0):
            added = same[(number * 7 + step * 5) % len(same)]["template"]
            template: str = row["template"]
            order = template.removesuffix("\n\n{t}")
            text = _text_of(row, texts, next(numbers))
            whole = (
                f"{order} {added}\n\n{text}"
                if order != template
                else f"{template.replace(_GAP, text)}\n\n{added}"
            )
            yield Sample(Prompt("", whole), None, None, "additions")
