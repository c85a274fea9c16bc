"""Digests of files that have not changed since they were read, so that a restart reads little.

A file counts as unchanged while device, inode, size, and the times of its last change of content
and of metadata are the same. The last one (ctime) is set by the kernel: restoring a modification
time does not hide a change. A cache that another user can write is refused, and
`attestation.strict` uses none.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from serving.artifacts.guarded_file import WritableByOthers, read_guarded
from serving.contracts.errors import AttestationRefused
from serving.host.safe_write import replace_file

Identity = tuple[int, int, int, int, int]


class DigestCache:
    """A JSON file of digests. A damaged or missing file counts as empty."""

    def __init__(self, file: Path) -> None:
        """Read the file. Raises AttestationRefused where another user can write it."""
        self._file = file
        self._known = _read(file)

    @staticmethod
    def identity(path: Path) -> Identity:
        """Return the attributes that change with the file's content.

        Follows links. Raises OSError.
        """
        facts = path.stat()
        return (
            facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
        )  # fmt: skip

    def find(self, path: Path) -> str | None:
        """Return the SHA-256 (hex) of an unchanged file, None for any other. Raises OSError."""
        identity = self.identity(path)
        stored = self._known.get(_key(identity))
        return stored[1] if stored is not None and stored[0] == identity else None

    def store(self, found: Mapping[Path, tuple[Identity, str]]) -> None:
        """Add digests, each with the identity that its file had before it was read.

        A file that has changed meanwhile is left out. Entries that cannot be written are dropped:
        the cache only saves time.
        """
        for path, (identity, digest) in found.items():
            if self.identity(path) == identity:
                self._known[_key(identity)] = (identity, digest)
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._file, json.dumps(self._known).encode())
        except OSError:
            return


def _key(identity: Identity) -> str:
    return f"{identity[0]}:{identity[1]}"


def _read(file: Path) -> dict[str, tuple[Identity, str]]:
    try:
        content = read_guarded(file)
    except OSError:
        return {}
    except WritableByOthers as error:
        raise AttestationRefused(
            f"the digest cache cannot be trusted: {error}",
            fix="delete it; the next start writes a new one for its owner only",
        ) from error
    try:
        stored = json.loads(content)
        known: dict[str, tuple[Identity, str]] = {}
        for key, (identity, digest) in stored.items():
            device, inode, size, modified, changed = map(int, identity)
            known[key] = ((device, inode, size, modified, changed), str(digest))
    except (ValueError, TypeError, AttributeError):
        return {}
    return known
