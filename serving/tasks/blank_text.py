"""Decides whether a text has a visible character."""

import unicodedata

# Letters and symbols that Unicode assigns no visible form: Hangul fillers, the empty braille cell,
# hieroglyphic blanks, the null notehead and the placeholder of an embedded object.
_INVISIBLE = frozenset("\u115f\u1160\u3164\uffa0\u2800\U00013441\U00013442\U0001d159\ufffc")
# First letters of the general categories that are visible by themselves: letters, numbers,
# punctuation and symbols. A combining mark needs a base; separators, controls, format characters,
# surrogates, private-use and unassigned code points show nothing.
_VISIBLE_CATEGORIES = frozenset("LNPS")
_CHECKED_FIRST = 256


def is_blank(text: str) -> bool:
    """Return whether no character of a text is visible. Takes time linear in the text's length."""
    # Most texts begin with a visible character. The set makes long invisible texts cheap.
    return not (_shows(set(text[:_CHECKED_FIRST])) or _shows(set(text[_CHECKED_FIRST:])))


def _shows(characters: set[str]) -> bool:
    return any(
        unicodedata.category(character)[0] in _VISIBLE_CATEGORIES and character not in _INVISIBLE
        for character in characters
    )
