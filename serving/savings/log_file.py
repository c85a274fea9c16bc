"""Reads a log of JSON Lines in the order of its requests' times, without holding it in memory."""

import gzip
import json
import tempfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from serving.contracts.errors import InvalidArgument
from serving.contracts.plain_file import opened_plain

MOST_LINE_BYTES = 64 << 20
"""A longer line is counted as broken and skipped."""

_GZIP = b"\x1f\x8b"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BOM = b"\xef\xbb\xbf"
_FIELD = "--requests"


@dataclass(frozen=True, slots=True)
class Line:
    """One line. problem: why it holds no document; None where it holds one."""

    number: int
    document: dict[str, Any] | None
    problem: str | None = None


@contextmanager
def opened_log(path: Path) -> Iterator["LogFile"]:
    """Open a log, plain or gzip; a gzip log is unpacked to a temporary file without a name.

    Raises InvalidArgument for a file that cannot be read, is empty or is not JSON Lines.
    """
    try:
        with opened_plain(path) as file:
            head = file.read(4096)
            file.seek(0)
            _require_lines(path, head)
            if not head.startswith(_GZIP):
                yield LogFile(file)
                return
            with tempfile.TemporaryFile() as unpacked:
                problem = _unpack(file, unpacked)
                unpacked.seek(0)
                head = unpacked.read(4096)
                if problem and not head:
                    _refuse(path, f"cannot be unpacked: {problem}", "export it again")
                _require_lines(path, head)
                yield LogFile(unpacked, problem)
    except OSError as error:
        raise InvalidArgument(
            f"{str(path)!r} cannot be read: {error.strerror or error}",
            field=_FIELD,
            fix="name a file of JSON Lines that you may read",
        ) from error


class LogFile:
    """The lines of an open log. truncated: why a gzip log ends early; None where it does not."""

    def __init__(self, file: IO[bytes], truncated: str | None = None) -> None:
        self._file = file
        self.truncated = truncated

    def lines(self) -> Iterator[Line]:
        """Yield every line that is not blank, in the file's order."""
        for number, _, raw in self._raw():
            yield _parsed(number, raw)

    def in_time_order(self, time_of: Callable[[dict[str, Any]], float | None]) -> Iterator[Line]:
        """Yield the lines by the times that `time_of` finds, with which a first pass is made.

        Exports often begin with the newest request. A line without a time has that of the line
        before it. Takes 32 bytes of memory a line.
        """
        at, numbers, offsets, lengths = array("d"), array("q"), array("q"), array("q")
        latest = float("-inf")
        is_sorted = True
        for number, offset, raw in self._raw():
            line = _parsed(number, raw)
            found = time_of(line.document) if line.document is not None else None
            found = latest if found is None else found
            is_sorted = is_sorted and found >= latest
            latest = found
            at.append(found)
            numbers.append(number)
            offsets.append(offset)
            lengths.append(-1 if raw is None else len(raw))
        if is_sorted:
            yield from self.lines()
            return
        for place in sorted(range(len(at)), key=at.__getitem__):
            self._file.seek(offsets[place])
            raw = self._file.read(lengths[place]) if lengths[place] >= 0 else None
            yield _parsed(numbers[place], raw)

    def _raw(self) -> Iterator[tuple[int, int, bytes | None]]:
        """Yield number, offset and bytes of the lines; no bytes where a line is too long."""
        self._file.seek(0)
        number, offset = 0, 0
        while raw := self._file.readline(MOST_LINE_BYTES):
            number += 1
            began, offset = offset, offset + len(raw)
            too_long = len(raw) == MOST_LINE_BYTES and not raw.endswith(b"\n")
            while too_long and (rest := self._file.readline(1 << 20)):
                offset += len(rest)
                if rest.endswith(b"\n"):
                    break
            if too_long:
                yield number, began, None
            elif raw.strip() and raw.strip() != _BOM:
                yield number, began, raw


def _parsed(number: int, raw: bytes | None) -> Line:
    if raw is None:
        return Line(number, None, f"longer than {MOST_LINE_BYTES >> 20} MiB")
    raw = raw.removeprefix(_BOM)
    try:
        document = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return Line(number, None, f"not UTF-8 at byte {error.start + 1}")
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "cannot be parsed"
        return Line(number, None, f"not JSON: {reason}")
    if not isinstance(document, dict):
        return Line(number, None, f"a JSON {type(document).__name__}, not an object")
    return Line(number, document)


def _require_lines(path: Path, head: bytes) -> None:
    """Raise InvalidArgument where the first bytes are not those of JSON Lines."""
    text = head.removeprefix(_BOM).lstrip()
    if not head.startswith(_GZIP):
        if not text:
            _refuse(path, "has no line", "export requests to it first")
        if head.startswith(_UTF16):
            _refuse(path, "is UTF-16", "save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE")
        if b"\x00" in head:
            _refuse(path, "is not text", "export JSON Lines, plain or gzip")
        if text.startswith(b"["):
            _refuse(path, "is one JSON array", "write a line an element: jq -c '.[]' FILE")


def _refuse(path: Path, what: str, fix: str) -> None:
    raise InvalidArgument(f"{str(path)!r} {what}", field=_FIELD, fix=fix)


def _unpack(source: IO[bytes], target: IO[bytes]) -> str | None:
    """Unpack what can be read; return why the rest cannot."""
    try:
        with gzip.GzipFile(fileobj=source) as packed:
            # Not `read`: it drops what it has where the stream ends early.
            while chunk := packed.read1(1 << 20):
                target.write(chunk)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        return f"the gzip data are damaged or end early ({error})"
    return None
