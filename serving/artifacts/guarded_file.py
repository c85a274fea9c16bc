"""Reads files whose content decides what is trusted: no other user may be able to write them."""

import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from serving.contracts.plain_file import MOST_BYTES, opened_plain

# As many as Linux follows.
_MOST_LINKS = 40


class WritableByOthers(ValueError):
    """Another user can write the file. The message says how."""


def read_guarded(path: Path) -> bytes:
    """Return the content of a file that no other user can write. Follows links.

    Nor may others be able to replace it, or a folder or link on the way to it: what is theirs to
    write has the sticky bit, with which they rename only files of their own, as in /tmp. Root is
    no other user. Raises OSError, WritableByOthers.
    """
    with opened_plain(path) as file:
        # Of the open file, because the name could refer to another file by then.
        facts = os.fstat(file.fileno())
        if facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = stat.S_IMODE(facts.st_mode)
            raise WritableByOthers(f"{str(path)!r} has mode {mode:04o}: other users can write it")
        _refuse_foreign(facts, str(path))
        _refuse_replaceable(path)
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OSError(errno.EFBIG, f"It has more than {MOST_BYTES} bytes", str(path))
    return content


def _refuse_foreign(facts: os.stat_result, what: str) -> None:
    if facts.st_uid not in (os.geteuid(), 0):
        raise WritableByOthers(
            f"{what!r} belongs to user {facts.st_uid}, and this process runs as user {os.geteuid()}"
        )


def _refuse_replaceable(path: Path) -> None:
    """Raise WritableByOthers where others may rename the file or a folder or link above it."""
    for folder, name in _steps(path):
        facts = folder.stat()
        mode, is_sticky = facts.st_mode, facts.st_mode & stat.S_ISVTX
        is_open = mode & stat.S_IWOTH or (mode & stat.S_IWGRP and _has_others(facts.st_gid))
        is_foreign = facts.st_uid not in (os.geteuid(), 0)
        if not is_foreign and (is_sticky or not is_open):
            continue
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            # Kubernetes mounts a ConfigMap with mode 0777, read-only.
            continue
        # The owner of a folder renames what is in it, the sticky bit or not.
        _refuse_foreign(facts, str(folder))
        raise WritableByOthers(
            f"folder {str(folder)!r} has mode {stat.S_IMODE(mode):04o}: other users can replace "
            f"{name!r}"
        )


def _has_others(group: int) -> bool:
    """Return whether a group may have other members than this user; root's counts as root.

    A group without a name is one of a pod (fsGroup), and a user's own has the user alone.
    """
    if group == 0:
        return False
    if group not in (os.getegid(), *os.getgroups()):
        return True
    members = {user.pw_uid for user in pwd.getpwall() if user.pw_gid == group}
    with suppress(KeyError):
        members |= {pwd.getpwnam(name).pw_uid for name in grp.getgrgid(group).gr_mem}
    return bool(members - {os.geteuid(), 0})


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
