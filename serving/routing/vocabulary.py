"""Finds words in an instruction that no training instruction of the task contains.

A vector represents the topic of a sentence; additions change it little: "Classify the sentiment as
a pirate would" is close to "Classify the sentiment". One unknown word makes a request not narrow.
"""

import re
from collections.abc import Collection
from functools import cache
from importlib import resources

from serving.routing.languages import without_languages

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")  # noqa: RUF001
_TEXT_NOUNS = (
    "text", "review", "tweet", "post", "comment", "message", "sentence", "article", "document",
    "headline", "passage", "paragraph", "email", "mail", "feedback", "story", "snippet",
    "statement", "report", "description", "excerpt", "input", "title", "remark",
    "caption", "transcript", "chat", "ticket", "blog", "letter", "news", "item", "opinion",
    "testimonial", "utterance", "phrase", "word", "string", "response", "survey", "summary",
)  # fmt: skip
_GERMAN_NOUNS = (
    "text", "textes", "bewertung", "rezension", "nachricht", "kommentar", "satz", "artikel",
    "meldung", "meinung", "beitrag", "mail", "tweet", "aussage", "absatz", "dokument",
)  # fmt: skip


@cache
def harmless_words() -> frozenset[str]:
    """Return words that change the meaning of no instruction. Reads a shipped file once."""
    text = (resources.files("serving.routing.texts") / "harmless_words.txt").read_text("utf-8")
    lines = (line for line in text.splitlines() if not line.startswith("#"))
    return frozenset(word for line in lines for word in line.split())


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without names of languages."""
    return [w.lower().replace("’", "'") for w in _WORD.findall(without_languages(text))]  # noqa: RUF001


def unknown_words(text: str, known: Collection[str]) -> list[str]:
    """Return the words of an instruction that are neither known nor harmless.

    A word before a noun for texts names the kind of text ("airline review") and is left out.
    """
    found = words(text)
    return [
        word
        for position, word in enumerate(found)
        if not _is_known(word, known)
        and not (position + 1 < len(found) and found[position + 1] in _TEXT_NOUNS)
    ]


def _is_known(word: str, known: Collection[str]) -> bool:
    if word in known or word in harmless_words() or word in _TEXT_NOUNS or word in _GERMAN_NOUNS:
        return True
    # German compounds, such as Hotelbewertung.
    if any(word.endswith(noun) and len(word) > len(noun) + 2 for noun in _GERMAN_NOUNS):
        return True
    parts = word.split("'")
    return len(parts) > 1 and all(_is_known(part, known) for part in parts)
