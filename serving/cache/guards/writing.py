"""Capitals, commas and hyphens that make another word or clause must be equal. Pure.

MW is a thousand million mW; a Pole is a person; eat, grandma is no recipe.
"""

import re

from serving.cache.guards.function_words import FUNCTION_WORDS
from serving.cache.guards.words import Words

# Units, symbols and most abbreviations have no more letters.
_LONGEST_SYMBOL = 4
# Longer English words that are another thing with a capital: a party, a church, a people, a place.
_OTHER_WITH_CAPITAL = frozenset(
    """
polish turkey china guinea chile jordan georgia mercury saturn august march democrat democrats democratic republican
republicans liberal liberals conservative conservatives labour labor green greens catholic catholics orthodox
orient scripture bible reformation enlightenment renaissance resurrection revolution commonwealth congress parliament
earth titan apple amazon windows access chrome safari reading oracle square slack shell target dove discord unity
swift ruby spring flask numbers pages teams oculus nirvana queen genesis kansas phoenix corona internet
state states union house lords commons guard brownie marine marines seals giants eagles pirates friends frozen
""".split()
)
# From the beginning of a word only: from each of its characters it would take quadratic time.
_COMMA = re.compile(r"(?<![\w'-])([\w'-]++)\s*+,\s*+(?=([\w'-]+))")
_GENITIVE = re.compile(r"(?<!\w)(\w++)['\u2019]s\b")
_CONTRACTED = frozenset("what who where when how why that there it he she let".split())
_SPLIT = re.compile(r"^(?:re|un)-\w{3,}$")
_PARTICIPLE = re.compile(r"^\w+-\w{2,}(?:ing|eating)$")
# A comma beside one of these joins a list, a clause or a courtesy.
_JOINS = frozenset(
    """
please thanks thank hello hi hey and or but if when while because how what why where who which that though
bitte danke hallo und oder aber sondern dass wie was warum wo wer wenn weil ob der die das den
bonjour merci svp plaît et ou mais si quand comment pourquoi qui que
favor hola gracias y o pero si cuando cómo qué por dime
""".split()
)


def compare_writing(a: Words, b: Words) -> str | None:
    """Return `writing` where a capital, a comma or a hyphen may make another word or clause."""
    if a.language is None or a.language != b.language:
        return None
    checks = (_capitals, _commas, _hyphens, _apostrophes)
    return "writing" if any(check(a, b) or check(b, a) for check in checks) else None


def _capitals(a: Words, b: Words) -> bool:
    """Return whether a word stands in both texts and only its capitals differ.

    A capital that begins a sentence says nothing, nor does one that begins a longer English word,
    unless it makes a name of it.
    """
    in_b: dict[str, set[str]] = {}
    for index, token in enumerate(b.tokens):
        in_b.setdefault(token.lower(), set()).update(_writings(b, index))
    return any(
        token.lower() in in_b
        and in_b[token.lower()].isdisjoint(_writings(a, index))
        and not _capital_says_nothing(a, b, token.lower())
        for index, token in enumerate(a.tokens)
    )


def _writings(words: Words, index: int) -> set[str]:
    """Return a word as written; without the capital that begins a sentence, too."""
    token = words.tokens[index]
    is_first = index in words.starts and token[1:] == token[1:].lower()
    return {token, token.lower()} if is_first else {token}


def _capital_says_nothing(a: Words, b: Words, word: str) -> bool:
    assert a.language is not None
    if word in FUNCTION_WORDS[a.language]:
        # The polite form is another person: machen sie, machen Sie. An acronym is no function word.
        pronouns = {"sie", "ihnen", "ihr", "ihre", "ihren", "ihrem", "ihrer"}
        is_acronym = any(
            len(token) > 1 and token.isupper() and token.lower() == word
            for words in (a, b)
            for token in words.tokens
        )
        return not is_acronym and not (a.language == "de" and word in pronouns)
    if a.language != "en" or len(word) <= _LONGEST_SYMBOL or word in _OTHER_WITH_CAPITAL:
        # German nouns, and institutions of French and Spanish, have capitals: arm, Arm; l'État.
        return False
    written = {token for words in (a, b) for token in words.tokens if token.lower() == word}
    return all(token.islower() or token.istitle() for token in written)


def _commas(a: Words, b: Words) -> bool:
    """Return whether a comma divides two words of one text that follow each other in the other."""
    neighbours = set(zip(b.lower, b.lower[1:], strict=False))
    divided = {(one.lower(), other.lower()) for one, other in _COMMA.findall(b.plain)}
    return any(
        pair in neighbours and pair not in divided and _JOINS.isdisjoint(pair)
        for pair in ((one.lower(), other.lower()) for one, other in _COMMA.findall(a.plain))
    )


def _apostrophes(a: Words, b: Words) -> bool:
    """Return whether a word is a genitive in one text and a plural in the other: cat's, cats."""
    if a.language != "en":
        return False
    return any(
        f"{owner}s" in b.present and owner not in _CONTRACTED
        for owner in _GENITIVE.findall(a.text.lower())
    )


def _hyphens(a: Words, b: Words) -> bool:
    """Return whether a hyphen makes another word: re-sign, resign; man-eating, man eating."""
    for word in a.present - b.present:
        if "-" not in word:
            continue
        parts = word.split("-")
        if _SPLIT.match(word) and "".join(parts) in b.present:
            return True
        if _PARTICIPLE.match(word) and f" {' '.join(parts)} " in b.line:
            return True
    return False
