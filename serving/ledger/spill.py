"""Files for rows that the database does not accept now. They survive the process.

Each process appends to its own file and holds a lock on it while it lives. A file that can be
locked belongs to an ended process; the process that locks it writes its lines into the database.
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
            # Another process may have claimed the file before it was locked.
            if found is not None:
                _sync_folder(folder)
                return found

    @classmethod
    def claim(cls, path: Path) -> "SpillFile | None":
        """Return the file of an ended process; None if the process runs or the file was removed."""
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
        """Write lines to the disk, all or none of them. Blocking. Raises OSError."""
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
        """Yield the file's lines in chunks; a last line that is cut off is left out."""
        chunk: list[str] = []
        with self._path.open("rb") as file:
            for raw in file:
                if not raw.endswith(b"\n"):
                    logger.warning(
                        "ledger.line_truncated file=%s bytes=%d", self._path.name, len(raw)
                    )
                    break
                chunk.append(raw.decode("utf-8", "replace"))
                if len(chunk) == lines:
                    yield chunk
                    chunk = []
        if chunk:
            yield chunk

    def remove(self) -> None:
        """Remove the file, after its lines were written into the database."""
        self._path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Release the file, so that another process can claim it."""
        os.close(self._handle)


class Spill:
    """The spill files of one process in a folder. For one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._current: SpillFile | None = None
        self._rejected: SpillFile | None = None

    def append(self, lines: Sequence[str]) -> None:
        """Append lines that are written later. Blocking. Raises OSError."""
        if self._current is None:
            self._current = SpillFile.create(self._folder)
        self._current.append(lines)

    def reject(self, lines: Sequence[str]) -> None:
        """Append lines that the database rejects, for a person to inspect. Raises OSError."""
        if self._rejected is None:
            self._rejected = SpillFile.create(self._folder / "rejected")
        self._rejected.append(lines)

    def take(self) -> list[SpillFile]:
        """Return the files to replay: this process's current file and those of ended processes."""
        found = [] if self._current is None else [self._current]
        self._current = None
        for path in sorted(self._folder.glob("*.jsonl")):
            claimed = SpillFile.claim(path)
            if claimed is not None:
                found.append(claimed)
        return found

    def close(self) -> None:
        """Release every file for a later process."""
        for file in (self._current, self._rejected):
            if file is not None:
                file.close()
        self._current = self._rejected = None


def _sync_folder(folder: Path) -> None:
    # A new file survives a crash only if its folder is on disk.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
