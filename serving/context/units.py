"""Divides a context's text into units that are kept or removed whole. Linear. Pure."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from serving.context.sentences import sentences

_FENCE = re.compile(r"[ \t]*(```|~~~)")
_TABLE = r"</?(?i:table|caption|thead|tbody|tfoot|t[dhr])\b"
_ROW = re.compile(
    rf"[^\n]*(?:\||\S\t+\S|{_TABLE}|\\\\\s*$)"
    # Values between commas or semicolons, without the space or the end that a sentence has.
    r"|(?![^\n]*[.!?](?:\s|$))(?:(?:[^,\n]*,(?! )){2,}[^,\n]*$|(?:[^;\n]*;(?! )){2,}[^;\n]*$)"
)
_MARKED = r"(?:[-*+\u2022\u2013]|\(?\d{1,3}[.)]|[a-zA-Z][.)])[ \t]+\S"
_ITEM = re.compile(rf"[ \t]*{_MARKED}")
_ITEM_ANYWHERE = re.compile(_MARKED)
_CODE = re.compile(
    # Indented at any depth: the inner lines of a function, and of JSON over several lines.
    r"(?: {2}|\t)\s*\S|[ \t]*[\]\[{}(),;]+\s*$|[ \t]*\"(?:[^\"\\\n]|\\.)*\"[ \t]*:"
    r"|[ \t]*(?:def |class |import |from \w+ import |return\b|function |const |let |"
    r"var |public |private |#include|SELECT |INSERT |UPDATE |CREATE |\$ |>>> |</?\w[^>]*>\s*$)"
    r"|[^\n]*[;{}]\s*$"
    # SQL in lower case, and a log's lines, by their time.
    r"|[ \t]*(?:select\b[^\n]*\bfrom\b|insert into |update \w+ set |delete from |"
    r"create (?:table|index|view) )"
    r"|[ \t]*\[?\d{4}[-/]\d\d[-/]\d\d[T ]\d\d:\d\d:\d\d"
)
# A table's own tags are part of it, not of a passage's markup.
_MARKUP = re.compile(rf"[ \t]*(?!{_TABLE})</?[A-Za-z][^>\n]{{0,400}}>[ \t]*$")
_CITATION = re.compile(
    r"[ \t]*(?:\[\d{1,4}\]|(?:Document|Passage|Source|Doc) ?\[?#?\d{1,4}\]?)[:.)]?[ \t]*"
    r"(?:\(Title: [^)\n]{0,200}\)[ \t]*)?"
)
"""A passage's number, by which an answer cites it; kept with the passage."""
_HEADING = re.compile(r"[ \t]*(?:#{1,6} |title: ?)", re.IGNORECASE)
_LONGEST_HEADING = 120
_LONGEST_TITLE = 1000
_SHORT_HEADING = 80
_GAPS = ("\n\n", "\r\n\r\n", "\n \n")
_SENTENCE_END = (".", "!", "?", "\u2026", ";", ",", "\u3002")
_MOST_ITEMS = 12
_LEADING_PRONOUN = re.compile(
    r"[\W_]*+(?:it|its|they|them|their|he|him|his|she|her|hers|this|that|these|those|such|both|neither|"
    r"er|sie|es|dieser|diese|dieses|diesen|il|elle|ils|elles|cela|ceci|cet|cette|ces|\u00e9l|ella|"
    r"ellos|ellas|esto|esta|este|estos|estas|second(?:ly)?,|third(?:ly)?,|then|next,|finally,)(?!\w)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Unit:
    """A stretch of a text. start, end: its span; the units of a text tile it.

    passage: number of its passage, ascending. is_protected: never removed (code, tables, JSON).
    is_title: of its passage; kept with the passage's first kept unit. needs: index of the unit that
    must be kept with it.
    """

    start: int
    end: int
    passage: int
    is_protected: bool = False
    is_title: bool = False
    needs: int | None = None


@dataclass(slots=True)
class Division:
    """A text's units in order, and its passages' titles. first_passage: number of the first."""

    text: str
    first_passage: int = 0
    units: list[Unit] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)

    def of(self, unit: Unit) -> str:
        """Return a unit's text."""
        return self.text[unit.start : unit.end]


def divide(text: str, title: str = "", first_passage: int = 0) -> Division:
    """Return a text's units. title: of the text, for passages that have none of their own."""
    division = Division(text, first_passage)
    if _is_json(text):
        division.titles.append(title)
        division.units.append(Unit(0, len(text), first_passage, is_protected=True))
        return division
    for start, end, kind in _blocks(text):
        _add_block(division, start, end, kind, title)
    return division


def _is_json(text: str) -> bool:
    stripped = text.strip()
    if not stripped or stripped[0] not in "{[" or stripped[-1] not in "}]":
        return False
    try:
        json.loads(stripped)
    except (ValueError, RecursionError):
        # One object a line is as much data as one document.
        lines = stripped.splitlines()
        return len(lines) > 1 and all(_is_object(line) for line in lines if line.strip())
    return True


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        return False


