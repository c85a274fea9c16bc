"""Reads the body of a Message Batch piece by piece: one request at a time is in memory."""

import json
import re
from collections.abc import Mapping
from typing import Any

import ijson
from ijson.common import ObjectBuilder

from serving.contracts.errors import InvalidRequest, UnsupportedParameter
from serving.gateway.messages_request import chat_body

CHAT_URL = "/v1/chat/completions"
_CUSTOM_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_REQUESTS = 2
"""The depth of a request's own events."""

_STARTS, _ENDS = ("start_map", "start_array"), ("end_map", "end_array")
_MOST_DEPTH = 100
_REQUEST_FIELDS = {"custom_id", "params"}


class MessagesReader:
    """Turns the pieces of a body into the lines of a file of chat completions. Blocking.

    longest: bytes of one request, about. max_lines: of one batch.
    """

    def __init__(self, longest: int, max_lines: int) -> None:
        self._longest = longest
        self._max_lines = max_lines
        # Without the paths of values, which ijson's other parser makes: together they are as long
        # as the square of the depth.
        self._parser = ijson.basic_parse_coro(self, use_float=True)
        self._depth = 0
        self._lines: list[bytes] = []
        self._builder: ObjectBuilder | None = None
        self._pending = 0
        self._keys: list[set[str]] = []
        self._escapes = _Escapes()
        self._has_list = False
        self._ids: set[str] = set()
        self.count = 0

    def feed(self, piece: bytes) -> bytes:
        """Return the lines of the requests that this piece ends.

        Raises InvalidRequest and UnsupportedParameter, with the field.
        """
        self._pending += len(piece)
        if self._escapes.has_half(piece):
            where = f"requests.{self.count}"
            raise InvalidRequest(
                f"{where}, or the one before it, holds an unpaired surrogate, which is not text",
                field=where, fix="send complete characters: a text was probably cut inside one",
            )  # fmt: skip
        try:
            self._parser.send(piece)
        except ijson.JSONError as error:
            # Its text quotes the body.
            raise _malformed(f"it breaks in or after requests.{self.count}") from error
        return self._taken()

    def end(self) -> bytes:
        """Return the last lines. Raises InvalidRequest for a body that ends too early."""
        try:
            self._parser.close()
        except ijson.JSONError as error:
            raise _malformed("it ends early") from error
        lines = self._taken()
        if not self._has_list:
            raise InvalidRequest("requests is missing", field="requests", fix="send a list")
        if not self.count:
            raise InvalidRequest("requests is empty", field="requests", fix="send one at least")
        return lines

    def send(self, found: tuple[str, Any]) -> None:
        """Take an event of the parser. Raises InvalidRequest and UnsupportedParameter."""
        event, value = found
        if event in _ENDS:
            self._depth -= 1
        self._take(event, value)
        if event in _STARTS:
            self._depth += 1
            if self._depth > _MOST_DEPTH:
                raise InvalidRequest(
                    f"the body is nested more than {_MOST_DEPTH} levels deep",
                    field="requests",
                    fix="send plain messages; a schema of tools is rarely deeper than ten",
                )

    def close(self) -> None:
        """Take the parser's end."""

    def _take(self, event: str, value: Any) -> None:
        """Take an event at its depth: 0 is the body, 1 its fields, 2 the requests."""
        self._refuse_twice(event, value)
        if self._depth == 0:
            if event not in ("start_map", "end_map"):
                raise _malformed("it is not an object")
        elif self._depth == 1 and event == "map_key":
            if value != "requests":
                raise UnsupportedParameter(
                    f"{value[:60]!r} is not a field of a batch", field=value[:60],
                    fix="send requests only",
                )  # fmt: skip
        elif self._depth == 1:
            self._has_list = self._has_list or event == "start_array"
        elif self._has_list:
            line = self._item(event, value)
            if line is not None:
                self._lines.append(line)

    def _taken(self) -> bytes:
        """Return the lines since the last time. Raises InvalidRequest for a request too long."""
        if self._builder is not None and self._pending > self._longest:
            raise InvalidRequest(
                f"a request has over {self._longest} bytes", field=f"requests.{self.count}",
                fix="shorten it",
            )  # fmt: skip
        lines = b"".join(self._lines)
        self._lines.clear()
        return lines

    def _refuse_twice(self, event: str, value: Any) -> None:
        """Raise InvalidRequest for a key that its object has already: one value would be lost."""
        if event == "start_map":
            self._keys.append(set())
        elif event == "end_map":
            self._keys.pop()
        elif event == "map_key":
            if value in self._keys[-1]:
                raise InvalidRequest(
                    f"requests.{self.count} or the body holds the key {value[:60]!r} twice in one "
                    "object", field=value[:60], fix="send each key once",
                )  # fmt: skip
            self._keys[-1].add(value)

    def _item(self, event: str, value: Any) -> bytes | None:
        """Add an event to the request that it belongs to; return the request's line at its end."""
        if self._builder is None:
            self._builder = ObjectBuilder()
        self._builder.event(event, value)
        if self._depth > _REQUESTS or event in _STARTS:
            return None
        request, self._builder, self._pending = self._builder.value, None, 0
        return self._line(request)

    def _line(self, request: object) -> bytes:
        where = f"requests.{self.count}"
        self.count += 1
        if self.count > self._max_lines:
            raise InvalidRequest(
                f"requests has more than {self._max_lines} entries", field="requests",
                fix="send several batches",
            )  # fmt: skip
        if not isinstance(request, Mapping):
            raise InvalidRequest(f"{where} is not an object", field=where, fix="send an object")
        if unknown := sorted(set(request) - _REQUEST_FIELDS):
            raise UnsupportedParameter(
                f"{unknown[0][:60]!r} is not a field of a request",
                field=f"{where}.{unknown[0][:60]}", fix="send custom_id and params",
            )  # fmt: skip
        custom_id = self._custom_id(request.get("custom_id"), f"{where}.custom_id")
        try:
            body = chat_body(request.get("params"))
        except InvalidRequest as error:
            inner = f".{error.field}" if error.field else ""
            error.field = f"{where}.params{inner}"
            raise
        line = {"custom_id": custom_id, "method": "POST", "url": CHAT_URL, "body": body}
        return json.dumps(line).encode() + b"\n"

    def _custom_id(self, value: object, field: str) -> str:
        if not isinstance(value, str) or _CUSTOM_ID.fullmatch(value) is None:
            raise InvalidRequest(
                f"{field} is {value!r:.80}", field=field,
                fix="send 1 to 64 letters, digits, hyphens and underscores",
            )  # fmt: skip
        if value in self._ids:
            raise InvalidRequest(
                f"{field} {value!r} is that of an earlier request", field=field,
                fix="send each custom_id once",
            )  # fmt: skip
        self._ids.add(value)
        return value


