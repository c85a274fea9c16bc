"""Splits a message into an instruction and its payload, the text to work on, by rules.

A payload is a contiguous piece of the message, without any change. Where a message can be read in
two ways, both are returned; the router refuses the request if both make sense. Every rule takes
time linear in the message's length.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

MAX_INSTRUCTION_CHARS = 500
GAP = " … "
"""Replaces the payload in an instruction."""

_QUOTES = (("“", "”"), ("„", "“"), ("„", "”"), ("«", "»"), ("»", "«"), ("‹", "›"), ("「", "」"))  # noqa: RUF001
_TAG = re.compile(r"<(/?)([A-Za-z][\w-]{0,30})>")
_TRIPLE = re.compile(r'"""(.+?)"""|\'\'\'(.+?)\'\'\'', re.DOTALL)
_RULE = re.compile(r"^[ \t]*(?:-{3,}|={3,}|#{3,}|\*{3,}|_{3,})[ \t]*$", re.MULTILINE)
_BLOCK_QUOTE = re.compile(r"^> ?(.*)$", re.MULTILINE)
FIELD_NAMES = (
    "text|review|caption|transcript|ticket|excerpt|blog post|"
    "tweet|post|comment|message|sentence|article|document|headline|passage|paragraph|"
    "input|description|email|e-mail|feedback|news|story|snippet|statement|quote|content|"
    "nachricht|satz|bewertung|rezension|kommentar|artikel|meldung|eingabe|kundenmeinung|"
    "texte|phrase|avis|commentaire|dépêche|entrée|texto|frase|reseña|comentario|"
    "noticia|artículo|mensaje|mensagem|entrada|opinión|"
    "item|entry|bulletin|speaker|response|remark|dokument|absatz|aussage|beitrag|zitat|bericht|"
    "meinung|extrait|énoncé|passage|document|documento|pieza|fragmento|pasaje|oración|titular"
)
LANGUAGE_FIELDS = (
    "english|german|french|spanish|deutsch|englisch|französisch|spanisch|"
    "anglais|allemand|français|espagnol|inglés|alemán|francés|español"
)
_FIELD = re.compile(
    rf"^[ \t]*(?:the )?(?:{FIELD_NAMES}|{LANGUAGE_FIELDS})[ \t\u00a0]*[:=][ \t]*", re.I | re.M
)
_BARE_FIELD = re.compile(
    rf"(?:(?:the )?(?:{FIELD_NAMES}|{LANGUAGE_FIELDS}) ?:)? ?… ?(?:[^\W\d_]{{1,20}} ?:)?",
    re.IGNORECASE,
)
_INLINE_FIELD = re.compile(rf"(?<=[.!?:)]) (?:{FIELD_NAMES})[ \u00a0]?: ", re.I)
# Matched against a last line in which runs of white space are one space.
_CUE = re.compile(r"(?:the )?[\w \u2019'/-]{1,40}(?: ?\([^()]{1,60}\))? ?[:=] ?(?:\.\.\.|…|\?|_+)?")
# "Target language: Spanish", after the text.
_LANGUAGE_LINE = re.compile(rf"[^\W\d_][\w \u2019'-]{{1,40}} ?: ?(?:{LANGUAGE_FIELDS})\.?", re.I)
_LANGUAGE_END = re.compile(
    rf"\b(?:{LANGUAGE_FIELDS}|ingles|aleman|frances)\b"
    r"(?: (?:stp|svp|pls|please|bitte|porfa))? (?=\S)",
    re.IGNORECASE,
)
# "How do you say in French …", without a mark before the text. "In French that …" asks otherwise.
_SAYING = re.compile(
    r"(?:(?:how (?:do|would|can) (?:you|i|one|we) say|what(?: i|')?s|how to say|"
    r"wie (?:sagt man|sage ich|heißt)|was heißt|comment (?:dit-on|on dit|dire)|"
    r"c[oó]mo se dice|c[oó]mo digo) (?:in |auf |en )"
    rf"(?:{LANGUAGE_FIELDS}|ingles|aleman|frances|franzoesisch|francais|espanol)"
    rf"|what(?: i|')?s the (?:{LANGUAGE_FIELDS}) (?:translation|version|word|phrase) (?:for|of))"
    r"[ ,]+(?!(?:that|to|if|when|dass|ob|wenn|que|si|because|weil|and|or|und|oder|et|ou|y|o|"
    r"for|für|pour|para|please|bitte|the)\b)(?=\w)",
    re.IGNORECASE,
)
_MAX_CUE_CHARS = 80
_THANKS = re.compile(
    r"[¡!]?(?:many |vielen |muchas )?(?:thanks|thank you|thx|cheers|danke(?:schön)?|dank|merci|"
    r"gracias)\b[^\n]{0,20}",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"[:\uff1a][ \t\u00a0]+(?=\S)|\n\s*")
_LETTER = re.compile(r"[^\W\d_]")
_BRACKETED = re.compile(r"\[([^\[\]]+)\]")
_ITEM = re.compile(r"^[ \t]*(?:[-*•‣]|\(?\d{1,2}[.):]|\(?[a-hA-H][.)])[ \t]+\S", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Split:
    """One reading of a message.

    instruction: the message with a gap in place of the payload. marked: quotes, tags or the like
    mark where the payload begins and ends, so that it cannot contain an instruction.
    """

    instruction: str
    payload: str
    marked: bool


def split_message(message: str) -> tuple[Split, ...]:
    """Return the readings of a message as instruction and payload: at most two, or none."""
    text = message.strip()
    for rule in (_by_tags, _by_triple_quotes, _by_rules, _by_block_quote):
        if (found := rule(text)) is not None:
            return _sound(found)
    if (found := _by_field(text)) is not None:
        return _sound(found)
    if (found := _by_quotes(text)) is not None:
        return _sound(found)
    return _sound(_by_separator(text))


_FENCE = re.compile(
    r"^[ \t]*```[ \t]*(?:text|txt)?[ \t]*\n?(.+?)\n?[ \t]*```", re.DOTALL | re.MULTILINE
)
_HEADING = re.compile(r"^[ \t]*#{1,6}[ \t]+[^\n]+$", re.MULTILINE)
# "Options:" and two or more items, one a line, at the end.
_OPTION = re.compile(r"^[ \t]*(?:[-*•]|\d[.)])[ \t]*([^\n]{1,40}?)[ \t]*$", re.MULTILINE)
_OPTIONS = re.compile(
    r"\n[ \t]*([^\W\d_][^\n:]{0,30}):[ \t]*(?:\n[ \t]*(?:[-*•]|\d[.)])[^\n]{1,40}){2,8}\s*$"
)
_SENTENCE = re.compile(r"(?<=[.!?])[\s]+(?=\S)")
_JSON_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(:)?')
# An order before a text without punctuation is at most this long.
_MAX_ORDER_CHARS = 200
_MAX_BARE_ORDER_CHARS = 60
_MAX_FIELD_WORDS = 2
_MIN_TEXT_WORDS = 3


def further_splits(message: str) -> tuple[Split, ...]:
    """Return weaker readings of a message, for when `split_message` gives none that makes sense.

    A fenced text, the text under one of several headings, one string of a JSON object, and the
    first or the last sentence as the instruction.
    """
    text = message.strip()
    for rule in (_by_fence, _by_headings, _by_json, _by_one_rule):
        if (found := rule(text)) is not None:
            return _sound(found)
    if (options := _OPTIONS.search(text)) is not None:
        listed = ", ".join(_OPTION.findall(options[0]))
        rest = split_message(text[: options.start()])
        return tuple(
            Split(f"{one.instruction}\n{options[1]}: {listed}", one.payload, one.marked)
            for one in rest
        )
    if (roles := _ROLES.fullmatch(text)) is not None and not _ROLE.search(roles[2]):
        # A system message and a user's, pasted as one.
        return _sound((Split(f"{roles[1].strip()}{GAP}".strip(), roles[2].strip(), marked=False),))
    return _sound(
        (
            *_by_brackets(text),
            *_by_middle(text),
            *_by_sentence(text),
            *_by_language(text),
            *_by_listed(text),
            *_by_question_after(text),
        )
    )


_ROLE = re.compile(
    r"^[ \t]*(?:system|user|assistant|human|ai)[ \t]*:", re.IGNORECASE | re.MULTILINE
)
_ROLES = re.compile(
    r"system[ \t]{0,3}:[ \t]{0,3}([^\s][^\0]{0,500}?)\n(?:user|human)[ \t]{0,3}:\s{0,9}(\S[^\0]*)",
    re.IGNORECASE,
)
# Options, one a line, between the order and the text.
_LISTED = re.compile(
    r":[ \t]*\n(?P<items>(?:[ \t]*(?:[-*•]|\d[.)])[^\n]{1,40}\n){2,8})[ \t]*\n+(?=\S)"
)


def _by_listed(text: str) -> tuple[Split, ...]:
    """Read what follows a list of options, one a line, as the payload."""
    match = _LISTED.search(text)
    if match is None or match.end() > MAX_INSTRUCTION_CHARS or "\n\n" in text[match.end() :]:
        return ()
    field = _FIELD.match(text, match.end())
    start = match.end() if field is None else field.end()
    cut = _cut(text, start, len(text), (start, len(text)), marked=False)
    listed = ", ".join(_OPTION.findall(match["items"]))
    return (replace(cut, instruction=f"{text[: match.start()]}: {listed}.{GAP}".strip()),)


def _by_question_after(text: str) -> tuple[Split, ...]:
    """Read what stands before the last one to three sentences, after a colon, as the payload."""
    if "\n" in text:
        return ()
    colon = text.find(": ")
    if not 0 < colon <= _MAX_ORDER_CHARS or _is_label_list(text, colon + 2):
        colon = -2
    ends = [match.span() for match in _SENTENCE.finditer(text, colon + 2)][-_MAX_LAST_SENTENCES:]
    found = []
    for start, end in ends:
        # A question, or an order: what follows the text asks from its beginning.
        first = text[end:].split(". ", 1)[0]
        if len(text) - end > _MAX_ORDER_CHARS or len(text[colon + 2 : start].split()) < 3:
            continue
        if "?" in first or _LABELLING.match(first):
            found.append(_cut(text, colon + 2, start, (colon + 2, start), marked=False))
    return tuple(found)


_MAX_LAST_SENTENCES = 3
_LABELLING = re.compile(
    r"(?:please |bitte )?(?:extract|identify|list|classify|label|translate|tag|name|"
    r"extrahiere|liste|nenne|klassifiziere|übersetze|bestimme|extra(?:is|yez)|liste[rz]?|classe[rz]?|"
    r"traduis|traduisez|extrae|extraiga|clasifica|clasifique|traduce|traduzca|identifi\w+)\b",
    re.IGNORECASE,
)


def _by_fence(text: str) -> tuple[Split, ...] | None:
    found = list(_FENCE.finditer(text))
    if not found:
        return None
    if len(found) > 1:
        return ()
    return (_cut(text, *found[0].span(), found[0].span(1), marked=True),)


def _by_brackets(text: str) -> tuple[Split, ...]:
    """Read what the only square brackets hold as the payload, unless it is a list of labels."""
    found = list(_BRACKETED.finditer(text))
    if len(found) != 1 or len(found[0][1].split()) < _MIN_TEXT_WORDS:
        return ()
    if _is_label_list(found[0][1], 0):
        return ()
    return (_cut(text, *found[0].span(), found[0].span(1), marked=True),)


def _by_headings(text: str) -> tuple[Split, ...] | None:
    """Read the text under each heading in turn as the payload."""
    found = list(_HEADING.finditer(text))
    if len(found) < 2:
        return None
    ends = [*(match.start() for match in found[1:]), len(text)]
    return tuple(
        _cut(text, match.end(), end, (match.end(), end), marked=end < len(text))
        for match, end in zip(found, ends, strict=True)
        if text[match.end() : end].strip()
    )


def _by_json(text: str) -> tuple[Split, ...] | None:
    """Read the longest string of an object as the payload, the other fields as the instruction."""
    if not (text.startswith("{") and text.endswith("}")):
        return None
    values = [match for match in _JSON_STRING.finditer(text) if not match[2]]
    if not values:
        return ()
    longest = max(values, key=lambda match: len(match[1]))
    if "\\" in longest[1]:
        return ()
    fields = re.sub(r'[{}"\[\]]', " ", f"{text[: longest.start()]}{GAP}{text[longest.end() :]}")
    lines = re.sub(r"\s*,\s*(?=[^\W\d]+ *:)", "\n", fields)
    return (Split(lines.strip(), longest[1], marked=True),)


def _by_one_rule(text: str) -> tuple[Split, ...] | None:
    """Read what precedes or follows the only line of dashes as the payload."""
    found = list(_RULE.finditer(text))
    if len(found) != 1:
        return None
    start, end = found[0].span()
    heading = text[:start].rstrip().rpartition("\n")[2]
    begin = start - len(heading) - 1 if heading.isalpha() else start
    return (
        _cut(text, 0, end, (0, start), marked=True),
        _cut(text, begin, len(text), (end, len(text)), marked=False),
    )


def _by_middle(text: str) -> tuple[Split, ...]:
    """Read what stands between an order's colon or line and a last line as the payload."""
    newline = text.rfind("\n")
    match = next((m for m in _SEPARATOR.finditer(text) if not _is_label_list(text, m.end())), None)
    if newline == -1 or match is None or match.end() >= newline:
        return ()
    if not text[match.end() : newline].strip() or not text[newline:].strip():
        return ()
    if _THANKS.fullmatch(text[newline + 1 :]) and text[newline - 1 : newline] != "\n":
        # The last line of the text, or of the order.
        return ()
    if any(start < newline < end for start, end in _quoted_spans(text)):
        return ()
    # One word and a colon ("Note: …") may be the text's own.
    colon = _SEPARATOR.search(text, newline + 1)
    names_labels = (
        colon is not None
        and len(text[newline : colon.start()].split()) <= _MAX_FIELD_WORDS
        and _is_label_list(text, colon.end())
    )
    if len(text[: match.end()].split()) < 2 and not names_labels:
        return ()
    # "…\nComment: …\n\nOnly the label, please.": the field names the text.
    field = _FIELD.match(text, match.end(), newline)
    start = match.end() if field is None else field.end()
    if not text[start:newline].strip():
        return ()
    return (_cut(text, start, newline, (start, newline), marked=False),)


