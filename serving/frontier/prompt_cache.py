"""Where a prompt's reusable parts end: finds markers, removes them, places breakpoints. Pure."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

from serving.contracts.text_length import quarter_tokens

MAX_BREAKPOINTS = 4
"""Anthropic's limit for one request.

Of more markers the first four count: they end the most stable text, and markers in a user's input,
which comes last, cannot replace them.
"""

_SYSTEM_ROLES = ("system", "developer")
_MARKED_ROLES = (*_SYSTEM_ROLES, "user")

PrefixKind = Literal["marked", "tools", "system", "earlier", "latest"]
"""marked: ends at a client's marker. tools: after the tools. system: after the leading system
messages. earlier: where the previous request of the conversation ended. latest: the whole request.
"""

TOOLS = -1
"""`Prefix.message` of the prefix that holds only the tools."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """A part of the prompt from its start, to be cached.

    message, part: where its last text is in the stripped body; part is None where the content is a
    string, and where the prefix ends with its message. end: characters of that text which belong to
    it; None where the prefix ends with its message, or with the tools. digest: SHA-256, hex, of
    tools and messages up to there. text: only the marked text up to the marker, for the linter.
    """

    message: int
    part: int | None
    end: int | None
    digest: str
    tokens: int
    text: str
    kind: PrefixKind = "marked"

    @property
    def id(self) -> str:
        """Return the name for logs and metrics."""
        return self.digest[:12]


@dataclass(frozen=True, slots=True)
class SplitPrompt:
    """A body without markers.

    prefixes: those that the markers ended, shortest first. automatic: those that end with the
    tools, the system messages and the turns of the conversation. opening: digest up to the end of
    the first user message, which all requests of a conversation share; None without one.
    """

    body: dict[str, Any]
    prefixes: tuple[Prefix, ...]
    automatic: tuple[Prefix, ...] = ()
    opening: str | None = None


def split_prompt(body: Mapping[str, Any], marker: str) -> SplitPrompt:
    """Remove every marker from a body and return the prefixes that they ended.

    A marker on a line of its own is removed with its line. Markers in texts of system and user
    messages end prefixes; elsewhere (answers, tools, formats) they are only removed. A marker at
    the start of a text ends the text before it. Where removing markers from a text forms a new one,
    a space takes the place of each, and the text ends no prefix.
    """
    stripped = {
        name: value if name == "messages" else _without(value, marker)
        for name, value in body.items()
    }
    # One that was only markers is left out; one that was sent empty is the client's error.
    stop = body.get("stop")
    if isinstance(stop, list):
        cut = [(text, _without(text, marker)) for text in stop]
        stripped["stop"] = [left for text, left in cut if left or not text]
    elif stop and not stripped["stop"]:
        del stripped["stop"]
    messages = body.get("messages", [])
    walk = _Walk(marker, stripped.get("tools"), _turn_ends(messages))
    stripped["messages"] = [walk.message(n, message) for n, message in enumerate(messages)]
    # A client that places breakpoints itself gets no others: there may be four in a request.
    automatic = () if _has_breakpoint(body) else tuple(walk.automatic)
    return SplitPrompt(stripped, tuple(walk.prefixes[:MAX_BREAKPOINTS]), automatic, walk.opening)


def with_breakpoints(
    body: Mapping[str, Any], placed: Sequence[tuple[Prefix, Mapping[str, str]]]
) -> dict[str, Any]:
    """Split the texts of a body where prefixes end, and mark the ends with `cache_control`.

    A prefix that ends with a whole message splits nothing: the last part that a provider can mark
    is marked, or the message itself where it is a tool's result. No text changes.
    """
    messages = list(body["messages"])
    result = dict(body)
    for prefix, control in placed:
        if prefix.message == TOOLS:
            *others, last = body["tools"]
            result["tools"] = [*others, {**last, "cache_control": dict(control)}]
    for index in {prefix.message for prefix, _ in placed if prefix.end is not None}:
        message = dict(messages[index])
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        message["content"] = [
            piece
            for n, part in enumerate(parts)
            for piece in _cut(
                part,
                {
                    p.end: c
                    for p, c in placed
                    if p.end is not None and p.message == index and (p.part or 0) == n
                },
            )
        ]
        messages[index] = message
    for prefix, control in placed:
        if prefix.end is None and prefix.message != TOOLS:
            messages[prefix.message] = _marked_end(messages[prefix.message], control)
    return {**result, "messages": messages}


def _has_breakpoint(body: Mapping[str, Any]) -> bool:
    """Return whether a client placed `cache_control` itself."""
    tools, messages = body.get("tools"), body.get("messages", [])
    items = [*(tools if isinstance(tools, list) else []), *messages]
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        items += content if isinstance(content, list) else []
    return any(isinstance(item, Mapping) and "cache_control" in item for item in items)


def canonical(value: object) -> str:
    """Return JSON with sorted keys; lists keep their order, which may matter to the model."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)


