"""Tells an instruction from the text that it is about, by rule and without guessing.

Every payload is a contiguous piece of the message, character for character. Where two readings
are possible both are returned, and the router drops the request if both make sense.
"""

import re
from dataclasses import dataclass

MAX_INSTRUCTION_CHARS = 500
# What stands in an instruction where the payload was.
GAP = " … "

_QUOTES = (("“", "”"), ("„", "“"), ("„", "”"), ("«", "»"), ("»", "«"), ("‹", "›"), ("「", "」"))  # noqa: RUF001
_TAGS = re.compile(r"<([A-Za-z][\w-]{0,30})>(.*?)</\1>", re.DOTALL)
_TRIPLE = re.compile(r'"""(.+?)"""|\'\'\'(.+?)\'\'\'', re.DOTALL)
_RULE = re.compile(r"^[ \t]*(?:-{3,}|={3,}|#{3,}|\*{3,}|_{3,})[ \t]*$", re.MULTILINE)
_BLOCK_QUOTE = re.compile(r"^> ?(.*)$", re.MULTILINE)
_FIELD_NAMES = (
    "text|review|caption|transcript|ticket|excerpt|blog post|"
    "tweet|post|comment|message|sentence|article|document|headline|passage|paragraph|"
    "input|description|email|e-mail|feedback|news|story|snippet|statement|quote|content|"
    "nachricht|satz|bewertung|rezension|kommentar|artikel|meldung|eingabe|kundenmeinung|"
    "texte|phrase|avis|commentaire|dépêche|entrée|texto|frase|reseña|comentario|"
    "noticia|artículo|mensaje|mensagem|entrada|opinión"
)
_LANGUAGE_FIELDS = (
    "english|german|french|spanish|deutsch|englisch|französisch|spanisch|"
    "anglais|allemand|français|espagnol|inglés|alemán|francés|español"
)
_FIELD = re.compile(
    rf"^[ \t]*(?:the )?(?:{_FIELD_NAMES}|{_LANGUAGE_FIELDS})[ \t\u00a0]*:[ \t]*", re.I | re.M
)
_BARE_FIELD = re.compile(
    rf"\A(?:(?:the )?(?:{_FIELD_NAMES}|{_LANGUAGE_FIELDS})\s*:)?\s*…\s*"
    r"(?:[^\W\d_]{1,20}\s*:)?\s*\Z",
    re.IGNORECASE,
)
_INLINE_FIELD = re.compile(rf"(?<=[.!?:)]) (?:{_FIELD_NAMES})[ \u00a0]?: ", re.I)
_CUE = re.compile(
    r"\n[ \t]*(?:the )?[\w \u2019'/-]{1,40}[ \t\u00a0]*:[ \t]*(?:\.\.\.|…|\?|_+)?[ \t]*\Z"
)
_SEPARATOR = re.compile(r"[:\uff1a][ \t\u00a0]+(?=\S)|[:\uff1a]?[ \t]*\n\s*")
_LETTER = re.compile(r"[^\W\d_]")
_ITEM = re.compile(r"^[ \t]*(?:[-*•‣]|\(?\d{1,2}[.):]|\(?[a-hA-H][.)])[ \t]+\S", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Split:
    """One way to read a message.

    instruction: the message without the payload; may be empty. marked: quotes, tags or the like
    say where the payload begins and ends, so it cannot have swallowed an instruction.
    """

    instruction: str
    payload: str
    marked: bool


def split_message(message: str) -> tuple[Split, ...]:
    """Return the ways to read a message as instruction and payload, none where that is unsure.

    Never raises. At most two.
    """
    text = message.strip()
    for rule in (_by_tags, _by_triple_quotes, _by_rules, _by_block_quote):
        if (found := rule(text)) is not None:
            return _sound(found)
    if (found := _by_field(text)) is not None:
        return _sound(found)
    if (found := _by_quotes(text)) is not None:
        return _sound(found)
    return _sound(_by_separator(text))


def only_names(instruction: str) -> bool:
    """Tell whether what surrounds a payload says no more than what it is: `Text: …`."""
    return _BARE_FIELD.match(instruction) is not None


def holds_list(text: str) -> bool:
    """Tell whether two or more lines are items: several texts, of which a task takes one."""
    return len(_ITEM.findall(text)) >= 2


def _sound(splits: tuple[Split, ...]) -> tuple[Split, ...]:
    return tuple(
        split
        for split in splits
        if _LETTER.search(split.payload) and len(split.instruction) <= MAX_INSTRUCTION_CHARS
    )


def _cut(text: str, start: int, end: int, inner: tuple[int, int], *, marked: bool) -> Split:
    """Take text[start:end] out; of it the payload is `inner`, less white space and quotes."""
    payload = text[inner[0] : inner[1]].strip()
    instruction = f"{text[:start].rstrip()}{GAP}{text[end:].lstrip()}".strip()
    unquoted = _unquoted(payload)
    return Split(instruction, unquoted or payload, marked or unquoted is not None)


def _by_tags(text: str) -> tuple[Split, ...] | None:
    found = list(_TAGS.finditer(text))
    if not found:
        return None
    if len(found) > 1:
        return ()
    match = found[0]
    return (_cut(text, *match.span(), match.span(2), marked=True),)


def _by_triple_quotes(text: str) -> tuple[Split, ...] | None:
    found = list(_TRIPLE.finditer(text))
    if not found:
        return None
    if len(found) > 1:
        return ()
    match = found[0]
    return (_cut(text, *match.span(), match.span(match.lastindex or 0), marked=True),)


def _by_rules(text: str) -> tuple[Split, ...] | None:
    found = list(_RULE.finditer(text))
    if not found:
        return None
    if len(found) != 2:
        return ()
    first, second = found
    inner = (first.end(), second.start())
    return (_cut(text, first.start(), second.end(), inner, marked=True),)


def _by_block_quote(text: str) -> tuple[Split, ...] | None:
    found = list(_BLOCK_QUOTE.finditer(text))
    if not found:
        return None
    # Of several quoted lines the payload would be no piece of the message.
    if len(found) > 1:
        return ()
    match = found[0]
    return (_cut(text, *match.span(), match.span(1), marked=True),)


def _by_field(text: str) -> tuple[Split, ...] | None:
    found = list(_FIELD.finditer(text)) or list(_INLINE_FIELD.finditer(text))
    if not found:
        return None
    cue = _CUE.search(text)
    # The trailing cue ("English:") may look like a field itself.
    found = [match for match in found if cue is None or match.start() < cue.start()]
    if len(found) != 1:
        return () if found else None
    match = found[0]
    end = cue.start() if cue is not None else len(text)
    split = _cut(text, match.end(), end, (match.end(), end), marked=False)
    _, gap, rest = split.payload.partition("\n\n")
    if gap:
        # "Tweet: …", a blank line, and the instruction.
        if "\n\n" in rest.strip() or not only_names(split.instruction):
            return ()
        end = match.end() + text[match.end() :].index("\n\n")
        return (_cut(text, match.end(), end, (match.end(), end), marked=False),)
    if (quoted := _by_quotes(text)) and quoted[0].payload == split.payload:
        return quoted
    after = _quote_at_start(text[match.end() : end])
    return (split,) if after is None or split.marked else ()


def _by_quotes(text: str) -> tuple[Split, ...] | None:
    """Read a single quoted span as the payload, where nothing else could be it."""
    spans = [s for s in _quoted_spans(text) if len(text[s[0] : s[1]].split()) > 0]
    if not spans:
        return None
    longest = max(spans, key=lambda s: s[1] - s[0])
    others = [s for s in spans if s != longest]
    # Beside the payload only single words may be quoted, such as labels.
    if any(len(text[a:b].split()) > 2 for a, b in others):
        return ()
    start, end = longest
    if '"' in text[:start] + text[end:] and not others:
        return ()
    before, after = text[:start].rstrip(), text[end:].strip()
    separator = next(
        (m for m in _SEPARATOR.finditer(before) if not _is_label_list(text[m.end() :])), None
    )
    if separator is not None and separator.end() < len(before):
        # Quoted inside of what may itself be the payload: "Translate: he said "no" to me."
        return None
    if before.endswith((":", ",")) and after[:1] and (after[0] == "," or after[0].islower()):
        return ()
    if after.strip(".!?") and (before.endswith(":") or text[:start].rstrip(" ").endswith("\n")):
        # What follows may order something, or be the rest of a text that begins with a quotation.
        whole = _cut(text, start, len(text), (start, len(text)), marked=False)
        return (*_one(text, longest), whole)
    return _one(text, longest)


def _one(text: str, span: tuple[int, int]) -> tuple[Split, ...]:
    start, end = span
    return (_cut(text, start, end, (start + 1, end - 1), marked=True),)


def _by_separator(text: str) -> tuple[Split, ...]:
    """Read the first line or what precedes a colon as the instruction, or else the last line."""
    splits: list[Split] = []
    for match in _SEPARATOR.finditer(text):
        payload = text[match.end() :]
        if _is_label_list(payload):
            continue
        if payload.strip():
            start = match.end() + _named_again(text[: match.end()], payload)
            splits.append(_cut(text, start, len(text), (start, len(text)), marked=False))
        break
    head, newline, last = text.rpartition("\n")
    if newline and splits and last.strip():
        splits.append(_cut(text, 0, len(head), (0, len(head)), marked=False))
    return tuple(splits)


def _named_again(instruction: str, payload: str) -> int:
    """Return the length of a heading at the payload's start: "… the memo.", then "Memo: …"."""
    heading = re.match(r"\s*([^\W\d_]{3,20})\s?:\s+", payload)
    if heading is None:
        return 0
    named = rf"\b(?:the|this|following|der|die|das|den|dem|le|la|el)\s+{heading[1]}\b"
    return heading.end() if re.search(named, instruction, re.IGNORECASE) else 0


def _is_label_list(text: str) -> bool:
    """Tell whether a text goes on with the items of a list, before anything else."""
    line = re.split(r"[.?!)\n\"“„«]", text, maxsplit=1)[0].strip()
    items = re.split(
        r"\s*[,/|;]\s*(?:or |and |oder |und |ou |et |o |y )?|\s+(?:or|oder|ou|o)\s+", line
    )
    return len(items) >= 2 and all(0 < len(item.split()) <= 2 for item in items) and len(line) < 120


def _quoted_spans(text: str) -> list[tuple[int, int]]:
    """Return the outermost quoted spans, quotes included, left to right."""
    spans: list[tuple[int, int]] = []
    position = 0
    while position < len(text):
        end = _closing(text, position)
        if end is None:
            position += 1
        else:
            spans.append((position, end))
            position = end
    return spans


def _closing(text: str, start: int) -> int | None:
    """Return the end of the quotation that opens at `start`, or None where none does."""
    mark = text[start]
    if mark == '"':
        return _closing_straight(text, start)
    if mark in "'‘":  # noqa: RUF001
        return _closing_single(text, start)
    ends = [text.find(close, start + 1) for opening, close in _QUOTES if opening == mark]
    ends = [end for end in ends if end > start + 1]
    return min(ends) + 1 if ends else None


def _closing_straight(text: str, start: int) -> int | None:
    """Both marks look the same: one before a word opens, one after a word closes."""
    depth = 0
    for end in range(start, len(text)):
        if text[end] != '"':
            continue
        opens = end == start or (
            not text[end - 1].isalnum()
            and text[end - 1] not in ".!?,;…"
            and text[end + 1 : end + 2].strip() != ""
        )
        depth += 1 if opens else -1
        if depth == 0:
            return end + 1
    return None


def _closing_single(text: str, start: int) -> int | None:
    # An apostrophe follows a letter and precedes one; a quotation mark does not.
    if start > 0 and (text[start - 1].isalnum()):
        return None
    close = "'" if text[start] == "'" else "’"  # noqa: RUF001
    end = start
    while (end := text.find(close, end + 1)) != -1:
        following = text[end + 1 : end + 2]
        if not following.isalnum() and not text[end - 1].isspace() and end > start + 1:
            return end + 1
    return None


def _unquoted(text: str) -> str | None:
    """Return what is inside where one pair of quotes holds the whole text."""
    spans = _quoted_spans(text)
    if spans == [(0, len(text))] and len(text) > 2:
        return text[1:-1].strip() or None
    return None


def _quote_at_start(text: str) -> str | None:
    """Return what follows a quotation with which a text begins."""
    stripped = text.strip()
    spans = _quoted_spans(stripped)
    if spans and spans[0][0] == 0 and spans[0][1] < len(stripped):
        return stripped[spans[0][1] :]
    return None
