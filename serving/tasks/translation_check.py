"""Checks that a translation kept the untranslatable parts of its source.

The checks compare placeholders, addresses, numbers and lines of the two texts, in any language. A
refusal in words is distinguished from a translation of one by the source text.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_CHECKED_CHARS = 100_000
# Every quantifier is bounded: the time is linear in the text's length.
_ADDRESS = re.compile(
    r"\bhttps?://[^\s<>\"'»”]{1,500}|(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}\.[\w.-]{1,63}"
)
_PLACEHOLDER = re.compile(
    r"\{\{[^{}\n]{1,60}\}\}|\$\{[^{}\n]{1,60}\}|\{[\w.:!-]{0,60}\}"
    r"|%\(\w{1,60}\)[sdfi]|%\d{0,2}\$?[sdfi@](?!\w)"
    # Only the name of a tag: its attributes may be translated.
    r"|</?[A-Za-z0-9][\w-]{0,20}(?=(?:\s[^<>]{0,200})?/?>)"
)
_NUMBER = re.compile(r"\d(?:[.,'’\u00a0\u202f](?=\d)| (?=\d{3}(?!\d))|\d)*")  # noqa: RUF001
_DIGITS = re.compile(r"\D")
# By language: a refusal to do the task, at the beginning of the output.
_REFUSALS: Mapping[str, re.Pattern[str]] = {
    "en": re.compile(
        r"\A\W*(?:(?:i['’]?m|i am|we['’]?re|we are)\s+(?:very\s+|so\s+)?"  # noqa: RUF001
        r"(?:sorry|afraid|unable|not able)"
        r"|(?:sorry|apologies|unfortunately)\b[^.\n]{0,40}\b(?:can|am|unable)"
        r"|i\s+(?:can['’]?t|cannot|can not|won['’]?t|will not|must decline)|as an ai\b)",  # noqa: RUF001
        re.IGNORECASE,
    ),
    "de": re.compile(
        r"\A\W*(?:es tut mir leid|tut mir leid|leider kann ich|ich kann (?:\w+ ){0,4}nicht|"
        r"als ki\b)",
        re.IGNORECASE,
    ),
    "fr": re.compile(
        r"\A\W*(?:je suis désolée?|désolée?\b|je ne peux pas|je ne suis pas en mesure|"
        r"en tant qu['’]ia\b)",  # noqa: RUF001
        re.IGNORECASE,
    ),
    "es": re.compile(
        r"\A\W*(?:lo siento|no puedo|lamento|como (?:una )?ia\b|como modelo)", re.IGNORECASE
    ),
}
_REFUSAL_WORDS = re.compile(
    r"\b(?:sorry|apolog\w{1,8}|afraid|unable|unfortunately|can['’]?t|cannot|can not|won['’]?t|"  # noqa: RUF001
    r"will not|not able|decline|ai|leid|leider|nicht|ki|désolée?|pas|ia|siento|no|lamento)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Losses:
    """The losses of a translation. valid: none of them makes it unfit for use."""

    valid: bool
    notes: tuple[str, ...]


def losses(source: str, translation: str, source_language: str, target_language: str) -> Losses:
    """Return the parts of its source that a translation lost.

    Lost placeholders, addresses, lines and numbers of two or more digits make it invalid. A lost
    digit is noted: it may be spelled out. source_language, target_language: ISO 639-1 codes.
    """
    source, translation = source[:_CHECKED_CHARS], translation[:_CHECKED_CHARS]
    if _is_refusal(source, translation, source_language, target_language):
        return Losses(False, ("the model refused the request in words",))
    # "10.30" and "10:30" hold the same digits.
    digits = _DIGITS.sub("", translation)
    lost = _missing(_numbers(source), _numbers(translation))
    numbers = [number for number in lost if number not in digits]
    long_numbers = [number for number in numbers if len(number) > 1]
    serious = [
        *_note("placeholders", _missing(*map(_PLACEHOLDER.findall, (source, translation)))),
        *_note("addresses", _missing(_addresses(source), _addresses(translation))),
        *_note("numbers", long_numbers),
        *_line_note(source, translation),
    ]
    slight = _note("digits", [number for number in numbers if len(number) == 1])
    return Losses(not serious, (*serious, *slight))


def _missing(wanted: Iterable[str], found: Iterable[str]) -> list[str]:
    return sorted((Counter(wanted) - Counter(found)).elements())


def _note(kind: str, missing: list[str]) -> list[str]:
    if not missing:
        return []
    return [f"{kind} of the input that are not in the translation: {len(missing)}"]


def _line_note(source: str, translation: str) -> list[str]:
    expected, found = (
        sum(bool(line.strip()) for line in text.splitlines()) for text in (source, translation)
    )
    if found >= expected:
        return []
    return [f"the input has {expected} lines and the translation {found}"]


def _addresses(text: str) -> list[str]:
    return [address.rstrip(".,;:!?)]}") for address in _ADDRESS.findall(text)]


def _numbers(text: str) -> list[str]:
    """Return the digits of each number: languages differ in its separators.

    Numbers inside addresses and placeholders are not counted twice.
    """
    rest = _PLACEHOLDER.sub(" ", _ADDRESS.sub(" ", text))
    return [_DIGITS.sub("", number) for number in _NUMBER.findall(rest)]


def _is_refusal(source: str, translation: str, source_language: str, target_language: str) -> bool:
    """Return whether a model refused instead of translating.

    A refusal in another language than the target's is never a translation. One in the target
    language is a translation where the source itself speaks of inability or regret.
    """
    for language, pattern in _REFUSALS.items():
        if not pattern.match(translation):
            continue
        if language not in (target_language, source_language):
            return True
        if source_language in _REFUSALS and not _REFUSAL_WORDS.search(source):
            return True
    return False
