"""Writes the output folder under a temporary name and renames it when it is complete.

A killed run leaves `.NAME.partial`, which is not a model; the next run with the same output starts
again. A lock keeps two runs from writing to one output.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.contracts.errors import OutputInUse
from serving.host.safe_write import refuse_used_output

_CHECKPOINT = "checkpoint"
_LOCK = "lock"
# The other files of a checkpoint; quantization rewrites weights and configuration.
_COPIED = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template*", "generation_config.json", "LICENSE*", "USE_POLICY*", "NOTICE*",
)  # fmt: skip


class Workspace:
    """The unfinished artifact of one run."""

    def __init__(self, folder: Path, out: Path) -> None:
        self.folder = folder
        self._out = out

    @property
    def checkpoint(self) -> Path:
        """Return the folder that becomes the artifact."""
        return self.folder / _CHECKPOINT

    @property
    def job(self) -> Path:
        """Return the file for the worker's job."""
        return self.folder / "job.json"

    @property
    def log(self) -> Path:
        """Return the file for the worker's output."""
        return self.folder / "worker.log"

    def copy_description(self, base: Path) -> None:
        """Copy tokenizer, chat template and licence, byte for byte.

        The libraries write copies of their own, which differ in detail from what the model was
        trained and is served with.
        """
        for pattern in _COPIED:
            for path in base.glob(pattern):
                if path.is_file():
                    shutil.copyfile(path, self.checkpoint / path.name)

    def publish(self) -> None:
        """Rename the artifact to its final name, atomically."""
        for path in [self.checkpoint, *self.checkpoint.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
            _flush(path)
        refuse_used_output(self._out)
        if self._out.is_dir():
            self._out.rmdir()
        self.checkpoint.rename(self._out)
        _flush(self._out.parent)


@contextmanager
def workspace(out: Path) -> Iterator[Workspace]:
    """Lock the output and provide an empty workspace; remove it at the end.

    After a failure it stays where it is, for its log.
    Raises OutputInUse when the output holds something or another run writes to it.
    """
    refuse_used_output(out)
    folder = partial_folder(out)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _LOCK).open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputInUse(
                f"another run is writing {str(out)!r}", field="out", fix="wait for it, or stop it"
            ) from error
        for path in folder.iterdir():
            # A killed run left it.
            if path.name != _LOCK:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        yield Workspace(folder, out)
        shutil.rmtree(folder, ignore_errors=True)


def partial_folder(out: Path) -> Path:
    """Return the folder of an unfinished artifact."""
    return out.with_name(f".{out.name}.partial")


def _flush(path: Path) -> None:
    # Written to disk before the rename: after a power cut the name must not exist without the data.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
