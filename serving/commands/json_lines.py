"""Files of JSON Lines that users write, and files of texts that only their owner may read."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from serving.contracts.errors import InvalidArgument
from serving.contracts.file_lines import file_lines, unreadable_because
from serving.contracts.plain_file import read_plain_text, refuse_other_kinds

MOST_FILE_BYTES = 256 * 2**20
"""The largest file that is read whole."""


def read_lines(file: Path, needed: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return a file's objects, empty lines left out. needed: fields that each has as text.

    Raises InvalidArgument.
    """
    found = []
    number = 0
    try:
        lines = file_lines(read_plain_text(file, MOST_FILE_BYTES))
        for number, line in enumerate(lines, 1):
            row = json.loads(line) if line.strip() else None
            is_whole = isinstance(row, dict) and all(isinstance(row.get(n), str) for n in needed)
            if row is not None and not is_whole:
                raise InvalidArgument(
                    f"{file}, line {number} is no object with {', '.join(needed)} as text",
                    field="FILE",
                    fix="write one JSON object a line",
                )
            found += [] if row is None else [row]
    except (OSError, ValueError, RecursionError) as error:
        where = f"{file}, line {number}" if number else str(file)
        raise InvalidArgument(
            f"{where} cannot be read as JSON Lines: {unreadable_because(error)}",
            field="FILE",
            fix="name a file in UTF-8 with one JSON object a line",
        ) from error
    return found


@contextmanager
def private_file(path: Path) -> Iterator[IO[str]]:
    """Yield a new or emptied plain file that only its owner may read, also where it existed before.

    What is no plain file stays as it is. Raises InvalidArgument.
    """
    handle = None
    try:
        # Without O_NONBLOCK the open of a pipe that nobody reads would not return.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        refuse_other_kinds(path, os.fstat(handle).st_mode)
        os.fchmod(handle, 0o600)
        os.ftruncate(handle, 0)
    except OSError as error:
        if handle is not None:
            os.close(handle)
        raise InvalidArgument(
            f"{str(path)!r} cannot be written: {error.strerror}",
            field="out",
            fix="name a file in a folder that this user may write",
        ) from error
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        yield file
