"""Files for what cannot be written into the database now: nothing of it is lost with the process.

Each process appends to a file of its own and holds a lock on it for as long as it lives; a file
that can be locked is a dead process's, and whoever locks it writes its lines into the database.
"""

import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import uuid4

logger = logging.getLogger(__name__)


class SpillFile:
    """One file, open and locked."""

    def __init__(self, path: Path, handle: int) -> None:
        self._path = path
        self._handle = handle

    @classmethod
    def create(cls, folder: Path) -> "SpillFile":
        """Return a new file. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        while True:
            found = cls._locked(folder / f"{uuid4().hex}.jsonl", os.O_CREAT | os.O_EXCL)
            # Another process may have taken it for a dead one's before it was locked.
            if found is not None:
                _sync_folder(folder)
                return found

    @classmethod
    def claim(cls, path: Path) -> "SpillFile | None":
        """Return a dead process's file; None where it lives, or the file is gone."""
        try:
            return cls._locked(path, 0)
        except FileNotFoundError:
            return None

    @classmethod
    def _locked(cls, path: Path, flags: int) -> "SpillFile | None":
        handle = os.open(path, os.O_RDWR | os.O_APPEND | flags, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        if os.fstat(handle).st_nlink == 0:
            os.close(handle)
            return None
        return cls(path, handle)

    def append(self, lines: Sequence[str]) -> None:
        """Write lines through to the disk, all or none of them. Blocking. Raises OSError."""
        size = os.fstat(self._handle).st_size
        left = "".join(f"{line}\n" for line in lines).encode()
        try:
            while left:
                left = left[os.write(self._handle, left) :]
            os.fsync(self._handle)
        except OSError:
            os.ftruncate(self._handle, size)
            raise

    def chunks(self, lines: int) -> Iterator[list[str]]:
        """Yield the file's lines, so many at a time; a torn last one is left out."""
        chunk: list[str] = []
        with self._path.open("rb") as file:
            for raw in file:
                if not raw.endswith(b"\n"):
                    logger.warning("ledger.torn_line file=%s bytes=%d", self._path.name, len(raw))
                    break
                chunk.append(raw.decode("utf-8", "replace"))
                if len(chunk) == lines:
                    yield chunk
                    chunk = []
        if chunk:
            yield chunk

    def remove(self) -> None:
        """Remove the file: its lines are in the database."""
        self._path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Leave the file for whoever claims it."""
        os.close(self._handle)


class Spill:
    """A process's files in a folder. For one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._own: SpillFile | None = None
        self._rejected: SpillFile | None = None

    def append(self, lines: Sequence[str]) -> None:
        """Keep lines for later. Blocking. Raises OSError."""
        if self._own is None:
            self._own = SpillFile.create(self._folder)
        self._own.append(lines)

    def reject(self, lines: Sequence[str]) -> None:
        """Keep lines that the database refuses, for a person to look at. Raises OSError."""
        if self._rejected is None:
            self._rejected = SpillFile.create(self._folder / "rejected")
        self._rejected.append(lines)

    def take(self) -> list[SpillFile]:
        """Return the files that wait to be written: the own one so far, and dead processes'."""
        found = [] if self._own is None else [self._own]
        self._own = None
        for path in sorted(self._folder.glob("*.jsonl")):
            claimed = SpillFile.claim(path)
            if claimed is not None:
                found.append(claimed)
        return found

    def close(self) -> None:
        """Leave every file for a later process."""
        for file in (self._own, self._rejected):
            if file is not None:
                file.close()
        self._own = self._rejected = None


def _sync_folder(folder: Path) -> None:
    # A new file's name is as lasting as its folder.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