def _by_language(text: str) -> tuple[Split, ...]:
    """Read "translate to german" before a text without a separator as the instruction."""
    name = _LANGUAGE_END.search(text[:_MAX_BARE_ORDER_CHARS])
    if (asked := _SAYING.match(text)) is not None and "\n" not in text and not text.endswith("?"):
        rest = asked.end()
        if len(text[rest:].split()) >= _MIN_TEXT_WORDS and not _quoted_spans(text):
            return (_cut(text, rest, len(text), (rest, len(text)), marked=False),)
    if (
        name is None
        or not text[name.end()].isupper()
        or len(text[name.end() :].split()) < _MIN_TEXT_WORDS
    ):
        return ()
    return (_cut(text, name.end(), len(text), (name.end(), len(text)), marked=False),)


def _by_sentence(text: str) -> tuple[Split, ...]:
    """Read the first or the last sentence as the instruction."""
    quoted = _quoted_spans(text)
    ends = [
        match.span()
        for match in _SENTENCE.finditer(text)
        if not any(start < match.start() < end for start, end in quoted)
    ]
    if not ends or "\n" in text:
        return ()
    splits = []
    start, end = ends[0]
    if start <= _MAX_ORDER_CHARS and len(text[end:].split()) >= _MIN_TEXT_WORDS:
        splits.append(_cut(text, end, len(text), (end, len(text)), marked=False))
    start, end = ends[-1]
    if len(text) - end <= _MAX_ORDER_CHARS and len(text[:start].split()) >= _MIN_TEXT_WORDS:
        splits.append(_cut(text, 0, start, (0, start), marked=False))
    begin = ends[0][1]
    if begin < start and len(text[begin:start].split()) >= _MIN_TEXT_WORDS:
        splits.append(_cut(text, begin, start, (begin, start), marked=False))
    return tuple(splits)


