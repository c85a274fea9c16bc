"""Finds the mentions that a model named in the input text.

A mention is found at word borders, at an occurrence of its own, and reported in the text's own
spelling: `text[start:end]`. Composed and decomposed Unicode spellings are equal. A mention without
such an occurrence is searched again without regard to case, width, quotation marks, hyphens and the
kind of white space.
"""

import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from serving.contracts.answer import Entity
from serving.tasks.blank_text import is_blank

# Scripts that put no space between words: every position is a word border.
_UNSPACED_SCRIPTS = frozenset(
    {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HALFWIDTH", "BOPOMOFO", "THAI", "LAO",
     "KHMER", "MYANMAR", "TIBETAN", "YI", "JAVANESE", "BALINESE"}
)  # fmt: skip
# Korean particles follow a noun without a space.
_SUFFIXING_SCRIPTS = frozenset({"HANGUL"})
_LOOK_ALIKES = str.maketrans("‘’‚‛“”„‟«»‐‑‒–—−", '\'\'\'\'""""""------')  # noqa: RUF001

# Longer texts are searched for exact mentions only: folding one takes about 1 s a million
# characters.
_LENIENT_CHARS = 200_000


def locate(mentions: Sequence[tuple[str, str]], text: str) -> tuple[list[Entity], list[str]]:
    """Return the entities in the text's order, and notes on the mentions that were left out.

    mentions: (mention, type) pairs as the model named them. Offsets count Unicode code points of
    `text`. The n-th mention of the same text is its n-th occurrence. A mention that does not occur,
    or occurs fewer times than it was named, is left out and counted in a note.
    """
    spans = _spans([mention for mention, _ in mentions], text)
    entities = [
        Entity(text=text[start:end], type=entity_type, start=start, end=end)
        for (_, entity_type), (start, end) in zip(mentions, spans, strict=True)
        if end > start
    ]
    entities.sort(key=lambda entity: (entity.start, entity.end))
    missing = len(mentions) - len(entities)
    notes = [f"entities left out because they are not in the input: {missing}"] if missing else []
    return entities, notes


Span = tuple[int, int]
_MISSING: Span = (0, 0)


def _spans(mentions: Sequence[str], text: str) -> list[Span]:
    """Return the span of each mention, `_MISSING` where there is none."""
    occurrences = _Occurrences(mentions, text)
    in_order = _assigned(mentions, occurrences, in_order=True)
    # Models mostly name entities in the order of the text. Where one did not, the order shows
    # nothing about the occurrence of a mention.
    return in_order or _assigned(mentions, occurrences, in_order=False) or []


def _assigned(
    mentions: Sequence[str], occurrences: "_Occurrences", *, in_order: bool
) -> list[Span] | None:
    """Return a span for each mention; None where `in_order` cannot be kept."""
    taken: set[Span] = set()
    claimed = bytearray(occurrences.text_chars)
    position = 0
    spans = []
    for mention in mentions:
        span = occurrences.first(mention, position, taken, claimed)
        if span is None and in_order and occurrences.first(mention, 0, taken, claimed):
            return None
        # A mention inside another one ("Bank of England", "England") shares its characters.
        span = span or next((s for s in occurrences.of(mention) if s not in taken), _MISSING)
        taken.add(span)
        claimed[span[0] : span[1]] = b"\x01" * (span[1] - span[0])
        if in_order:
            position = max(position, span[0])
        spans.append(span)
    return spans


class _Occurrences:
    """Every place at which each of some mentions occurs in a text."""

    def __init__(self, mentions: Sequence[str], text: str) -> None:
        self.text_chars = len(text)
        canonical = _Folded.of(text, _canonical)
        self._spans = {mention: canonical.occurrences(mention) for mention in set(mentions)}
        absent = [mention for mention, spans in self._spans.items() if not spans]
        if absent and len(text) <= _LENIENT_CHARS:
            lenient = _Folded.of(text, _lenient)
            self._spans |= {mention: lenient.occurrences(mention) for mention in absent}
        inner = self._nested()
        self._alone = {m: [s for s in spans if s not in inner] for m, spans in self._spans.items()}
        self._inside = {m: [s for s in spans if s in inner] for m, spans in self._spans.items()}

    def of(self, mention: str) -> Sequence[Span]:
        """Return the spans of a mention, left to right."""
        return self._spans[mention]

    def first(
        self, mention: str, position: int, taken: set[Span], claimed: bytearray
    ) -> Span | None:
        """Return a mention's first free span that begins at `position` or after it.

        One that is not part of a longer mention's occurrence goes first.
        """
        for spans in (self._alone[mention], self._inside[mention]):
            for index in range(bisect_left(spans, (position, 0)), len(spans)):
                start, end = spans[index]
                if (start, end) not in taken and not any(claimed[start:end]):
                    return spans[index]
        return None

    def _nested(self) -> set[Span]:
        """Return the spans that are part of an occurrence of a longer mention."""
        everything = sorted(
            {span for spans in self._spans.values() for span in spans},
            key=lambda span: (span[0], -span[1]),
        )
        inner: set[Span] = set()
        reached = 0
        for span in everything:
            if span[1] <= reached:
                inner.add(span)
            reached = max(reached, span[1])
        return inner