def _malformed(why: str) -> InvalidRequest:
    text = " ".join(why.split())[:120]
    return InvalidRequest(f"the body is not JSON: {text}", fix="send a JSON object")


class _Escapes:
    """Finds halves of surrogate pairs in JSON's escapes, which the parser replaces by `?`.

    Backslashes occur in strings alone. An escape may begin in one piece and end in the next.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._is_open = False
        """Whether the first half of a pair was the last thing that was read."""

    def has_half(self, piece: bytes) -> bool:
        """Return whether a half without its other half ends in this piece."""
        data, self._rest = self._rest + piece, b""
        end = 0
        for found in _ESCAPE.finditer(data):
            if self._is_open and found.start() != end:
                return True
            code = found[1]
            if (code is None and found[0] == b"\\") or (code is not None and len(code) < 4):
                # Cut by the piece's end; an escape that is malformed is the parser's to refuse.
                self._rest = data[found.start() :] if found.end() == len(data) else b""
                end = found.start()
                break
            kind = b"" if code is None else code[:2].lower()
            is_first, is_second = kind in _FIRST, kind in _SECOND
            if self._is_open != is_second:
                return True
            self._is_open = is_first
            end = found.end()
        return self._is_open and end != len(data) - len(self._rest)


_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{0,4})|[^u]|$)", re.DOTALL)
_FIRST, _SECOND = ({f"d{digit}".encode() for digit in digits} for digits in ("89ab", "cdef"))