@dataclass(frozen=True, slots=True)
class _TurnEnds:
    """Indices of the messages with which automatic prefixes end, by kind, and of the opening."""

    kinds: Mapping[int, PrefixKind]
    opening: int | None = None


def _turn_ends(messages: Sequence[object]) -> _TurnEnds:
    """Return where a conversation's reusable prefixes end.

    A later system message leaves only the leading ones: Anthropic takes all of them before the
    conversation, so that a new one changes everything after it.
    """
    roles = [m.get("role") if isinstance(m, Mapping) else None for m in messages]
    leading = next((n for n, role in enumerate(roles) if role not in _SYSTEM_ROLES), len(roles))
    kinds: dict[int, PrefixKind] = {leading - 1: "system"} if leading else {}
    rest, last = roles[leading:], len(roles) - 1
    if not rest or any(role in _SYSTEM_ROLES for role in rest):
        return _TurnEnds(kinds)
    opening = leading if rest[0] == "user" else None
    if roles[last] not in ("user", "tool"):
        return _TurnEnds(kinds, opening)
    answer = next((n for n in range(last, leading, -1) if roles[n] == "assistant"), None)
    while answer is not None and answer > leading and roles[answer - 1] == "assistant":
        answer -= 1
    if answer is not None and answer > leading and roles[answer - 1] in ("user", "tool"):
        kinds[answer - 1] = "earlier"
    kinds[last] = "latest"
    return _TurnEnds(kinds, opening)


