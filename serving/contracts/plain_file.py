"""Reads files that users name: plain files of a bounded size, so that a read always ends."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

MOST_BYTES = 64 * 2**20
"""The largest file that is read whole where a caller names no other limit."""

_CHUNK_BYTES = 1 << 20
_KINDS = (
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"), (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
)  # fmt: skip


@contextmanager
def opened_plain(path: Path) -> Iterator[BufferedReader]:
    """Open a plain file for reading; what it refers to where it is a link.

    Raises OSError, whose strerror says why, for a device, a pipe and a socket: they have no end,
    or make a reader wait for ever.
    """
    # Without O_NONBLOCK the open of a pipe that nobody writes to would not return.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        refuse_other_kinds(path, os.fstat(handle).st_mode)
        with os.fdopen(handle, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(handle)


def refuse_other_kinds(path: Path, mode: int) -> None:
    """Raise OSError, whose strerror says why, for a folder, a device, a pipe and a socket."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    kind = next((name for is_kind, name in _KINDS if is_kind(mode)), None)
    if kind is not None:
        raise OSError(errno.EINVAL, f"It is {kind}, not a plain file", str(path))


def plain_target(path: Path) -> Path:
    """Return the plain file that may be replaced where a path names it: what a link refers to.

    Raises OSError for a folder, a device, a pipe and a socket.
    """
    target = path.resolve()
    if target.exists():
        refuse_other_kinds(path, target.stat().st_mode)
    return target


def read_plain(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Return the content of a plain file. Blocking.

    Raises OSError, whose strerror says why, for a file that is larger or no plain file.
    """
    with opened_plain(path) as file:
        content = bytearray()
        # Not by its size: files of /proc have none, and a file may grow meanwhile.
        while piece := file.read(min(_CHUNK_BYTES, most_bytes + 1 - len(content))):
            content += piece
            if len(content) > most_bytes:
                limit = (
                    f"{most_bytes / 2**20:g} MiB" if most_bytes >= 2**20 else f"{most_bytes} bytes"
                )
                raise OSError(errno.EFBIG, f"It has more than {limit}", str(path))
        return bytes(content)


def unread_because(error: Exception) -> str:
    """Return why a file was not read, without a word of what is in it."""
    return getattr(error, "strerror", None) or type(error).__name__


def read_plain_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """Return the text of a plain file in UTF-8. Raises OSError, UnicodeDecodeError."""
    return read_plain(path, most_bytes).decode("utf-8")
