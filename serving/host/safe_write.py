"""Atomic file writes, and checks of output folders."""

import errno
import os
import tempfile
from pathlib import Path

from serving.contracts.errors import InvalidArgument, OutputInUse
from serving.contracts.plain_file import plain_target, unread_because


def replace_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write or replace a file atomically: a reader sees the old content or the new. Raises OSError.

    mode: the file's permissions, also where the file existed.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    unfinished = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        unfinished.chmod(mode)
        unfinished.replace(path)
    except BaseException:  # KeyboardInterrupt too: no unfinished file may remain; re-raised
        unfinished.unlink(missing_ok=True)
        raise


def refuse_unwritable_file(file: Path, field: str) -> None:
    """Refuse a file that cannot be made or replaced, before work begins. Raises InvalidArgument.

    Writes an empty temporary file to the folder and removes it, as refuse_unwritable_output.
    field: the option that names the file.
    """
    try:
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
        if file.exists() and not os.access(file, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        if not file.exists() or file.is_file():
            with tempfile.TemporaryFile(dir=file.resolve().parent):
                pass
    except OSError as error:
        raise InvalidArgument(
            f"{str(file)!r} cannot be written: {error.strerror}",
            field=field,
            fix="name a file in a folder that exists and can be written",
        ) from error
    except ValueError as error:
        raise InvalidArgument(f"{str(file)!r} is not a path: {error}", field=field) from error


def replaceable_file(file: Path, field: str) -> Path:
    """Return the file to replace where an option names one, before work begins.

    What a link refers to, not the link; a device or a pipe is not replaced by a file.
    Raises InvalidArgument.
    """
    refuse_unwritable_file(file, field)
    try:
        return plain_target(file)
    except (OSError, RuntimeError) as error:
        # RuntimeError: a link that leads to itself.
        raise InvalidArgument(
            f"{str(file)!r} cannot be written: {unread_because(error)}",
            field=field,
            fix="name a plain file, which may exist",
        ) from error


def replace_named(target: Path, content: bytes, field: str) -> None:
    """Replace the file that replaceable_file returned for an option. Raises InvalidArgument."""
    try:
        replace_file(target, content, mode=0o644)
    except OSError as error:
        raise InvalidArgument(
            f"{str(target)!r} cannot be written: {error.strerror}",
            field=field,
            fix="name a file in a folder that exists and can be written",
        ) from error


def refuse_used_output(out: Path) -> None:
    """Refuse an output folder that is not empty or cannot be written. Raises OutputInUse."""
    refuse_unwritable_output(out)
    if out.is_dir() and any(out.iterdir()):
        raise OutputInUse(
            f"the output folder {str(out)!r} is not empty",
            field="out",
            fix="name a new or an empty folder; nothing is overwritten",
        )


def refuse_unwritable_output(out: Path) -> None:
    """Refuse a folder that cannot be made or written, before work begins. Raises OutputInUse.

    Writes an empty temporary file to the folder, or to the nearest folder above it that exists,
    and removes it: permissions alone do not show a read-only file system.
    """
    try:
        if out.exists() or out.is_symlink():
            # Also a broken link, because the folder could not be made.
            existing = out
        else:
            existing = next(parent for parent in out.absolute().parents if parent.exists())
        if not existing.is_dir():
            raise OutputInUse(
                f"{str(existing)!r} is not a folder",
                field="out",
                fix="name a folder, or a path below one",
            )
        with tempfile.TemporaryFile(dir=existing):
            pass
        # A name that the file system refuses is too long or has a null character.
        out.parent.joinpath(f".{out.name}.partial").exists()
    except OSError as error:
        raise OutputInUse(
            f"{str(out)!r} cannot be written: {error.strerror}",
            field="out",
            fix="name a folder that can be written",
        ) from error
    except ValueError as error:
        raise OutputInUse(f"{str(out)!r} is not a path: {error}", field="out") from error
