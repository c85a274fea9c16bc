"""A folder that one process at a time makes; what a killed one left is removed by the next."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def made_alone(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield a new empty folder, while no other process makes one of this prefix in the parent.

    Waits for the process that does, so what it made may be there by then. Folders of this prefix
    that are there already are a killed process's, for the system gives its lock back; they are
    removed. So is the new one at the end, unless it was renamed. Blocking. Raises OSError.
    """
    parent.mkdir(parents=True, exist_ok=True)
    with _locked(parent / f"{prefix}lock"):
        for left in parent.glob(f"{prefix}*"):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is there only as long as somebody holds it."""
    while True:
        with path.open("w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                is_present = path.stat().st_ino == os.fstat(lock.fileno()).st_ino
            except FileNotFoundError:
                is_present = False
            if not is_present:
                # Whoever held it has removed it: others would lock another file of this name.
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return
