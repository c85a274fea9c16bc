"""Reads files of JSON Lines that users write."""

import json
from pathlib import Path
from typing import Any

from serving.contracts.errors import InvalidArgument


def read_lines(file: Path, needed: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return a file's objects, empty lines left out. needed: fields that each has as text.

    Raises InvalidArgument.
    """
    found = []
    number = 0
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
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
            f"{where} cannot be read as JSON Lines: {type(error).__name__}",
            field="FILE",
            fix="name a file in UTF-8 with one JSON object a line",
        ) from error
    return found
