"""The lines of a text file, whole or as it arrives."""

import json
from collections.abc import AsyncGenerator, AsyncIterator

_LONGEST_LINE_BYTES = 16 * 2**20


def file_lines(text: str) -> list[str]:
    r"""Return a file's lines without their ends, which are \n or \r\n.

    str.splitlines() also splits at U+2028, U+0085 and others, which a JSON string may hold.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines[-1] == "" else lines


async def lines_of(pieces: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the lines of a file that are not empty, without white space around them.

    Raises ValueError for one of more than 16 MiB.
    """
    pending = bytearray()
    async for piece in pieces:
        start = 0
        while (end := piece.find(b"\n", start)) >= 0:
            line = bytes(pending) + piece[start:end]
            pending.clear()
            start = end + 1
            if line.strip():
                yield line.strip()
        pending += piece[start:]
        if len(pending) > _LONGEST_LINE_BYTES:
            raise ValueError("a line has more than 16 MiB")
    if pending.strip():
        yield bytes(pending.strip())


def unreadable_because(error: Exception) -> str:
    """Return why a file of JSON Lines cannot be read, for a person."""
    match error:
        case OSError():
            return (error.strerror or "the system gave no reason").lower()
        case UnicodeDecodeError():
            return f"byte {error.start} is not UTF-8"
        case json.JSONDecodeError():
            return f"{error.msg} at character {error.pos}"
        case RecursionError():
            return "it is nested too deeply"
        case KeyError():
            return f"{error.args[0]!r} is missing"
        case _:
            return "a value has the wrong type"
