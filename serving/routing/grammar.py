"""Generates clauses of requests from the shipped grammars, with the class of each.

A template is text with `(a|b)` for a choice, `[a]` for what may be left out and `{name}` for a
slot. Parentheses without a bar are text. The same seed gives the same clauses.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

BENIGN = "benign"
FOREIGN = "foreign"
LANGUAGES = ("en", "de", "fr", "es")

_SLOT = re.compile(r"\{([a-z_]+)\}")
_CHOICE = re.compile(r"\(([^()\[\]]*\|[^()\[\]]*)\)|\[([^()\[\]|,]*(?:\|[^()\[\]]*)?)\]")
# Slots whose words are open: a reader understands the clause without knowing the word.
_OPEN_SLOTS = frozenset(
    ("noun", "verb_label", "verb_extract", "imp", "inf", "ximp", "xinf", "verb_translate")
)
_FOREIGN_SLOTS = frozenset(("odd", "things", "olabels"))
_UNKNOWN_SHARE = {BENIGN: 0.15, FOREIGN: 0.25}
_TYPO_SHARE = 0.10
_PLAIN_SHARE = 0.08
_ADJUNCT_SHARE = 0.35
_BENIGN_SHARE = 0.4
_JOINTS = {
    "en": (" and ", ", ", " "), "de": (" und ", ", ", " "), "fr": (" et ", ", ", " "),
    "es": (" y ", ", ", " "),
}  # fmt: skip
_SYLLABLES = [
    "ba",
    "be",
    "bi",
    "bo",
    "da",
    "de",
    "di",
    "do",
    "fa",
    "fe",
    "fi",
    "fo",
    "ga",
    "ge",
    "gi",
    "go",
    "ka",
    "ke",
    "ki",
    "ko",
    "la",
    "le",
    "li",
    "lo",
    "ma",
    "me",
    "mi",
    "mo",
    "na",
    "ne",
    "ni",
    "no",
    "pa",
    "pe",
    "pi",
    "po",
    "ra",
    "re",
    "ri",
    "ro",
    "sa",
    "se",
    "si",
    "so",
    "ta",
    "te",
    "ti",
    "to",
    "va",
    "ve",
    "vi",
    "vo",
    "schl",
    "str",
    "gr",
    "pl",
    "kr",
    "tr",
    "br",
    "sp",
    "st",
    "qu",
    "ch",
    "th",
    "wh",
    "ou",
    "ie",
    "ei",
    "au",
    "eu",
    "ai",
    "ea",
    "oa",
]
_ENDINGS = [
    "e",
    "en",
    "er",
    "t",
    "te",
    "st",
    "ing",
    "ed",
    "ize",
    "ify",
    "ate",
    "ez",
    "r",
    "re",
    "ie",
    "ia",
    "a",
    "o",
    "ar",
    "ir",
    "es",
    "s",
    "n",
    "ly",
    "al",
]
_PLAIN = str.maketrans("äöüéèêàçñíóúáôîûß", "aoueeeacniouaoius")


@dataclass(frozen=True, slots=True)
class Clause:
    """A clause with its class: a task's name, `benign` or `foreign`."""

    text: str
    kind: str
    language: str


@dataclass(frozen=True, slots=True)
class Grammar:
    """The templates of one language."""

    language: str
    slots: Mapping[str, Sequence[str]]
    core: Mapping[str, Sequence[str]]
    benign: Sequence[str]
    foreign: Sequence[str]
    adjunct: Sequence[str]

    def expand(self, template: str, kind: str, draw: random.Random) -> str:
        """Return one clause of a template."""
        text = template
        for _ in range(12):
            chosen = _CHOICE.sub(lambda match: _chosen(match, draw), text)
            chosen = _SLOT.sub(lambda match: self._filled(match, kind, draw), chosen)
            if chosen == text:
                break
            text = chosen
        return " ".join(text.split())

    def _filled(self, match: re.Match[str], kind: str, draw: random.Random) -> str:
        name = match[1]
        if name == "unknown":
            return _unknown(draw)
        if name not in self.slots:
            return match[0]
        share = _UNKNOWN_SHARE[FOREIGN if kind == FOREIGN else BENIGN]
        is_open = name in (_FOREIGN_SLOTS if kind == FOREIGN else _OPEN_SLOTS)
        if is_open and draw.random() < share:
            return _unknown(draw)
        return draw.choice(self.slots[name])