def _blocks(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield spans of consecutive lines of one kind: code, row, item, title, space or prose."""
    begin, kind, position, fence = 0, "", 0, ""
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        is_first = number == 0 or not lines[number - 1].strip()
        following = lines[number + 1] if number + 1 < len(lines) else ""
        now, after = _kind(line, fence, following if is_first else None)
        joins = now == kind and (bool(fence) or not _starts_block(line, now))
        if kind and not joins:
            yield begin, position, kind
            begin = position
        kind, fence = now, after
        position += len(line)
    if position > begin:
        yield begin, position, kind


def _starts_block(line: str, kind: str) -> bool:
    return kind in ("title", "item") or (kind == "prose" and _CITATION.match(line) is not None)


def _kind(line: str, fence: str, following: str | None) -> tuple[str, str]:
    """Return a line's kind, and the fence of the code block that the next line is in.

    following: the next line, where this one begins a paragraph.
    """
    mark = _FENCE.match(line)
    if fence:
        return "code", "" if mark and mark.group(1) == fence else fence
    if mark:
        return "code", mark.group(1)
    for kind, pattern in _KINDS.items():
        if pattern.match(line):
            return kind, ""
    if line.lstrip()[:1] in ("{", "[") and _is_object(line):
        return "code", ""
    return ("title" if _is_heading(line, following) else "prose"), ""


_KINDS = {
    "space": re.compile(r"\s*$"),
    "title": _MARKUP,
    "row": _ROW,
    "item": _ITEM,
    "code": _CODE,
}


def _is_heading(line: str, following: str | None) -> bool:
    stripped = line.strip()
    if len(stripped) > _LONGEST_HEADING or stripped.endswith(_SENTENCE_END):
        return False
    if _HEADING.match(stripped) or _CITATION.fullmatch(stripped):
        return True
    # In text with fixed line lengths every line is short, and only a paragraph's first could be a
    # heading: one that stands alone, or before a line that is not cut.
    if following is None or len(stripped) > _SHORT_HEADING or stripped.endswith(":"):
        return False
    return not following.strip() or len(following) > _LONGEST_HEADING


def _add_block(division: Division, start: int, end: int, kind: str, title: str) -> None:
    units, titles = division.units, division.titles
    if not titles:
        titles.append(title)
    passage = division.first_passage + len(titles) - 1
    if kind == "space":
        if units:
            units.append(_extended(units.pop(), end))
        else:
            units.append(Unit(start, end, passage, is_title=True))
        return
    after_title = bool(units) and units[-1].is_title
    after_gap = bool(units) and division.text.endswith(_GAPS, 0, start)
    citation = _CITATION.match(division.text, start, end) if kind == "prose" else None
    if kind == "title" or citation:
        if units and not after_title:
            titles.append(title)
            passage += 1
    elif after_gap and not after_title and kind != "item":
        # A paragraph keeps the title of the one before it.
        titles.append(titles[-1])
        passage += 1
    if citation:
        units.append(Unit(start, citation.end(), passage, is_title=True))
        start = citation.end()
    if start < end:
        _add_units(division, start, end, kind, passage)


def _add_units(division: Division, start: int, end: int, kind: str, passage: int) -> None:
    units, text = division.units, division.text
    if kind == "title":
        _name(division, text[start:end], passage)
        units.append(Unit(start, end, passage, is_title=True))
    elif kind in ("code", "row"):
        units.append(Unit(start, end, passage, is_protected=True))
    elif kind == "item":
        _add_item(division, start, end, passage)
    else:
        for begin, stop in sentences(text, start, end):
            needs = _antecedent(division, begin, stop, passage)
            units.append(Unit(begin, stop, passage, needs=needs))


def _name(division: Division, line: str, passage: int) -> None:
    """Add a heading to its passage's title; of markup only the attributes."""
    found = line.strip().strip("#").strip()
    if _MARKUP.match(line):
        found = " ".join(re.findall(r"""(?:title|source|name)=["']([^"']*)""", found))
    index = passage - division.first_passage
    is_named = bool(division.units) and division.units[-1].passage == passage
    earlier = division.titles[index] if is_named else ""
    if len(earlier) < _LONGEST_TITLE:
        division.titles[index] = f"{earlier} {found}".strip() or division.titles[index]


def _antecedent(division: Division, begin: int, stop: int, passage: int) -> int | None:
    units = division.units
    if not units or units[-1].passage != passage or units[-1].is_title:
        return None
    return len(units) - 1 if _LEADING_PRONOUN.match(division.text, begin, stop) else None


def _add_item(division: Division, start: int, end: int, passage: int) -> None:
    """Add a list's item: short lists stay whole with their lead-in, long ones by item."""
    units = division.units
    lead = _lead_in(division, passage)
    if lead is not None and units[lead].end - units[lead].start < _MOST_ITEMS * 100:
        if lead == len(units) - 1 and _items_in(division, units[lead]) < _MOST_ITEMS:
            units.append(_extended(units.pop(), end))
            return
        units.append(Unit(start, end, passage, needs=lead))
        return
    units.append(Unit(start, end, passage))


def _lead_in(division: Division, passage: int) -> int | None:
    """Return the unit that introduces the list which ends the units so far."""
    if not division.units:
        return None
    last = division.units[-1]
    if last.passage != passage or last.is_title or last.is_protected:
        return None
    if last.needs is not None and _ITEM.match(division.text, last.start):
        return last.needs
    text = division.of(last)
    is_list = "\n" in text.strip() and _ITEM_ANYWHERE.search(text) is not None
    return len(division.units) - 1 if text.rstrip().endswith(":") or is_list else None


def _items_in(division: Division, unit: Unit) -> int:
    return division.text.count("\n", unit.start, unit.end)


def _extended(unit: Unit, end: int) -> Unit:
    return Unit(unit.start, end, unit.passage, unit.is_protected, unit.is_title, unit.needs)
