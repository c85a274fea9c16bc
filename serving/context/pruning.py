"""Removes from a context what its question does not need. Deterministic."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.context.ranking import Model, Passages, Ranker
from serving.context.units import Division, Unit, divide
from serving.contracts.prices import TokenPrices
from serving.contracts.text_length import quarter_tokens

MARKER = "[...]"
"""Stands where text was removed."""

RULES_VERSION = "3"
"""Raised with every change of what is removed: claims about pruned contexts begin anew."""

_LONGEST_PASSAGE = 8
"""Units."""

_MOST_NEEDED = 2
"""Units before a kept one that a chain of pronouns keeps."""
_QUOTED = re.compile(
    '["\u201c\u201e\u00ab]([^"\u201c\u201d\u201e\u00ab\u00bb]{3,300})["\u201d\u201c\u00bb]'
)


@dataclass(frozen=True, slots=True)
class Part:
    """One text of a context. title: where it has one beside the text."""

    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Pruned:
    """The texts that are left, one for each part. Token counts are rough: see text_length."""

    texts: tuple[str, ...]
    tokens_before: int
    tokens_after: int


@dataclass(frozen=True, slots=True)
class Divided:
    """A context's units. candidates: (part, unit) of those that may be removed, in order."""

    divisions: tuple[Division, ...]
    candidates: tuple[tuple[int, int], ...]
    passages: Passages

    @classmethod
    def of(cls, parts: Sequence[Part]) -> "Divided":
        """Return the units of a context's parts."""
        divisions: list[Division] = []
        titles: list[str] = []
        for part in parts:
            divisions.append(divide(part.text, part.title, len(titles)))
            titles += divisions[-1].titles or [part.title]
        candidates = tuple(
            (number, index)
            for number, division in enumerate(divisions)
            for index, unit in enumerate(division.units)
            if not unit.is_protected and not unit.is_title
        )
        units = [divisions[number].units[index] for number, index in candidates]
        texts = [divisions[n].of(u) for (n, _), u in zip(candidates, units, strict=True)]
        numbers, named = _windows([unit.passage for unit in units], titles)
        passages = Passages(texts, numbers, named)
        return cls(tuple(divisions), candidates, passages)


def _windows(passages: Sequence[int], titles: Sequence[str]) -> tuple[NDArray[np.intp], list[str]]:
    """Return each unit's passage as it is ranked, and these passages' titles.

    A text without paragraphs is ranked in stretches of a paragraph's length.
    """
    numbers: list[int] = []
    named: list[str] = []
    before, length = -1, 0
    for passage in passages:
        if passage != before or length == _LONGEST_PASSAGE:
            named.append(titles[passage])
            length = 0
        before, length = passage, length + 1
        numbers.append(len(named) - 1)
    return np.array(numbers, np.intp), named