# Where a text may begin: after a sentence, a colon, an arrow or a line.
_BEGINNING = re.compile(
    r"(?P<weak>(?<=[.!?…])[\"'”»)]*[ \t]+)(?=\S)"
    r"|[:=][ \t\u00a0]*\n*(?=\S)|-> ?|→ ?|(?<!\n)\n+(?=\S)"
)
_MAX_BEGINNINGS = 8


@dataclass(frozen=True, slots=True)
class Beginning:
    """A reading whose instruction is a beginning of the message. weak: a sentence ends there."""

    split: Split
    weak: bool


def beginnings(message: str) -> tuple[Beginning, ...]:
    """Return the readings in which the text follows the first sentences or lines."""
    text = message.strip()
    found: list[Beginning] = []
    for match in _BEGINNING.finditer(text, 0, MAX_INSTRUCTION_CHARS):
        if len(found) == _MAX_BEGINNINGS:
            break
        start = match.end()
        if len(text[start:].split()) >= _MIN_TEXT_WORDS:
            split = _cut(text, start, len(text), (start, len(text)), marked=False)
            found.append(Beginning(split, match["weak"] is not None))
    return tuple(one for one in found if _sound((one.split,)))


def begins_with_field(text: str) -> bool:
    """Return whether a text begins with the name of a text and a colon, as in `Input: …`."""
    return _FIELD.match(text) is not None


