"""The digest that names a model: over every file of its folder, by OpenSSF model-signing.

Attestations name their subject by it, so any changed byte of weights, tokenizer, configuration or
chat template makes it another model.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from serving.artifacts.digest_cache import DigestCache

SIDECARS = ("manifest.json", "attestation.json", "report.html", "report.md")
"""Files that lie in an artifact's folder and speak of it: no part of what is digested."""
# What repositories and download tools add to a folder; no engine reads it.
_BOOKKEEPING = (".git", ".gitattributes", ".gitignore", ".github", ".cache")


@dataclass(frozen=True, slots=True)
class Manifest:
    """File digests (SHA-256, hex) by relative path, and their root.

    root: SHA-256 over the files' digests in the order of their paths, which is what model-signing
    signs as a model's digest. It does not hold the paths: verification compares `files` too.
    """

    root: str
    files: dict[str, str]

    def to_json(self) -> str:
        """Return the document that is stored as manifest.json."""
        return json.dumps({"algorithm": "sha256", "root": self.root, "files": self.files}, indent=1)


def file_manifest(folder: Path, cache: DigestCache | None = None) -> Manifest:
    """Digest a folder, except its sidecars. Blocking; files are read in parallel.

    Symbolic links are followed: the hub's cache is made of them. cache: digests of files that
    have not changed since they were read; every byte is read without one. Raises OSError.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in _served(folder)}
    known: dict[str, str] = {}
    if cache is not None:
        found = {name: cache.find(path) for name, path in paths.items()}
        known = {name: digest for name, digest in found.items() if digest is not None}
    unread = {name: path for name, path in paths.items() if name not in known}
    before = {name: DigestCache.identity(path) for name, path in unread.items()}
    read = _digests(folder, list(unread.values())) if unread else {}
    if cache is not None and read:
        cache.store({path: (before[name], read[name]) for name, path in unread.items()})
    files = dict(sorted({**known, **read}.items(), key=lambda item: PurePosixPath(item[0])))
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in files.values()))
    return Manifest(root.hexdigest(), files)


def _served(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path.relative_to(folder).parts[0] not in _BOOKKEEPING
        and path.relative_to(folder).as_posix() not in SIDECARS
    ]


def _digests(folder: Path, paths: list[Path]) -> dict[str, str]:
    # Here and not above: it brings in the libraries of every way to sign.
    from model_signing import hashing

    config = hashing.Config().set_allow_symlinks(True)
    descriptors = config.hash(folder, files_to_hash=paths).resource_descriptors()
    return {descriptor.identifier: descriptor.digest.digest_hex for descriptor in descriptors}
