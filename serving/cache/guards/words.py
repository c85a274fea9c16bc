"""A text as words: tokens, stems and language, computed once for all guards. Pure."""

import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property

from serving.cache.guards.function_words import FILLERS, FUNCTION_WORDS, Language

_CONTRACTIONS = (
    (re.compile(r"\bwon't\b", re.I), "will not"),
    (re.compile(r"\bshan't\b", re.I), "shall not"),
    (re.compile(r"\b(?:can't|cannot)\b", re.I), "can not"),
    (re.compile(r"\bain't\b", re.I), "is not"),
    (re.compile(r"(?<=\w)n't\b", re.I), " not"),
    (re.compile(r"\b(i)'m\b", re.I), r"\1 am"),
    (re.compile(r"(?<=\w)'re\b", re.I), " are"),
    (re.compile(r"(?<=\w)'ve\b", re.I), " have"),
    (re.compile(r"(?<=\w)'ll\b", re.I), " will"),
    (re.compile(r"\b(what|who|where|when|how|why|that|there|it|he|she)'s\b", re.I), r"\1 is"),
    (re.compile(r"(?<=\w)'s\b", re.I), ""),
    # French elision: l'eau, d'un, qu'est-ce, aujourd'hui stays one word.
    (re.compile(r"\b(l|d|j|m|t|s|c|n|qu|jusqu|lorsqu|puisqu)'(?=\w)", re.I), r"\1' "),
    (re.compile(r"\best-(?=ce\b|il\b|elle\b)", re.I), "est "),
    (
        re.compile(r"(?<=\w)-(?:t-)?(?=(?:je|tu|il|elle|on|nous|vous|ils|elles|moi|ce)\b)", re.I),
        " ",
    ),
)
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u02bc": "'", "\u2018": "'", "\u00b4": "'"})
_TOKEN = re.compile(
    r"\b(?:l|d|j|m|t|s|c|n|qu|jusqu|lorsqu|puisqu)'(?= )|"
    r"[^\W_]+(?:[.'\u2010\u2011-][^\W_]+)*(?:\+\+|#)?",
    re.I,
)
_SENTENCE_END = re.compile(r"[.!?:;\u00bf\u00a1\n]\W*$")

# The endings of a language's inflection, the longest first; the stem keeps three letters.
_ENDINGS: dict[Language | None, tuple[str, ...]] = {
    "en": ("ings", "ing", "ied", "ies", "ed", "es", "s", "e"),
    "de": ("ern", "en", "em", "er", "es", "st", "e", "n", "s", "t"),
    "fr": ("aient", "ées", "ons", "ent", "ait", "ée", "és", "er", "ez", "es", "é", "e", "s"),
    "es": ("aron", "iendo", "ando", "amos", "ado", "ada", "ar", "er", "ir", "es", "as", "os",
           "an", "en", "a", "o", "e", "s"),
    None: ("s",),
}  # fmt: skip
_SHORTEST_STEM = 3
_FEWEST_LANGUAGE_WORDS = 1