def only_names(instruction: str) -> bool:
    """Return whether the words around a payload only name it, as in `Text: …`."""
    if len(instruction) > MAX_INSTRUCTION_CHARS:
        return False
    return _BARE_FIELD.fullmatch(" ".join(instruction.split())) is not None


def holds_list(text: str) -> bool:
    """Return whether two or more lines are list items, so that the text is several texts."""
    return len(_ITEM.findall(text)) >= 2


def _sound(splits: tuple[Split, ...]) -> tuple[Split, ...]:
    return tuple(
        split
        for split in splits
        if _LETTER.search(split.payload) and len(split.instruction) <= MAX_INSTRUCTION_CHARS
    )


def _cut(text: str, start: int, end: int, inner: tuple[int, int], *, marked: bool) -> Split:
    """Split off text[start:end]. Its payload is `inner` without outer white space and quotes."""
    payload = text[inner[0] : inner[1]].strip()
    instruction = f"{text[:start].rstrip()}{GAP}{text[end:].lstrip()}".strip()
    bare = unquoted(payload)
    return Split(instruction, bare or payload, marked or bare is not None)


def _by_tags(text: str) -> tuple[Split, ...] | None:
    found = list(_tagged(text))
    if not found:
        return None
    if len(found) > 1:
        return ()
    start, end, inner = found[0]
    split = _cut(text, start, end, inner, marked=True)
    # "Classify <doc>": the tag names the text again.
    return (replace(split, instruction=_TAG.sub(_named_tag, split.instruction)),)


