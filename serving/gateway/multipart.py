"""Reads a form with one file (multipart/form-data) as a stream: the file is never in memory."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.contracts.errors import InvalidRequest, UnsupportedMediaType

_MAX_FIELD = 4096
_MAX_PARTS = 20
# Of python-multipart.
_MAX_BOUNDARY = 256
_MAX_HEADERS = 8192
_FIX = "send multipart/form-data with the fields file and purpose, as OpenAI's SDKs do"


@dataclass(slots=True)
class Form:
    """What a form held. filename: of its file, None where it has none. fields: by name."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None


@dataclass(slots=True)
class _Part:
    headers: dict[str, str] = field(default_factory=dict)
    name: str = ""
    filename: str | None = None
    text: bytearray = field(default_factory=bytearray)


class _Parser:
    """Collects fields, and hands out the file's bytes in pieces."""

    def __init__(self, boundary: bytes) -> None:
        self.form = Form()
        self.pieces: list[bytes] = []
        self.is_ended = False
        self._parts = 0
        self._part = _Part()
        self._header = (bytearray(), bytearray())
        self._parser = MultipartParser(boundary, {
            "on_part_begin": self._begin, "on_part_data": self._data, "on_part_end": self._end,
            "on_header_field": self._header_name, "on_header_value": self._header_value,
            "on_header_end": self._header_end, "on_headers_finished": self._headers_end,
            "on_end": self._whole,
        })  # fmt: skip

    def feed(self, data: bytes) -> list[bytes]:
        """Return the file's bytes in some more of the body. Raises InvalidRequest."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise InvalidRequest("the body is not multipart/form-data", fix=_FIX) from error
        found, self.pieces = self.pieces, []
        return found

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise InvalidRequest(f"the form has more than {_MAX_PARTS} parts", fix=_FIX)
        self._part = _Part()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._grow(self._header[0], data[start:end], _MAX_HEADERS, "a header")

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._grow(self._header[1], data[start:end], _MAX_HEADERS, "a header")

    def _header_end(self) -> None:
        name, value = (bytes(part).decode("utf-8", "replace") for part in self._header)
        self._part.headers[name.lower()] = value
        self._header = (bytearray(), bytearray())

    def _headers_end(self) -> None:
        disposition = self._part.headers.get("content-disposition", "")
        _, options = parse_options_header(disposition.encode())
        part = self._part
        part.name = options.get(b"name", b"").decode("utf-8", "replace")
        given = options.get(b"filename")
        if part.name == "file":
            if self.form.filename is not None:
                raise InvalidRequest("the form has two files", field="file", fix="send one")
            self.form.filename = (given or b"").decode("utf-8", "replace")[:256] or "file"
            self.form.filename = self.form.filename.replace("\0", "\ufffd")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part.name == "file":
            self.pieces.append(data[start:end])
        else:
            self._grow(self._part.text, data[start:end], _MAX_FIELD, f"field {self._part.name!r}")

    def _end(self) -> None:
        if self._part.name != "file":
            text = bytes(self._part.text).decode("utf-8", "replace")
            self.form.fields[self._part.name] = text

    def _whole(self) -> None:
        self.is_ended = True

    def _grow(self, buffer: bytearray, data: bytes, limit: int, what: str) -> None:
        if len(buffer) + len(data) > limit:
            raise InvalidRequest(f"{what} of the form has over {limit} bytes", fix=_FIX)
        buffer += data


async def read_form(
    content_type: str, body: AsyncIterator[bytes], write: Callable[[bytes], Awaitable[Any]]
) -> Form:
    """Return a form; its file's bytes are written as they arrive.

    Raises UnsupportedMediaType, InvalidRequest, and what `write` raises.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise UnsupportedMediaType(
            f"content-type is {content_type[:80]!r}", field="content-type", fix=_FIX
        )
    if len(boundary) > _MAX_BOUNDARY:
        raise InvalidRequest(
            f"the form's boundary has {len(boundary)} bytes, more than {_MAX_BOUNDARY}", fix=_FIX
        )
    parser = _Parser(boundary)
    async for data in body:
        for piece in parser.feed(data):
            await write(piece)
    if not parser.is_ended:
        raise InvalidRequest("the form ends early", fix=_FIX)
    return parser.form
