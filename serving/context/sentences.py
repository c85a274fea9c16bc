"""Splits text into sentences. Linear in the text's length. Pure."""

import re
from collections.abc import Iterator

# A run of marks is tried once, from its beginning: from each mark it would take quadratic time.
_END = re.compile(
    r"(?<![.!?\u2026])[.!?\u2026]++[\"')\]\u00bb\u201c\u201d\u2019]*+(?=\s)"
    r"|[\u3002\uff01\uff1f]+[\u300d\u300f]?"
)
_LAST_WORD = re.compile(r"(\S{1,12})\Z")
_ABBREVIATIONS = frozenset({
    "mr", "mrs", "ms", "dr", "prof", "st", "sr", "jr", "vs", "no", "nr", "ca", "inc", "ltd", "co",
    "corp", "fig", "vol", "pp", "ed", "eds", "etc", "approx", "dept", "est", "gen", "hr", "bzw",
    "usw", "vgl", "bspw", "ggf", "abs", "art", "mme", "mlle", "sra", "dra", "e.g", "i.e", "z.b",
    "d.h", "u.a", "p.ej", "a.m", "p.m", "u.s", "u.k",
})  # fmt: skip
_LONGEST = 600
"""Characters; longer stretches without an end are cut at white space."""


def sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the spans of the sentences in text[start:end]; they tile it, white space included."""
    begin = start
    for found in _END.finditer(text, start, end):
        if _is_abbreviation(text, begin, found):
            continue
        stop = _after_space(text, found.end(), end)
        if stop < end and text[stop].islower():
            continue
        yield from _cut(text, begin, stop)
        begin = stop
    if begin < end:
        yield from _cut(text, begin, end)


def _is_abbreviation(text: str, begin: int, found: re.Match[str]) -> bool:
    if found.group() != ".":
        return False
    last = _LAST_WORD.search(text, max(begin, found.start() - 12), found.start())
    word = last.group().lstrip("(\"'[").lower() if last else ""
    is_initial = len(word) == 1 and word.isalpha()
    # "12. March", "1. Open the valve": a number of two digits does not end a sentence.
    is_ordinal = word.isdecimal() and len(word) <= 2
    return is_initial or is_ordinal or word in _ABBREVIATIONS


def _after_space(text: str, position: int, end: int) -> int:
    while position < end and text[position].isspace():
        position += 1
    return position


def _cut(text: str, begin: int, end: int) -> Iterator[tuple[int, int]]:
    while end - begin > _LONGEST:
        space = text.rfind(" ", begin + 1, begin + _LONGEST)
        stop = space + 1 if space > begin else begin + _LONGEST
        yield begin, stop
        begin = stop
    yield begin, end
