"""Questions with contexts: the shipped ones, written for this project, and files of a user's own.

A shipped file holds a group of related articles. A line with `# ` begins an article, a blank line
a paragraph. `? question | answer` asks for an answer that the article holds word for word; several
answers, joined by ` & `, are all needed; ` @ TITLE` names another article of the group for one.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from serving.contracts.errors import InvalidArgument
from serving.contracts.file_lines import file_lines, unreadable_because
from serving.contracts.plain_file import read_plain_text
from serving.contracts.text_length import quarter_tokens

Half = Literal["fit", "held_out"]
HALVES: tuple[Half, ...] = ("fit", "held_out")

_MOST_BYTES = 256 * 2**20
_LEAST_TOKENS, _MOST_TOKENS = 600, 2000


@dataclass(frozen=True, slots=True)
class Need:
    """One answer that must stay. aliases: any of these words. documents: indices of those that
    hold it."""

    aliases: tuple[str, ...]
    documents: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Pair:
    """A question with its context. documents: (title, text). group: pairs of one are related."""

    question: str
    documents: tuple[tuple[str, str], ...]
    needs: tuple[Need, ...]
    group: str

    @property
    def is_reachable(self) -> bool:
        """Return whether the whole context holds every answer."""
        texts = [text for _, text in self.documents]
        return bool(self.needs) and all(holds(need, texts) for need in self.needs)


def holds(need: Need, texts: Sequence[str]) -> bool:
    """Return whether the documents' texts still hold an answer."""
    found = [texts[index].casefold() for index in need.documents]
    return any(alias.casefold() in text for alias in need.aliases for text in found)


@dataclass(frozen=True, slots=True)
class _Article:
    title: str
    paragraphs: tuple[str, ...]
    questions: tuple[str, ...]
    group: str

    @property
    def tokens(self) -> int:
        return sum(quarter_tokens(text) for text in self.paragraphs) // 4


def shipped_pairs(half: Half) -> tuple[Pair, ...]:
    """Return the pairs of one half; the articles of the two halves are different. Deterministic."""
    folder = files("serving.context").joinpath("texts", half)
    names = sorted(file.name for file in folder.iterdir() if file.name.endswith(".txt"))
    articles = [
        article
        for name in names
        for article in _articles(folder.joinpath(name).read_text(encoding="utf-8"), name)
    ]
    return tuple(
        _pair(line, article, articles) for article in articles for line in article.questions
    )


def _articles(text: str, group: str) -> Iterator[_Article]:
    for block in ("\n" + text).split("\n# ")[1:]:
        title, _, rest = block.partition("\n")
        lines = rest.split("\n? ")
        paragraphs = tuple(" ".join(p.split()) for p in lines[0].split("\n\n") if p.strip())
        yield _Article(title.strip(), paragraphs, tuple(line.strip() for line in lines[1:]), group)


def _pair(line: str, article: _Article, articles: Sequence[_Article]) -> Pair:
    question, _, answers = line.partition(" | ")
    wanted: list[tuple[str, str]] = []
    for answer in answers.split(" & "):
        text, _, elsewhere = answer.partition(" @ ")
        wanted.append((text, elsewhere or article.title))
    order = random.Random(hashlib.sha256(question.encode()).digest())  # noqa: S311
    chosen = _chosen(article, {title for _, title in wanted}, articles, order)
    documents = [(a.title, text) for a in chosen for text in a.paragraphs]
    if order.random() < 0.5:
        # Half of the contexts are passages in any order, as a search returns them.
        order.shuffle(documents)
    needs = tuple(
        Need((text,), tuple(n for n, d in enumerate(documents) if d[0] == title and text in d[1]))
        for text, title in wanted
    )
    return Pair(question, tuple(documents), needs, article.group)


def _chosen(
    article: _Article, titles: set[str], articles: Sequence[_Article], order: random.Random
) -> list[_Article]:
    """Return the answers' articles and others, related ones first, of 600 to 2,000 tokens."""
    related = [a for a in articles if a.group == article.group]
    chosen = [a for a in related if a.title in titles]
    others = [a for a in related if a.title not in titles]
    order.shuffle(others)
    far = [a for a in articles if a.group != article.group]
    order.shuffle(far)
    length = order.randint(_LEAST_TOKENS, _MOST_TOKENS)
    for candidate in [*others, *far]:
        used = sum(a.tokens for a in chosen)
        if used >= length or used + candidate.tokens > _MOST_TOKENS:
            break
        chosen.append(candidate)
    order.shuffle(chosen)
    return chosen


def read_pairs(file: Path) -> tuple[Pair, ...]:
    """Return the pairs of a file of JSON Lines.

    Each has `question`, `answers` (any of them) and `documents` (`title`, `text`, `gold`: holds the
    answer). Raises InvalidArgument.
    """
    found: list[Pair] = []
    try:
        lines = file_lines(read_plain_text(file, _MOST_BYTES))
    except (OSError, ValueError) as error:
        raise InvalidArgument(
            f"{file} cannot be read: {unreadable_because(error)}", field="FILE"
        ) from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(_read_pair(json.loads(line)))
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                raise InvalidArgument(
                    f"{file}, line {number} is not a question with a context: "
                    f"{unreadable_because(error)}",
                    field="FILE",
                    fix='write {"question": TEXT, "answers": [TEXT], "documents": [{"title": TEXT, '
                    '"text": TEXT, "gold": true}]} a line',
                ) from error
    if not found:
        raise InvalidArgument(f"{file} holds no pair", field="FILE", fix="write one a line")
    return tuple(found)


def _read_pair(row: Mapping[str, Any]) -> Pair:
    documents = tuple((_text(d.get("title", "")), _text(d["text"])) for d in row["documents"])
    answers = tuple(_text(answer) for answer in row["answers"])
    gold = tuple(n for n, d in enumerate(row["documents"]) if d.get("gold", True) is True)
    if not answers or not documents:
        raise ValueError("no answer or no document")
    question = _text(row["question"])
    if not question.strip() or not all(answer.strip() for answer in answers):
        raise ValueError("an empty question or answer")
    if not any(text.strip() for _, text in documents):
        raise ValueError("no document with a text")
    title = documents[gold[0]][0] if gold else ""
    return Pair(question, documents, (Need(answers, gold),), title)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    # Half of a character, which JSON can spell, is no text.
    value.encode()
    return value