@dataclass(frozen=True)
class Words:
    """A text as guards see it. Two of the same text are equal."""

    text: str

    @cached_property
    def plain(self) -> str:
        """The text with composed characters, plain apostrophes and contractions spelled out.

        Compatibility forms stay: in 10² the 2 is an exponent.
        """
        text = unicodedata.normalize("NFC", self.text).translate(_APOSTROPHES)
        for pattern, replacement in _CONTRACTIONS:
            text = pattern.sub(replacement, text)
        return text

    @cached_property
    def _matches(self) -> tuple[re.Match[str], ...]:
        return tuple(_TOKEN.finditer(self.plain))

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """The words as written, numbers included."""
        return tuple(match[0] for match in self._matches)

    @cached_property
    def places(self) -> tuple[int, ...]:
        """Where each word begins in `plain`."""
        return tuple(match.start() for match in self._matches)

    @cached_property
    def lower(self) -> tuple[str, ...]:
        """The words in lower case."""
        return tuple(token.lower() for token in self.tokens)

    @cached_property
    def present(self) -> frozenset[str]:
        """The words in lower case, without order."""
        return frozenset(self.lower)

    @cached_property
    def starts(self) -> frozenset[int]:
        """Indices of words that begin a sentence."""
        found = {0}
        for index, match in enumerate(self._matches[1:], 1):
            between = self.plain[self._matches[index - 1].end() : match.start()]
            if _SENTENCE_END.search(between):
                found.add(index)
        return frozenset(found)

    @cached_property
    def line(self) -> str:
        """The words in lower case with one space around each, to search phrases in."""
        return f" {' '.join(self.lower)} "

    @cached_property
    def language(self) -> Language | None:
        """The language by its function words; None where no language has most of them."""
        counts: list[tuple[int, Language]] = sorted(
            ((sum(word in words for word in self.lower), code)
             for code, words in FUNCTION_WORDS.items()),
            reverse=True,
        )  # fmt: skip
        (most, code), (second, _) = counts[0], counts[1]
        return code if most > second and most >= _FEWEST_LANGUAGE_WORDS else None

    @cached_property
    def stems(self) -> tuple[str, ...]:
        """The words without inflection, in order."""
        return tuple(stem(word, self.language) for word in self.lower)

    @cached_property
    def content(self) -> tuple[int, ...]:
        """Indices of words that are no function words."""
        known = FUNCTION_WORDS[self.language] if self.language is not None else frozenset()
        return tuple(n for n, word in enumerate(self.lower) if word not in known)

    @cached_property
    def weighty(self) -> tuple[int, ...]:
        """Indices of content words that are no fillers either."""
        known = FILLERS[self.language] if self.language is not None else frozenset()
        return tuple(n for n in self.content if self.lower[n] not in known)

    @cached_property
    def notes(self) -> dict[str, str]:
        """What guards found in this text, by name, so that it is found once for all pairs."""
        return {}

    def has_any(self, *phrases: str) -> bool:
        """Return whether one of some words or phrases, in lower case, occurs."""
        return any(
            f" {phrase} " in self.line if " " in phrase else phrase in self.present
            for phrase in phrases
        )


def stem(word: str, language: Language | None) -> str:
    """Return a word without the ending of its inflection. word: in lower case.

    Rough on purpose: it is only asked whether two words may be forms of one.
    """
    if language == "en":
        word = _american(word)
    for ending in _ENDINGS[language]:
        if word.endswith(ending) and len(word) - len(ending) >= _SHORTEST_STEM:
            if ending == "s" and word.endswith("ss"):
                # goddess, goddesses
                continue
            base = word[: -len(ending)]
            if ending in ("ied", "ies"):
                return base + "i"
            is_doubled = ending in ("ing", "ed") and len(base) > _SHORTEST_STEM
            is_doubled = is_doubled and base[-1] == base[-2] and base[-1] not in "lsz"
            base = base[:-1] if is_doubled else base
            if language == "de" and base.endswith("er") and len(base) >= _SHORTEST_STEM + 2:
                # ändere, ändern
                base = base[:-2]
            return base[:-1] + "i" if language == "en" and base.endswith("y") else base
    return word[:-1] + "i" if language == "en" and len(word) > 3 and word.endswith("y") else word


# British spelling, by its endings; the words are long enough not to meet another word.
_BRITISH = (
    (re.compile(r"(?<=\w{2})our(?=s?$|ed$|ing$|ful$|ite$|able$)"), "or"),
    (re.compile(r"(?<=\w{3})is(?=e[ds]?$|ing$|ation)"), "iz"),
    (re.compile(r"(?<=\w{3})ys(?=e[ds]?$|ing$)"), "yz"),
    (re.compile(r"(?<=\w{2})tre(?=s?$)"), "ter"),
    (re.compile(r"(?<=\w{2})gue(?=s?$)"), "g"),
    (re.compile(r"(?<=\w{3})ence(?=s?$)"), "ense"),
    (re.compile(r"(?<=\w)ae(?=\w{3})|^oe(?=\w{4})"), "e"),
    (re.compile(r"(?<=\w{2}[aeiou])ll(?=ed$|ing$|ers?$)"), "l"),
    (re.compile(r"(?<=\w{2})mme(?=s?$)"), "m"),
)


def _american(word: str) -> str:
    """Return an English word without accents, as Americans write it."""
    if len(word) < 5:
        return word
    if not word.isascii():
        plain = unicodedata.normalize("NFD", word)
        word = "".join(character for character in plain if not unicodedata.combining(character))
    for pattern, american in _BRITISH:
        word = pattern.sub(american, word)
    return word


def may_be_forms(first: str, second: str, language: Language | None) -> bool:
    """Return whether two words in lower case may be forms of one word."""
    return first == second or stem(first, language) == stem(second, language)
