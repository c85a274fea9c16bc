"""The key of the digests by which evidence knows equal texts and clients."""

import base64
import os
import secrets
from pathlib import Path

from serving.contracts.errors import InvalidKey
from serving.contracts.plain_file import read_plain, unread_because

_BYTES = 32


def text_key(state: Path, file: Path | None) -> bytes:
    """Return the key of 32 bytes. file: base64; made in the state folder where None.

    Replicas on several machines need one file, or equal texts are not known as equal. Blocking.
    Raises InvalidKey.
    """
    path = file or _ensure(state / "keys" / "evidence-texts")
    try:
        key = base64.b64decode(read_plain(path).strip(), validate=True)
    except (OSError, ValueError) as error:
        raise _invalid(path, f"cannot be read: {unread_because(error)}") from error
    if len(key) != _BYTES:
        raise _invalid(path, f"has {len(key)} bytes and not {_BYTES}")
    return key


def _ensure(path: Path) -> Path:
    """Return the key's path, made now where it is missing. Safe beside other processes."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    made.touch(0o600)
    made.write_bytes(base64.b64encode(secrets.token_bytes(_BYTES)) + b"\n")
    try:
        # A link fails where the name exists; a rename would replace another process's key.
        os.link(made, path)
    except FileExistsError:
        return path
    finally:
        made.unlink()
    return path


def _invalid(path: Path, what: str) -> InvalidKey:
    return InvalidKey(
        f"the key file {str(path)!r} {what}",
        field="evidence.vector_key_file",
        fix="put 32 random bytes in base64 on a line: head -c 32 /dev/urandom | base64",
    )
