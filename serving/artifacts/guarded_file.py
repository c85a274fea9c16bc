"""Reads files whose content decides what is trusted: no other user may be able to write them."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from serving.contracts.plain_file import MOST_BYTES, opened_plain

# As many as Linux follows.
_MOST_LINKS = 40


class WritableByOthers(ValueError):
    """Another user can write the file. The message says how."""


def read_guarded(path: Path, *, own: bool) -> bytes:
    """Return the content of a file that neither its group nor others can write. Follows links.

    Nor may others be able to replace it, or a folder or link on the way to it: what is theirs to
    write has the sticky bit, with which they rename only files of their own, as in /tmp.
    own: the file must belong to this process's user or to root as well.
    Raises OSError, WritableByOthers.
    """
    with opened_plain(path) as file:
        # Of the open file, because the name could refer to another file by then.
        facts = os.fstat(file.fileno())
        if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = stat.S_IMODE(facts.st_mode)
            raise WritableByOthers(f"{str(path)!r} has mode {mode:04o}: other users can write it")
        if own and facts.st_uid not in (os.geteuid(), 0):
            raise WritableByOthers(
                f"{str(path)!r} belongs to user {facts.st_uid}, and this process runs as user "
                f"{os.geteuid()}"
            )
        _refuse_replaceable(path)
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OSError(errno.EFBIG, f"It has more than {MOST_BYTES} bytes", str(path))
    return content


def _refuse_replaceable(path: Path) -> None:
    """Raise WritableByOthers where others may rename the file or a folder or link above it."""
    for folder, name in _steps(path):
        mode = folder.stat().st_mode
        if not mode & stat.S_IWOTH or mode & stat.S_ISVTX:
            continue
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            # Kubernetes mounts a ConfigMap with mode 0777, read-only.
            continue
        raise WritableByOthers(
            f"folder {str(folder)!r} has mode {stat.S_IMODE(mode):04o}: other users can replace "
            f"{name!r}"
        )


def _steps(path: Path) -> Iterator[tuple[Path, str]]:
    """Yield each folder that decides what a path names, and the name in it, as the system reads it.

    Raises OSError for a link that leads to itself.
    """
    folder, links = Path("/"), 0
    waiting = list((Path.cwd() / path).parts[1:])
    while waiting:
        name = waiting.pop(0)
        if name == "..":
            folder = folder.parent
            continue
        yield folder, name
        step = folder / name
        if not step.is_symlink():
            folder = step
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = step.readlink()
        if target.is_absolute():
            folder = Path("/")
        waiting = [*(part for part in target.parts if part != "/"), *waiting]
