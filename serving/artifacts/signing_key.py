"""Makes and reads Ed25519 key pairs (PEM files). Never overwrites a key."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.artifacts.trust import public_key_path
from serving.contracts.errors import InvalidKey, OutputInUse
from serving.contracts.plain_file import read_plain
from serving.host.safe_write import refuse_unwritable_output

_PRIVATE_MODE = 0o600


@dataclass(frozen=True, slots=True)
class KeyPair:
    """The files of a key pair. key_id: the name of the key in signatures."""

    private: Path
    public: Path
    key_id: str


def generate_key(path: Path) -> KeyPair:
    """Write a new Ed25519 pair: PKCS8 PEM at `path`, readable only by its owner, and `path`.pub.

    Writes both files or neither. Raises OutputInUse if one of them exists (an overwritten key would
    be lost) or cannot be written.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from securesystemslib.signer import CryptoSigner

    if not path.name:
        raise OutputInUse(
            f"{str(path)!r} does not name a file", field="out", fix="pass the name of a file"
        )
    public = public_key_path(path)
    signer = CryptoSigner.generate_ed25519()
    pem = signer.public_key._crypto_key().public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )
    refuse_unwritable_output(path.parent)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    _write_new(public, pem, 0o644)
    try:
        _write_new(path, signer.private_bytes, _PRIVATE_MODE)
    except BaseException:  # KeyboardInterrupt too: both files or neither; re-raised
        public.unlink()
        raise
    return KeyPair(path, public, signer.public_key.keyid)


def load_signer(pem: bytes, name: str, field: str = "key") -> Any:
    """Return securesystemslib's signer for a private key in PEM. name, field: for messages.

    Raises InvalidKey if it is not an unencrypted Ed25519 private key.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner, SSlibKey

    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        # The library's message may contain the key.
        raise InvalidKey(
            f"{name} cannot be read as a private key: {type(error).__name__}",
            field=field,
            fix="pass the private key file that narrowgate keygen wrote",
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise InvalidKey(
            f"{name} is not an Ed25519 key", field=field, fix="make one with narrowgate keygen"
        )
    return CryptoSigner(key, SSlibKey.from_crypto(key.public_key()))


def read_key(path: Path, field: str = "key") -> bytes:
    """Return a private key file's bytes. Raises InvalidKey if other users may read the file."""
    try:
        mode = path.stat().st_mode
        content = read_plain(path)
    except OSError as error:
        raise InvalidKey(
            f"the key {str(path)!r} cannot be read: {error.strerror}",
            field=field,
            fix="correct the path, or make a key with narrowgate keygen --out FILE",
        ) from error
    if mode & 0o077:
        raise InvalidKey(
            f"the private key {str(path)!r} can be read by others (mode {mode & 0o777:o})",
            field=field,
            fix=f"chmod 600 {path}",
        )
    return content


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise OutputInUse(
            f"{str(path)!r} exists, and keygen does not overwrite keys",
            field="out",
            fix="name another file",
        ) from error
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
    except OSError as error:
        path.unlink()
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> OutputInUse:
    return OutputInUse(
        f"{str(path)!r} cannot be written: {error.strerror}",
        field="out",
        fix="name a file in a folder that can be written, on a disk with free space",
    )
