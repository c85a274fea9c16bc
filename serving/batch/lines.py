"""The lines of a batch's file: found in a stream, and read into requests. Pure."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from serving.contracts.batch import BATCH_ENDPOINTS, HttpError
from serving.contracts.errors import InvalidRequest, NarrowgateError
from serving.contracts.routing import RequestOptions
from serving.pipeline.write import TaskReply

CHAT_URL, TASK_PREFIX = BATCH_ENDPOINTS
_BLANK_LINES = 1000
"""At the end of a file, which are left out."""

_BOM = b"\xef\xbb\xbf"
_FIELDS = frozenset({"custom_id", "method", "url", "body"})
_LONGEST_ID = 512


class BadLine(Exception):
    """A line that cannot be run. code: for programs, as OpenAI's batches name them."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line's place in its file, from 1, and its bytes without its end; None where too long."""

    number: int
    start: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class LineRequest:
    """One request of a batch. task: of `/v1/tasks/{task}`, None for a chat.

    body: without the option fields. deadline_s: the line's own, None without one.
    """

    custom_id: str
    task: str | None
    body: dict[str, Any]
    options: RequestOptions
    deadline_s: float | None


class LineFormat(Protocol):
    """What the endpoints' HTTP format says of one request; serving.gateway implements it."""

    def parse(self, data: bytes) -> Any:
        """Return a JSON document. Raises InvalidRequest."""
        ...

    def options(self, body: dict[str, Any]) -> tuple[RequestOptions, float | None]:
        """Take the option fields out of a body; return them and its deadline in seconds.

        Raises InvalidRequest.
        """
        ...

    def error(self, error: NarrowgateError) -> HttpError:
        """Return the response to an error."""
        ...

    def task_document(self, reply: TaskReply, request_id: str) -> dict[str, Any]:
        """Return the body of a task's response. Raises the error of an only input."""
        ...


def raw_lines(pieces: Iterable[bytes], longest: int) -> Iterator[RawLine]:
    """Yield the lines of a file that is read in pieces; at most one line is in memory.

    Lines end with LF or CRLF. A BOM before the first line is left out, and so are some empty lines
    at the end. longest: bytes of a line; a longer one has no data. The file's bytes are
    `start : start + len(data)`.
    """
    blank: list[RawLine] = []
    held = 0
    for line in _split(pieces, longest):
        is_blank = line.data is not None and not line.data.strip()
        if is_blank:
            blank.append(line)
            held += len(line.data or b"")
            if len(blank) <= _BLANK_LINES and held <= longest:
                continue
        # So many are not the end of a file: held, they would fill the memory.
        yield from blank
        blank.clear()
        held = 0
        if not is_blank:
            yield line


def _split(pieces: Iterable[bytes], longest: int) -> Iterator[RawLine]:
    number, start, held, dropped = 1, 0, bytearray(), 0
    for piece in pieces:
        position = 0
        while (end := piece.find(b"\n", position)) >= 0:
            part = piece[position:end]
            yield _line(number, start, held, part, dropped, longest)
            start += dropped + len(held) + len(part) + 1
            number, position, dropped = number + 1, end + 1, 0
            held.clear()
        rest = piece[position:]
        if len(held) + len(rest) > longest + len(_BOM) + 1:
            dropped += len(held) + len(rest)
            held.clear()
        else:
            held += rest
    if held or dropped:
        yield _line(number, start, held, b"", dropped, longest)


def _line(
    number: int, start: int, held: bytearray, part: bytes, dropped: int, longest: int
) -> RawLine:
    data = bytes(held) + part
    if number == 1 and data.startswith(_BOM):
        data, start = data[len(_BOM) :], start + len(_BOM)
    data = data.removesuffix(b"\r")
    return RawLine(number, start, None if dropped or len(data) > longest else data)


def read_line(data: bytes, endpoint: str, line_format: LineFormat) -> LineRequest:
    """Return a line's request. endpoint: of its batch. Raises BadLine."""
    try:
        document = line_format.parse(data)
    except InvalidRequest as error:
        message = error.message.replace("the body", "the line")
        raise BadLine("invalid_json_line", message) from error
    if not isinstance(document, dict):
        raise BadLine("invalid_json_line", "the line is not a JSON object")
    custom_id = _custom_id(document)
    if unknown := sorted(set(document) - _FIELDS):
        raise BadLine(
            "unknown_field", f"{unknown[0][:60]!r} is not a field of a line", unknown[0][:60]
        )
    if document.get("method", "POST") != "POST":
        raise BadLine("invalid_method", f"method is {document['method']!r:.60}, not 'POST'",
                      "method")  # fmt: skip
    url = document.get("url")
    if not isinstance(url, str) or not url.startswith(BATCH_ENDPOINTS):
        raise BadLine(
            "invalid_url", f"url is {url!r:.80}; batches run {CHAT_URL} and {TASK_PREFIX}NAME",
            "url",
        )  # fmt: skip
    if url != endpoint:
        raise BadLine("mismatched_url", f"url is {url!r:.80}, and the batch's is {endpoint!r}",
                      "url")  # fmt: skip
    body = document.get("body")
    if not isinstance(body, dict):
        raise BadLine("missing_required_parameter", "body is missing, or is not an object", "body")
    if body.get("stream"):
        raise BadLine(
            "stream_not_supported", "stream is true, and nobody waits for a batch", "body.stream"
        )
    try:
        options, deadline_s = line_format.options(body)
    except InvalidRequest as error:
        raise bad(error) from error
    body = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
    task = url.removeprefix(TASK_PREFIX) if url.startswith(TASK_PREFIX) else None
    return LineRequest(custom_id, task, body, options, deadline_s)


def bad(error: NarrowgateError) -> BadLine:
    """Return the reason why a line's body is refused."""
    return BadLine(error.code, error.message, error.field and f"body.{error.field}")


def _custom_id(document: dict[str, Any]) -> str:
    found = document.get("custom_id")
    if not isinstance(found, str) or not found:
        raise BadLine(
            "missing_required_parameter", "custom_id is missing, or is not a text", "custom_id"
        )
    if len(found) > _LONGEST_ID or "\x00" in found or not _encodes(found):
        raise BadLine(
            "invalid_custom_id",
            f"custom_id is longer than {_LONGEST_ID} characters, or holds one that is no text",
            "custom_id",
        )
    return found


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
