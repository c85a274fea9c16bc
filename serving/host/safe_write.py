"""Writing that destroys nothing: files whole or not at all, and folders that held nothing."""

import os
import tempfile
from pathlib import Path

from serving.contracts.errors import OutputInUse


def replace_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write a file, or replace it, so that no reader ever sees a part. Raises OSError.

    mode: the file's permissions, whatever those of an earlier one were.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    unfinished = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        unfinished.chmod(mode)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def refuse_used_output(out: Path) -> None:
    """Refuse an output folder that holds something. Raises OutputInUse."""
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise OutputInUse(
            f"{str(out)!r} holds something",
            field="out",
            fix="name a new or an empty folder; nothing is ever overwritten",
        )
