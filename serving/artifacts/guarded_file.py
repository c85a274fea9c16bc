"""Reads files whose content decides what is trusted: no other user may be able to write them."""

import os
import stat
from pathlib import Path


class WritableByOthers(ValueError):
    """Another user can write the file. The message says how."""


def read_guarded(path: Path, *, own: bool) -> bytes:
    """Return the content of a file that neither its group nor others can write. Follows links.

    Nor may others be able to replace it: its folder is theirs to write only with the sticky bit,
    with which they rename only files of their own, as in /tmp.
    own: the file must belong to this process's user or to root as well.
    Raises OSError, WritableByOthers.
    """
    with path.open("rb") as file:
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
        folder = path.resolve().parent
        mode = folder.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise WritableByOthers(
                f"folder {str(folder)!r} has mode {stat.S_IMODE(mode):04o}: other users can "
                f"replace {path.name!r}"
            )
        return file.read()
