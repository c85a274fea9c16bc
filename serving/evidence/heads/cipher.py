"""Encrypts vectors and labels at rest, and turns identifiers into keyed digests.

AES-256-GCM with a random nonce. The row that a content belongs to is authenticated with it, so that
contents cannot be swapped between rows, scopes or tenants.
"""

import base64
import binascii
import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from serving.contracts.errors import InvalidKey
from serving.contracts.plain_file import read_plain, unread_because

_FIELD = "evidence.vector_key_file"
_KEY_BYTES = 32
KEY_ID_BYTES = 4
"""A content begins with the id of its key."""

_NONCE_BYTES = 12
_FIX = "put 32 random bytes in base64 on a line: head -c 32 /dev/urandom | base64"


class UnreadableContent(ValueError):
    """A content was changed, belongs to another row, or was encrypted with an unknown key."""


class VectorCipher:
    """Encrypts with the first of its keys and decrypts with any of them. Threads may share it.

    keys: 32 bytes each. To replace a key, put the new one first and keep the old one until what it
    encrypted is past its age: evidence.keep_vectors, cache.ttl_s. setting: that names the keys.
    """

    def __init__(self, keys: Sequence[bytes], setting: str = _FIELD) -> None:
        if not keys or any(len(key) != _KEY_BYTES for key in keys):
            raise InvalidKey("an encryption key does not have 32 bytes", field=setting, fix=_FIX)
        self._keys = {_key_id(key): AESGCM(_derived(key, b"encrypt")) for key in keys}
        self._mac_keys = [_derived(key, b"identify") for key in keys]
        self._first = _key_id(keys[0])

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Return the ids of the keys, hex, the first key's first."""
        return tuple(key.hex() for key in self._keys)

    def encrypted(self, content: bytes, row: str) -> bytes:
        """Return a content encrypted for one row. row: names it, with scope and tenant."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed: bytes = self._keys[self._first].encrypt(nonce, content, row.encode())
        return self._first + nonce + sealed

    def decrypted(self, data: bytes, row: str) -> bytes:
        """Return the content. Raises UnreadableContent."""
        key = self._keys.get(data[:KEY_ID_BYTES])
        start = KEY_ID_BYTES + _NONCE_BYTES
        if key is None or len(data) < start:
            raise UnreadableContent("it was encrypted with a key that evidence does not have")
        try:
            content: bytes = key.decrypt(data[KEY_ID_BYTES:start], data[start:], row.encode())
        except InvalidTag as error:
            raise UnreadableContent("it was changed, or belongs to another row") from error
        return content

    def digest(self, kind: str, value: str) -> str:
        """Return a keyed digest of an identifier, 64 hex digits. kind: what the value is."""
        return self.digests(kind, value)[0]

    def digests(self, kind: str, value: str) -> list[str]:
        """Return the digests under all keys, the first key's first: to find earlier rows."""
        message = f"{kind}\x00{value}".encode("utf-8", "replace")
        return [hmac.new(key, message, hashlib.sha256).hexdigest() for key in self._mac_keys]


def load_cipher(file: Path, setting: str = _FIELD) -> VectorCipher:
    """Return the cipher of a key file: a key in base64 on each line, the newest first. Blocking.

    setting: that names the file. Raises InvalidKey where the file is missing, can be read by
    others, or holds something else. The message never holds a key.
    """
    try:
        mode = file.stat().st_mode
        lines = read_plain(file).decode("ascii").split()
        keys = [base64.b64decode(line, validate=True) for line in lines]
    except (OSError, UnicodeDecodeError, binascii.Error) as error:
        raise InvalidKey(
            f"the encryption key {str(file)!r} cannot be read: {unread_because(error)}",
            field=setting,
            fix=_FIX,
        ) from None
    if mode & 0o077:
        raise InvalidKey(
            f"the encryption key {str(file)!r} can be read by others (mode {mode & 0o777:o})",
            field=setting,
            fix=f"chmod 600 {file}",
        )
    return VectorCipher(keys, setting)


def ensure_key_file(file: Path) -> Path:
    """Write a new random key where the file does not exist; return the file. Blocking.

    Safe beside other processes: all of them get the same key. Raises InvalidKey.
    """
    if file.exists():
        return file
    key = base64.b64encode(secrets.token_bytes(_KEY_BYTES)) + b"\n"
    unfinished = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as opened:
                opened.write(key)
                opened.flush()
                os.fsync(opened.fileno())
            # A link fails where the name exists; a rename would replace another process's key.
            os.link(unfinished, file)
        finally:
            unfinished.unlink()
    except FileExistsError:
        return file
    except OSError as error:
        raise InvalidKey(
            f"the encryption key {str(file)!r} cannot be written: {error.strerror}",
            field=_FIELD,
            fix="name a file in a folder that can be written, or write the key yourself",
        ) from error
    return file


def _key_id(key: bytes) -> bytes:
    return _derived(key, b"name")[:KEY_ID_BYTES]


def _derived(key: bytes, purpose: bytes) -> bytes:
    # The key is random, so one keyed hash is a sound derivation (HKDF's expand step).
    return hmac.new(key, b"narrowgate evidence " + purpose, hashlib.sha256).digest()