def _named_tag(tag: re.Match[str]) -> str:
    return tag[0] if tag[1] else " text "


def _tagged(text: str) -> Iterator[tuple[int, int, tuple[int, int]]]:
    """Yield start, end and inner span of each opening tag with the next closing tag of its name."""
    tags = list(_TAG.finditer(text))
    closing: dict[str, list[re.Match[str]]] = {}
    opening: dict[str, list[re.Match[str]]] = {}
    for tag in tags:
        if not tag[1]:
            opening.setdefault(tag[2], []).append(tag)
        else:
            closing.setdefault(tag[2], []).append(tag)
    position = 0
    for tag in tags:
        if tag[1] or tag.start() < position:
            continue
        ends = closing.get(tag[2], [])
        following = bisect_left(ends, tag.end(), key=re.Match.start)
        if following < len(ends):
            end = ends[following]
            # "The text in <text> tags": the last opening one before it is closed.
            again = bisect_left(opening[tag[2]], end.start(), key=re.Match.start) - 1
            tag = opening[tag[2]][again]
            yield tag.start(), end.end(), (tag.end(), end.start())
            position = end.end()


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
    end = _before_cue(text)
    # The cue itself ("English:") may look like a field.
    found = [match for match in found if match.start() < end]
    if len(found) != 1:
        return () if found else None
    match = found[0]
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
    after = quote_at_start(text[match.end() : end])
    if after is not None and _CUE.fullmatch(" ".join(after.split())):
        # 'Entrée : "…" Sortie :': the cue stands on the same line.
        start = match.end() + len(text[match.end() : end]) - len(text[match.end() : end].lstrip())
        last = start + len(text[start:end].rstrip()) - len(after)
        return (_cut(text, start, last, (start + 1, last - 1), marked=True),)
    if after is not None and after.startswith("\n") and '"' not in after:
        # 'Text: "…"', a line break, and the question.
        start = match.end() + len(text[match.end() :]) - len(text[match.end() :].lstrip())
        last = start + _quoted_spans(text[start:])[0][1]
        return (_cut(text, start, last, (start + 1, last - 1), marked=True),)
    return (split,) if after is None or split.marked else ()


