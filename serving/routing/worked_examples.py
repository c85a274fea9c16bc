"""Reads a message that shows answers to other texts before it asks about the last one.

`Review: … / Sentiment: positive / Review: … / Sentiment:`. Both fields have the same names in each
example, and the last answer is missing. The examples are no text to work on; of a classification,
their answers name labels.
"""

import re
from dataclasses import dataclass

from serving.routing.payload import (
    FIELD_NAMES,
    GAP,
    LANGUAGE_FIELDS,
    MAX_INSTRUCTION_CHARS,
    Split,
    unquoted,
)

_LINE = re.compile(r"^[ \t]*([^\W\d_][\w '-]{0,30}?)[ \t\u00a0]?:[ \t]*(.*)$", re.MULTILINE)
_TEXT_FIELD = re.compile(FIELD_NAMES, re.IGNORECASE)
_LANGUAGE = re.compile(LANGUAGE_FIELDS, re.IGNORECASE)
# "Great food -> positive", one a line, and a last line that ends in the arrow.
_ARROW = re.compile(r"^[ \t]*+([^\n]*\S)[ \t]+(?:->|=>|→|=|//|\|)[ \t]*([^\n]{0,30}?)[ \t]*$", re.M)
# What stands between two examples besides white space.
_HEADING = re.compile(
    r"^[ \t#*-]*+(?:(?:example|beispiel|exemple|ejemplo)s?[ \t]*+\d{0,2})?[ \t:.#*-]*+$",
    re.M | re.I,
)
# An answer of a classification; a longer one is a text.
_MAX_ANSWER_WORDS = 3
_MAX_EXAMPLES = 16


@dataclass(frozen=True, slots=True)
class WorkedExamples:
    """order: what the fields ask for, with the last text. lead: what precedes them, maybe empty."""

    order: Split
    lead: str


def worked_examples(message: str) -> WorkedExamples | None:
    """Return the reading of a message that ends in a field without a value, after examples of it.

    None where there is no example, or where the examples do not all have the same two fields.
    """
    text = message.strip()
    return _by_fields(text) or _by_arrows(text)


def _by_arrows(text: str) -> WorkedExamples | None:
    lines = text.split("\n")
    last = _ARROW.fullmatch(f"{lines[-1]} ")
    if last is None or last[2]:
        return None
    shown: list[str] = []
    while len(shown) + 1 < len(lines):
        line = lines[-2 - len(shown)]
        example = _ARROW.fullmatch(line)
        if example is None or not example[2] or not _is_answer(example[2]):
            break
        shown.insert(0, example[2].strip("\"' "))
    if not 2 <= len(shown) <= _MAX_EXAMPLES:
        return None
    order = f"{GAP.strip()}\nlabel: {', '.join(dict.fromkeys(shown))}"
    payload = last[1].strip()
    lead = "\n".join(lines[: -1 - len(shown)]).strip()
    split = Split(order, unquoted(payload) or payload, marked=True)
    return WorkedExamples(split, _HEADING.sub("", lead).strip())


def _by_fields(text: str) -> WorkedExamples | None:
    fields = list(_LINE.finditer(text))
    if len(fields) < 4 or fields[-1][2] or fields[-1].end() != len(text):
        return None
    cue, name = fields[-1][1].casefold(), fields[-2][1].casefold()
    if cue == name:
        return None
    # Lines of a text may look like a field: those of other names are its own.
    pairs = [one for one in fields if one[1].casefold() in (cue, name)]
    texts, answers = pairs[::2], pairs[1::2]
    if len(texts) != len(answers) or not 2 <= len(texts) <= _MAX_EXAMPLES:
        return None
    if any(one[1].casefold() != name for one in texts):
        return None
    if any(one[1].casefold() != cue for one in answers) or not all(a[2] for a in answers[:-1]):
        return None
    payload = text[texts[-1].start(2) : answers[-1].start()].strip()
    shown = [one[2].strip() for one in answers[:-1]]
    if _LANGUAGE.fullmatch(name) and _LANGUAGE.fullmatch(cue):
        order = f"{texts[0][1]}: {GAP.strip()}\n{answers[0][1]}:"
    elif _TEXT_FIELD.fullmatch(name) and all(_is_answer(one) for one in shown):
        listed = ", ".join(dict.fromkeys(shown))
        order = f"{GAP.strip()}\n{answers[0][1]}: {listed}"
    else:
        return None
    if not payload or len(order) > MAX_INSTRUCTION_CHARS:
        return None
    between = (text[a.end() : b.start()] for a, b in zip(answers[:-1], texts[1:], strict=True))
    lead = _HEADING.sub("", "\n".join((text[: texts[0].start()], *between))).strip()
    split = Split(order, unquoted(payload) or payload, marked=True)
    return WorkedExamples(split, lead)


def _is_answer(value: str) -> bool:
    return len(value.split()) <= _MAX_ANSWER_WORDS