class Pruner:
    """Prunes contexts with one model. Threads may share it."""

    def __init__(self, ranker: Ranker, model: Model) -> None:
        self._ranker = ranker
        self._model = model

    def scores(self, question: str, divided: Divided) -> NDArray[np.float32]:
        """Return each candidate's score. Blocking."""
        if not divided.candidates:
            return np.zeros(0, np.float32)
        return self._model.scores(self._ranker.features(question, divided.passages))

    def prune(self, question: str, parts: Sequence[Part], keep: float | None = None) -> Pruned:
        """Return the parts without the units that the question does not need. Blocking.

        keep: share of the context's tokens to keep, in (0, 1]; None keeps the units above the
        model's certified threshold. Linear in the context's length.
        """
        divided = Divided.of(parts)
        scores = self.scores(question, divided)
        kept = [np.array([unit.is_protected for unit in d.units], bool) for d in divided.divisions]
        _keep_quoted(question, divided, kept)
        if keep is None:
            chosen = scores >= self._model.threshold
            if len(scores):
                chosen[int(scores.argmax())] = True
            for (number, index), is_chosen in zip(divided.candidates, chosen, strict=True):
                kept[number][index] |= bool(is_chosen)
        else:
            _keep_best(divided, scores, kept, keep)
        texts = tuple(
            _rendered(division, _completed(division, flags))
            for division, flags in zip(divided.divisions, kept, strict=True)
        )
        before = sum(quarter_tokens(part.text) for part in parts) // 4
        return Pruned(texts, before, sum(map(quarter_tokens, texts)) // 4)


def _keep_quoted(question: str, divided: Divided, kept: Sequence[NDArray[np.bool_]]) -> None:
    """Keep the units that hold a quotation of the question."""
    quoted = [found.strip().casefold() for found in _QUOTED.findall(question)[:16]]
    for (number, index), text in zip(divided.candidates, divided.passages.texts, strict=True):
        if quoted and any(words in text.casefold() for words in quoted):
            kept[number][index] = True


def _keep_best(
    divided: Divided,
    scores: NDArray[np.float32],
    kept: Sequence[NDArray[np.bool_]],
    share: float,
) -> None:
    """Keep the units of the highest scores within a share of the context's tokens, at least one.

    Titles and units that must be kept with another count as well.
    """
    total = sum(quarter_tokens(division.text) for division in divided.divisions)
    budget = _Budget(divided, kept, share * total)
    for rank, position in enumerate(np.argsort(-scores, kind="stable").tolist()):
        number, index = divided.candidates[position]
        if not kept[number][index] and not budget.take(number, index) and rank:
            break


class _Budget:
    """What a context may still keep, in quarters of tokens. kept: changed as units are taken."""

    def __init__(
        self, divided: Divided, kept: Sequence[NDArray[np.bool_]], quarters: float
    ) -> None:
        self._divisions = divided.divisions
        self._kept = kept
        self._titles: dict[int, int] = {}
        self._named: set[int] = set()
        self._left = quarters
        for division, flags in zip(divided.divisions, kept, strict=True):
            for unit, flag in zip(division.units, flags, strict=True):
                length = quarter_tokens(division.of(unit))
                if unit.is_title:
                    self._titles[unit.passage] = self._titles.get(unit.passage, 0) + length
                elif flag:
                    self._left -= length
                    self._named.add(unit.passage)
        self._left -= sum(self._titles.get(passage, 0) for passage in self._named)

    def take(self, number: int, index: int) -> bool:
        """Keep a unit with what it needs; return whether the budget sufficed."""
        division, flags = self._divisions[number], self._kept[number]
        at: int | None = index
        for _ in range(_MOST_NEEDED + 1):
            if at is None or flags[at]:
                break
            flags[at] = True
            self._left -= quarter_tokens(division.of(division.units[at]))
            at = division.units[at].needs
        passage = division.units[index].passage
        if passage not in self._named:
            self._named.add(passage)
            self._left -= self._titles.get(passage, 0)
        return self._left > 0


def _completed(division: Division, flags: NDArray[np.bool_]) -> list[bool]:
    """Return the units to keep: those flagged, what they need, and their passages' titles."""
    # Lists: most texts have few units, and each look at an array's element takes longer.
    kept: list[bool] = flags.tolist()
    depth = [0 if is_kept else _MOST_NEEDED + 1 for is_kept in kept]
    named: set[int] = set()
    for index in range(len(division.units) - 1, -1, -1):
        unit = division.units[index]
        if kept[index] and unit.needs is not None and depth[index] < _MOST_NEEDED:
            kept[unit.needs] = True
            depth[unit.needs] = min(depth[unit.needs], depth[index] + 1)
        if kept[index] and not unit.is_title:
            named.add(unit.passage)
    for index, unit in enumerate(division.units):
        kept[index] |= unit.is_title and unit.passage in named
    return kept


def _rendered(division: Division, kept: Sequence[bool]) -> str:
    """Return the kept units' text as it was, with a marker for each stretch that was removed."""
    pieces: list[str] = []
    removed: list[Unit] = []
    for unit, is_kept in zip(division.units, kept, strict=True):
        if not is_kept:
            removed.append(unit)
            continue
        pieces += [_stretch(division, removed), division.of(unit)]
        removed = []
    pieces.append(_stretch(division, removed))
    return "".join(pieces)


def _stretch(division: Division, removed: Sequence[Unit]) -> str:
    if not removed:
        return ""
    text = division.text[removed[0].start : removed[-1].end]
    words = text.rstrip()
    # Removing less than the marker is long saves nothing.
    return text if len(words) <= len(MARKER) else MARKER + text[len(words) :]


def pays_to_prune(prices: TokenPrices, *, cached: int, start: int, before: int, after: int) -> bool:
    """Return whether a request costs less with a pruned text than with the whole one.

    cached: tokens at the prompt's start that the provider's cache serves. start: tokens of the
    prompt before the text. before, after: its tokens, whole and pruned. A changed text ends the
    cached prefix: what follows it is read at the full price.
    """
    lost = max(0, cached - start)
    behind = max(0, lost - before)
    read = min(before, lost)
    whole = read * prices.cache_read + (before - read) * prices.uncached_input
    whole += behind * prices.cache_read
    pruned = (after + behind) * prices.uncached_input
    return pruned < whole
