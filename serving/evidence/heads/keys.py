"""Evidence's own signing key: the one in the settings, or one of this state folder."""

import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from serving.artifacts.signing_key import generate_key, load_signer, read_key
from serving.artifacts.trust import public_key_path, trusted_keys
from serving.contracts.errors import InvalidKey
from serving.evidence.heads.cipher import VectorCipher, ensure_key_file, load_cipher
from serving.evidence.heads.head_store import EvidenceKeys


def default_signing_key(state: Path) -> Path:
    """Return the private key that signs evidence where the settings name none."""
    return state / "keys" / "evidence"


def default_vector_key(state: Path) -> Path:
    """Return the key file that encrypts vectors where the settings name none."""
    return state / "keys" / "vectors"


def evidence_keys(
    state: Path, signing_key: Path | None = None, trusted: Sequence[Path] = ()
) -> EvidenceKeys:
    """Return the key that signs evidence and those that are trusted for it: this one and `trusted`.

    signing_key: made in the state folder where None. Blocking. Raises InvalidKey.
    """
    path = signing_key or _ensure_signing_key(default_signing_key(state))
    field = "evidence.signing_key"
    signer = load_signer(read_key(path, field), f"the key {str(path)!r}", field)
    others = trusted_keys(trusted, "evidence.trusted_keys") if trusted else []
    return EvidenceKeys(signer, (signer.public_key, *others))


def vector_cipher(state: Path, key_file: Path | None = None) -> VectorCipher:
    """Return the cipher of vectors. key_file: made in the state folder where None.

    Blocking. Raises InvalidKey.
    """
    return load_cipher(key_file or ensure_key_file(default_vector_key(state)))


def _ensure_signing_key(path: Path) -> Path:
    """Return the key's path, made now where it is missing. Safe beside other processes."""
    if path.exists():
        return path
    made = generate_key(path.with_name(f".{path.name}.{secrets.token_hex(8)}"))
    try:
        # A link fails where the name exists; a rename would replace another process's key.
        os.link(made.private, path)
        made.public.replace(public_key_path(path))
    except FileExistsError:
        made.public.unlink()
    except OSError as error:
        raise InvalidKey(
            f"the key {str(path)!r} cannot be written: {error.strerror}",
            field="evidence.signing_key",
            fix="name a key that narrowgate keygen made",
        ) from error
    finally:
        made.private.unlink()
    return path