def _before_cue(text: str) -> int:
    """Return where a last line that asks for the answer ("Sentiment:") begins; else the length."""
    end = len(text)
    for pattern in (_CUE, _LANGUAGE_LINE):
        newline = text.rfind("\n", 0, end)
        last = text[newline + 1 : end]
        if (
            newline != -1
            and len(last) <= _MAX_CUE_CHARS
            and pattern.fullmatch(" ".join(last.split()))
        ):
            end = newline
    return end


def _by_quotes(text: str) -> tuple[Split, ...] | None:
    """Read the only quoted span as the payload, if no other text can be the payload."""
    spans = [s for s in _quoted_spans(text) if len(text[s[0] : s[1]].split()) > 0]
    if not spans:
        return None
    longest = max(spans, key=lambda s: s[1] - s[0])
    others = [s for s in spans if s != longest]
    # Beside the payload, only a word or two may be quoted, such as labels.
    if any(len(text[a:b].split()) > 2 for a, b in others):
        return ()
    start, end = longest
    if '"' in text[:start] + text[end:] and not others:
        return ()
    before, after = text[:start].rstrip(), text[end:].strip()
    separator = next(
        (m for m in _SEPARATOR.finditer(before) if not _is_label_list(text, m.end())), None
    )
    if separator is not None and separator.end() < len(before):
        # The quotation is inside the possible payload: "Translate: he said "no" to me."
        return None
    if before.endswith((":", ",")) and after[:1] and (after[0] == "," or after[0].islower()):
        return ()
    if after.strip(".!?") and (before.endswith(":") or text[:start].rstrip(" ").endswith("\n")):
        # The rest may be an order, or belong to a text that begins with a quotation.
        whole = _cut(text, start, len(text), (start, len(text)), marked=False)
        return (*_one(text, longest), whole)
    return _one(text, longest)


def _one(text: str, span: tuple[int, int]) -> tuple[Split, ...]:
    start, end = span
    return (_cut(text, start, end, (start + 1, end - 1), marked=True),)


def _by_separator(text: str) -> tuple[Split, ...]:
    """Read the first line, the words before a colon, or the last line as the instruction."""
    splits: list[Split] = []
    for match in _SEPARATOR.finditer(text):
        if _is_label_list(text, match.end()):
            continue
        payload = text[match.end() :]
        if payload.strip():
            start = match.end() + _named_again(text[: match.end()], payload)
            splits.append(_cut(text, start, len(text), (start, len(text)), marked=False))
        break
    head, newline, last = text.rpartition("\n")
    if newline and head.strip() and last.strip():
        splits.append(_cut(text, 0, len(head), (0, len(head)), marked=False))
    return tuple(splits)


def _named_again(instruction: str, payload: str) -> int:
    """Return the length of a heading at the payload's start: "… the memo.", then "Memo: …"."""
    heading = re.match(r"\s*([^\W\d_]{3,20})\s?:\s+", payload)
    if heading is None:
        return 0
    named = rf"\b(?:the|this|following|der|die|das|den|dem|le|la|el)\s+{heading[1]}\b"
    return heading.end() if re.search(named, instruction, re.IGNORECASE) else 0


_MAX_LABEL_LIST_CHARS = 120
_SENTENCE_END = re.compile(r"[.?!)\n\"“„«]")
# "1) World 2) Sports", "(a) World, (b) Sports".
# The window is no longer; without a bound it takes time quadratic in white space.
_ENUMERATOR = re.compile(
    r"(?:(?<=[\s,;/|])|^)[,;/|]?\s{0,240}\(?(?:[1-9]|[a-hA-H])[.)]\s*(?=[^\W\d])"
)
_LABEL_SEPARATOR = re.compile(
    r"(?<!\s)(?:\s*+[,/|;]\s*(?:or |and |oder |und |ou |et |o |y )?|\s++(?:or|oder|ou|o)\s+)"
)


def _is_label_list(text: str, start: int) -> bool:
    """Return whether a text goes on at `start` with only the items of a list."""
    # A list that is longer than the window does not count.
    window = text[start : start + 2 * _MAX_LABEL_LIST_CHARS]
    window = _ENUMERATOR.sub(", ", window).lstrip(" ,")
    line = _SENTENCE_END.split(window, maxsplit=1)[0].strip()
    items = _LABEL_SEPARATOR.split(line)
    return (
        len(line) < _MAX_LABEL_LIST_CHARS
        and len(items) >= 2
        and all(0 < len(item.split()) <= 2 for item in items)
    )