class _Walk:
    """Walks through the messages in order and collects prefixes."""

    def __init__(self, marker: str, tools: object, ends: _TurnEnds) -> None:
        self._marker = marker
        self._ends = ends
        found = re.escape(marker)
        self._pattern = re.compile(rf"^[ \t]*{found}[ \t]*(?:\r?\n|\Z)|{found}", re.MULTILINE)
        start = canonical(tools) if tools else ""
        self._hash = hashlib.sha256(start.encode("utf-8", "surrogatepass"))
        self._quarters = quarter_tokens(start)
        self._last: tuple[int, int | None, int, str] | None = None
        self.prefixes: list[Prefix] = []
        self.automatic: list[Prefix] = []
        self.opening: str | None = None
        if tools:
            self._end_automatic(TOOLS, "tools")

    def message(self, index: int, message: object) -> Any:
        """Return a message without markers; collect the prefixes that end in or with it."""
        stripped = self._stripped(index, message)
        if (kind := self._ends.kinds.get(index)) is not None:
            self._end_automatic(index, kind)
        if index == self._ends.opening:
            self.opening = self._hash.hexdigest()
        return stripped

    def _end_automatic(self, index: int, kind: PrefixKind) -> None:
        digest, tokens = self._hash.hexdigest(), self._quarters // 4
        self.automatic.append(Prefix(index, None, None, digest, tokens, "", kind))

    def _stripped(self, index: int, message: object) -> Any:
        if not isinstance(message, dict):
            return _without(message, self._marker)
        role, content = message.get("role"), message.get("content")
        self._take(f"\x00{role}\x00")
        rest = {n: _without(v, self._marker) for n, v in message.items() if n != "content"}
        if isinstance(content, str):
            rest["content"] = self._text(index, None, role, content)
        elif isinstance(content, list):
            rest["content"] = [self._part(index, n, role, part) for n, part in enumerate(content)]
        elif "content" in message:
            rest["content"] = _without(content, self._marker)
        others = {n: v for n, v in rest.items() if n not in ("role", "content")}
        if others:
            self._take(canonical(others))
        return rest

    def _part(self, index: int, number: int, role: object, part: object) -> Any:
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            text = self._text(index, number, role, part["text"])
            others = {n: _without(v, self._marker) for n, v in part.items() if n != "text"}
            return {**others, "text": text}
        part = _without(part, self._marker)
        self._take(canonical(part))
        return part

    def _text(self, index: int, number: int | None, role: object, text: str) -> str:
        if self._marker not in text:
            self._take(text)
            self._remember(index, number, text)
            return text
        pieces = self._pattern.split(text)
        joined: str = "".join(pieces)
        forms_new = self._marker in joined
        if role not in _MARKED_ROLES or forms_new:
            joined = _without(text, self._marker) if forms_new else joined
            self._take(joined)
            self._remember(index, number, joined)
            return joined
        end = 0
        for nth, piece in enumerate(pieces[:-1]):
            # Each prefix copies its text.
            if len(self.prefixes) == MAX_BREAKPOINTS:
                break
            self._take(piece)
            end += len(piece)
            if nth and not piece.strip():
                # The marker before it has ended the same text.
                continue
            self._remember(index, number, joined[:end])
            self._end_prefix()
        self._take(joined[end:])
        self._remember(index, number, joined)
        return joined

    def _take(self, text: str) -> None:
        self._hash.update(text.encode("utf-8", "surrogatepass"))
        self._quarters += quarter_tokens(text)

    def _remember(self, index: int, number: int | None, text: str) -> None:
        if text.strip():
            self._last = (index, number, len(text), text)

    def _end_prefix(self) -> None:
        if self._last is None:
            return
        index, number, end, text = self._last
        before = self.prefixes[-1] if self.prefixes else None
        here = before is not None and (before.message, before.part) == (index, number)
        if before and here and not text[before.end or 0 : end].strip():
            # Nothing or only white space is between the two: one breakpoint is enough.
            return
        tokens = self._quarters // 4
        self.prefixes.append(Prefix(index, number, end, self._hash.hexdigest(), tokens, text))


def _without(value: Any, marker: str) -> Any:
    """Remove markers from every string in a value.

    Where removing markers from a text forms a new one, a character takes the place of each.
    """
    if isinstance(value, str):
        removed = value.replace(marker, "")
        if marker not in removed:
            return removed
        # Markers inside markers: removing layer after layer takes quadratic time.
        apart = next(char for char in map(chr, count(ord(" "))) if char not in marker)
        return value.replace(marker, apart)
    if isinstance(value, list):
        return [_without(item, marker) for item in value]
    if isinstance(value, dict):
        return {name: _without(item, marker) for name, item in value.items()}
    return value


def _marked_end(message: dict[str, Any], control: Mapping[str, str]) -> dict[str, Any]:
    """Return a message whose end is marked; unchanged where it has no part that can be."""
    if message.get("role") == "tool":
        return {**message, "cache_control": dict(control)}
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        return message
    for n in range(len(parts) - 1, -1, -1):
        part = parts[n]
        is_blank = part.get("type") == "text" and not str(part.get("text") or "").strip()
        if part.get("type") in ("text", "image_url") and not is_blank:
            marked = {**part, "cache_control": dict(control)}
            return {**message, "content": [*parts[:n], marked, *parts[n + 1 :]]}
    return message


def _cut(part: dict[str, Any], ends: Mapping[int, Mapping[str, str]]) -> list[dict[str, Any]]:
    if not ends:
        return [part]
    text, pieces, start = part["text"], [], 0
    for end in sorted(ends):
        pieces.append({**part, "text": text[start:end], "cache_control": dict(ends[end])})
        start = end
    if text[start:].strip():
        pieces.append({**part, "text": text[start:]})
    else:
        # Providers refuse texts of only white space; dropping it could join two words.
        pieces[-1]["text"] += text[start:]
    return pieces