def _chosen(match: re.Match[str], draw: random.Random) -> str:
    choices: list[str] = (match[2] if match[1] is None else match[1]).split("|")
    if match[1] is not None:
        return draw.choice(choices)
    return draw.choice(choices) if draw.random() < 0.5 else ""


def _unknown(draw: random.Random) -> str:
    """Return a made-up word, which stands for every word that no grammar has."""
    return "".join(draw.choices(_SYLLABLES, k=draw.randint(1, 3))) + draw.choice(_ENDINGS)


def read_grammar(language: str) -> Grammar:
    """Return the shipped grammar of a language. Reads a file, blocking."""
    path = resources.files("serving.routing.texts") / "grammar" / f"{language}.yaml"
    content: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return Grammar(language, **content)


def clauses(grammar: Grammar, each: int, seed: int) -> Iterator[Clause]:
    """Yield clauses of every template: `each` of a foreign one, twice as many of any other.

    Cores with a foreign addition are foreign.
    """
    draw = random.Random(f"{seed}:{grammar.language}")  # noqa: S311
    kinds = [
        *((template, task) for task, found in grammar.core.items() for template in found),
        *((template, BENIGN) for template in grammar.benign),
        *((template, FOREIGN) for template in grammar.foreign),
    ]
    for template, kind in kinds:
        # There are more foreign templates than others.
        for _ in range(each if kind == FOREIGN else 2 * each):
            yield _varied(grammar.expand(template, kind, draw), kind, grammar.language, draw)
            if kind in grammar.core and draw.random() < _ADJUNCT_SHARE:
                text = grammar.expand(template, kind, draw)
                added = grammar.expand(draw.choice(grammar.adjunct), FOREIGN, draw)
                joint = draw.choice((" ", ", ", " "))
                yield _varied(f"{text}{joint}{added}", FOREIGN, grammar.language, draw)
            if kind in grammar.core and draw.random() < _BENIGN_SHARE:
                text = _joined(grammar, template, kind, draw)
                yield _varied(text, kind, grammar.language, draw)
    for _ in range(20 * each):
        yield Clause(_prose(grammar, draw), FOREIGN, grammar.language)


def _joined(grammar: Grammar, template: str, kind: str, draw: random.Random) -> str:
    """Return a core with a request in front of it or with a harmless clause behind it."""
    text = grammar.expand(template, kind, draw)
    if draw.random() < 0.4:
        return f"{grammar.expand(draw.choice(grammar.slots['ask']), BENIGN, draw)} {text}"
    added = grammar.expand(draw.choice(grammar.benign), BENIGN, draw)
    joint = draw.choice(_JOINTS[grammar.language])
    return f"{text}{joint}{added}"


def _prose(grammar: Grammar, draw: random.Random) -> str:
    """Return a clause of mostly made-up words, as a sentence of the text itself is to the head."""
    count = draw.randint(3, 14)
    pool = " ".join(draw.choice(grammar.foreign) for _ in range(3))
    real = re.findall(r"[^\W\d_]+", pool)
    words = [_unknown(draw) if draw.random() < 0.6 else draw.choice(real) for _ in range(count)]
    return " ".join(words) + draw.choice((": …", " …", "", "", "?"))


def _varied(text: str, kind: str, language: str, draw: random.Random) -> Clause:
    """Return a clause, now and then with a typing error or without accents."""
    if draw.random() < _PLAIN_SHARE:
        text = text.translate(_PLAIN)
    if draw.random() < _TYPO_SHARE:
        text = _mistyped(text, draw)
    return Clause(text, kind, language)


def _mistyped(text: str, draw: random.Random) -> str:
    places = [match.span() for match in re.finditer(r"[a-zA-ZäöüéèçñßÄÖÜ]{5,}", text)]
    if not places:
        return text
    start, end = draw.choice(places)
    at = draw.randint(start + 1, end - 2)
    how = draw.randrange(3)
    if how == 0:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + text[at + 1 :] if how == 1 else text[:at] + text[at] + text[at:]