# The readings of a message ask for the same few texts again.
@lru_cache(maxsize=64)
def _quoted_spans(text: str) -> Sequence[tuple[int, int]]:
    """Return the outermost quoted spans, quotes included, left to right."""
    spans: list[tuple[int, int]] = []
    if _OPENING_MARK.search(text) is None:
        return spans
    quotes = _Quotes(text)
    position = 0
    for mark in _OPENING_MARK.finditer(text):
        start = mark.start()
        if start >= position and (end := quotes.closing(start)) is not None:
            spans.append((start, end))
            position = end
    return spans


_OPENING_MARK = re.compile("[\"'‘" + "".join(opening for opening, _ in _QUOTES) + "]")  # noqa: RUF001


class _Quotes:
    """The places of a text's quotation marks, for finding the one that closes another."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._closing = {mark: _places(mark, text) for mark in _CLOSING_MARKS}
        self._single = {mark: self._single_ends(mark) for mark in "'’"}  # noqa: RUF001
        self._straight = _straight_ends(text)

    def closing(self, start: int) -> int | None:
        """Return the end of the quotation that opens at `start`, or None where none does."""
        mark = self._text[start]
        if mark == '"':
            return self._straight.get(start)
        if mark in "'‘":  # noqa: RUF001
            return self._closing_single(start)
        ends = [
            _following(self._closing[close], start) for opening, close in _QUOTES if opening == mark
        ]
        # Marks without a text between them are not a quotation.
        found = [end for end in ends if end is not None and end > start + 1]
        return min(found) + 1 if found else None

    def _closing_single(self, start: int) -> int | None:
        # An apostrophe follows a letter; an opening quotation mark does not.
        if start > 0 and self._text[start - 1].isalnum():
            return None
        close = "'" if self._text[start] == "'" else "’"  # noqa: RUF001
        end = _following(self._single[close], start + 1)
        return None if end is None else end + 1

    def _single_ends(self, mark: str) -> list[int]:
        """Return the marks that may close: none before a letter or after white space."""
        return [
            place
            for place in _places(mark, self._text)
            if not self._text[place + 1 : place + 2].isalnum()
            and not self._text[place - 1 : place].isspace()
        ]


_CLOSING_MARKS = frozenset(close for _, close in _QUOTES)


def _places(mark: str, text: str) -> list[int]:
    """Return the positions of a character in a text."""
    if mark not in text:
        return []
    return [position for position, one in enumerate(text) if one == mark]


def _following(positions: Sequence[int], start: int) -> int | None:
    """Return the first of some sorted positions after `start`."""
    index = bisect_right(positions, start)
    return positions[index] if index < len(positions) else None


def _straight_ends(text: str) -> dict[int, int]:
    """Return the end of the quotation that each straight mark opens, by the mark's position.

    Both marks look the same: one before a word opens, one after a word closes. A quotation ends at
    the first mark behind which all that were opened inside it are closed.
    """
    ends: dict[int, int] = {}
    # Marks whose quotation is not closed yet, with the depth that closes it.
    waiting: list[tuple[int, int]] = []
    depth = 0
    for position in _places('"', text):
        opens = (
            not text[position - 1 : position].isalnum()
            and text[position - 1 : position] not in tuple(".!?,;…")
            and text[position + 1 : position + 2].strip() != ""
        )
        depth += 1 if opens else -1
        while waiting and waiting[-1][1] == depth:
            ends[waiting.pop()[0]] = position + 1
        # A quotation that begins here is closed by the next mark that brings the depth below this
        # one, whether this mark opens or closes.
        waiting.append((position, depth - 1))
    return ends


def unquoted(text: str) -> str | None:
    """Return the inside of a text that one pair of quotes holds as a whole."""
    spans = _quoted_spans(text)
    if spans == [(0, len(text))] and len(text) > 2:
        return text[1:-1].strip() or None
    if (held := _BRACKETED.fullmatch(text)) is not None and len(held[1].split()) >= _MIN_TEXT_WORDS:
        return held[1].strip()
    return None


def quote_at_start(text: str) -> str | None:
    """Return the rest of a text that begins with a quotation."""
    stripped = text.strip()
    spans = _quoted_spans(stripped)
    if spans and spans[0][0] == 0 and spans[0][1] < len(stripped):
        return stripped[spans[0][1] :]
    return None