@dataclass(frozen=True, slots=True)
class _Folded:
    """A text in a form for comparison. starts, ends: of each folded character in the text.

    Characters that fold together (a letter and its accents) share start and end.
    """

    text: str
    folded: str
    starts: Sequence[int]
    ends: Sequence[int]
    fold: Callable[[str], str]

    @classmethod
    def of(cls, text: str, fold: Callable[[str], str]) -> "_Folded":
        if fold is _canonical and _is_canonical(text):
            return cls(text, text, range(len(text)), range(1, len(text) + 1), fold)
        pieces: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        for start, end in _clusters(text):
            piece = fold(text[start:end])
            if piece == " " and pieces and pieces[-1] == " ":
                continue
            pieces.append(piece)
            starts += [start] * len(piece)
            ends += [end] * len(piece)
        return cls(text, "".join(pieces), starts, ends, fold)

    def occurrences(self, mention: str) -> list[Span]:
        """Return the spans of a mention at word borders, left to right, disjoint."""
        wanted = "" if is_blank(mention) else _Folded.of(mention.strip(), self.fold).folded.strip()
        found: list[Span] = []
        at = self.folded.find(wanted) if wanted else -1
        while at != -1:
            last = at + len(wanted) - 1
            start, end = self.starts[at], self.ends[last]
            whole = (at == 0 or self.starts[at - 1] != start) and (
                last + 1 == len(self.folded) or self.ends[last + 1] != end
            )
            is_found = (
                whole and _is_word_border(self.text, start) and _is_word_border(self.text, end)
            )
            if is_found:
                found.append((start, end))
            at = self.folded.find(wanted, last + 1 if is_found else at + 1)
        return found


def _is_canonical(text: str) -> bool:
    """Return whether no character combines with another in the composed form."""
    return text.isascii() or (
        unicodedata.is_normalized("NFC", text) and not any(map(_continues, set(text)))
    )


def _canonical(cluster: str) -> str:
    return unicodedata.normalize("NFC", cluster)


def _lenient(cluster: str) -> str:
    if cluster.isspace():
        return " "
    folded = unicodedata.normalize("NFKC", cluster).casefold().translate(_LOOK_ALIKES)
    return "".join(c for c in folded if unicodedata.category(c) != "Cf")


def _clusters(text: str) -> list[Span]:
    """Return the spans of characters with the marks that follow them, left to right."""
    if text.isascii():
        return [(n, n + 1) for n in range(len(text))]
    starts = [n for n, character in enumerate(text) if n == 0 or not _continues(character)]
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


@lru_cache(maxsize=4096)
def _continues(character: str) -> bool:
    """Return whether a character is a mark, or a Hangul vowel or final, of the one before it."""
    return unicodedata.category(character)[0] == "M" or "\u1160" <= character <= "\u11ff"


def _is_word_border(text: str, position: int) -> bool:
    """Return whether a word may begin or end between two characters."""
    left, right = position - 1, position
    # A soft hyphen or a joiner inside a word shows nothing and parts nothing.
    while left >= 0 and _is_joining(text[left]):
        left -= 1
    while right < len(text) and _is_joining(text[right]):
        right += 1
    if left < 0 or right == len(text):
        return True
    before, after = _word_script(text[left]), _word_script(text[right])
    if before is None or after is None:
        return True
    return not {before, after}.isdisjoint(_UNSPACED_SCRIPTS) or before in _SUFFIXING_SCRIPTS


@lru_cache(maxsize=4096)
def _is_joining(character: str) -> bool:
    """Return whether a format character has no effect on word borders; a zero-width space has."""
    return unicodedata.category(character) == "Cf" and character not in "\u200b\ufeff"


@lru_cache(maxsize=4096)
def _word_script(character: str) -> str | None:
    """Return the first word of a letter's, digit's or mark's Unicode name; None for others."""
    if not character.isalnum() and unicodedata.category(character)[0] != "M":
        return None
    return unicodedata.name(character, "UNNAMED").split(maxsplit=1)[0]
