"""Contents of files in the state folder: named by their content, encrypted where a key is set.

Every method is blocking.
"""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from serving.contracts.errors import NarrowgateError, NotFound, StorageUnavailable
from serving.evidence.heads.cipher import UnreadableContent, VectorCipher

_CHUNK = 65_536
"""Plain bytes that are encrypted together: a line is read without the rest of its file."""
_OVERHEAD = 32
"""Bytes that encryption adds to a chunk: 4 name the key, 12 are the nonce, 16 authenticate."""
_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Blob:
    """A content of a tenant. key_id: empty where it is not encrypted."""

    tenant: str
    address: str
    bytes: int
    key_id: str


class BlobStore:
    """Contents below one folder. cipher: None where they are not encrypted."""

    def __init__(self, folder: Path, cipher: VectorCipher | None = None) -> None:
        self._folder = folder
        self._cipher = cipher

    @property
    def key_ids(self) -> frozenset[str]:
        """Return the ids of the keys that decrypt contents; the empty one where none is needed."""
        return frozenset({"", *(() if self._cipher is None else self._cipher.key_ids)})

    def writer(self, tenant: str) -> "BlobWriter":
        """Begin a content; it has no name until it is kept."""
        with _written():
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f".part-{secrets.token_hex(16)}"
            return BlobWriter(path, tenant, self._cipher)

    def keep(self, writer: "BlobWriter") -> Blob:
        """Give a written content its name. An equal content of the tenant is replaced."""
        blob = writer.close()
        place = self._place(blob.address)
        with _written():
            place.parent.mkdir(parents=True, exist_ok=True)
            writer.path.replace(place)
        return blob

    def delete(self, address: str) -> None:
        """Delete a content; it may be missing."""
        self._place(address).unlink(missing_ok=True)

    def pieces(self, blob: Blob) -> Iterator[bytes]:
        """Yield a content in order. Raises NotFound, and NarrowgateError where it is damaged."""
        yield from self._read(blob, 0, blob.bytes)

    def slice(self, blob: Blob, start: int, length: int) -> bytes:
        """Return a part of a content. Raises as `pieces`."""
        return b"".join(self._read(blob, start, length))

    def sweep(self, older_than_s: float, now_s: float) -> None:
        """Delete contents that were never finished. now_s: seconds since 1970."""
        for part in self._folder.glob(".part-*"):
            try:
                if part.stat().st_mtime < now_s - older_than_s:
                    part.unlink(missing_ok=True)
            except FileNotFoundError:
                continue

    def _place(self, address: str) -> Path:
        return self._folder / address[:2] / address

    def _read(self, blob: Blob, start: int, length: int) -> Iterator[bytes]:
        try:
            with self._place(blob.address).open("rb") as file:
                if not blob.key_id:
                    yield from _plain(file.fileno(), start, length)
                else:
                    yield from self._decrypted(file.fileno(), blob, start, length)
        except FileNotFoundError as error:
            raise NotFound(
                "the file's content is not in this gateway's state folder",
                fix="give every gateway replica the same state folder; upload the file again",
            ) from error
        except UnreadableContent as error:
            raise NarrowgateError(
                f"the file's content cannot be read: {error}",
                field="cache.encryption_key_file",
                fix="add the key with which it was encrypted, or upload the file again",
            ) from error

    def _decrypted(self, file: int, blob: Blob, start: int, length: int) -> Iterator[bytes]:
        if self._cipher is None:
            raise UnreadableContent("it is encrypted, and there is no key")
        name = os.pread(file, _ID_BYTES, 0).hex()
        index, left, skip = start // _CHUNK, length, start % _CHUNK
        while left > 0:
            sealed = os.pread(file, _CHUNK + _OVERHEAD, _ID_BYTES + index * (_CHUNK + _OVERHEAD))
            plain = self._cipher.decrypted(sealed, _chunk_name(blob.tenant, name, index))
            piece = plain[skip : skip + left]
            if not piece:
                raise UnreadableContent("it ends early")
            yield piece
            index, left, skip = index + 1, left - len(piece), 0


class BlobWriter:
    """A content that is being written to a file of its own."""

    def __init__(self, path: Path, tenant: str, cipher: VectorCipher | None) -> None:
        self.path = path
        self.bytes = 0
        self._tenant = tenant
        self._cipher = cipher
        self._digest = hashlib.sha256()
        self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self._name = secrets.token_bytes(_ID_BYTES)
        self._rest = b""
        self._index = 0
        if cipher is not None:
            self._file.write(self._name)

    def write(self, data: bytes) -> None:
        """Append bytes. Raises StorageUnavailable."""
        with _written():
            self._write(data)

    def _write(self, data: bytes) -> None:
        self.bytes += len(data)
        self._digest.update(data)
        if self._cipher is None:
            self._file.write(data)
            return
        self._rest += data
        while len(self._rest) >= _CHUNK:
            self._seal(self._rest[:_CHUNK])
            self._rest = self._rest[_CHUNK:]

    def close(self) -> Blob:
        """Write what is pending to the disk and return what was written.

        Raises StorageUnavailable.
        """
        with _written():
            if self._cipher is not None and self._rest:
                self._seal(self._rest)
                self._rest = b""
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        identity = f"{self._tenant}\x00{self._digest.hexdigest()}"
        if self._cipher is None:
            address = hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()
            return Blob(self._tenant, address, self.bytes, "")
        # Keyed: who reads the disk must not test guesses of a content.
        address = self._cipher.digest("file", identity)
        return Blob(self._tenant, address, self.bytes, self._cipher.key_ids[0])

    def abandon(self) -> None:
        """Delete what was written. Does nothing after it was kept."""
        self.path.unlink(missing_ok=True)
        # It writes what is pending, and a disk that is full refuses that again.
        with suppress(OSError):
            self._file.close()

    def _seal(self, chunk: bytes) -> None:
        assert self._cipher is not None
        name = _chunk_name(self._tenant, self._name.hex(), self._index)
        self._file.write(self._cipher.encrypted(chunk, name))
        self._index += 1


@contextmanager
def _written() -> Iterator[None]:
    """Raise StorageUnavailable for an error of the disk."""
    try:
        yield
    except OSError as error:
        raise StorageUnavailable(
            f"the files of the state folder cannot be written: {error.strerror}",
            fix="retry later; the operator frees space in STATE/files, or repairs its disk",
        ) from error


def _chunk_name(tenant: str, blob: str, index: int) -> str:
    return f"files/{tenant}/{blob}/{index}"


def _plain(file: int, start: int, length: int) -> Iterator[bytes]:
    while length > 0:
        piece = os.pread(file, min(length, _CHUNK), start)
        if not piece:
            raise UnreadableContent("it ends early")
        yield piece
        start, length = start + len(piece), length - len(piece)
