"""The digest that names a model: over every file of its folder, by OpenSSF model-signing.

Attestations name their subject by it, so any changed byte of weights, tokenizer, configuration or
chat template makes it another model.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

SIDECARS = ("manifest.json", "attestation.json", "report.html", "report.md")
"""Files that lie in an artifact's folder and speak of it: no part of what is digested."""


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


def file_manifest(folder: Path) -> Manifest:
    """Digest a folder, except its sidecars. Blocking, reads every byte.

    Symbolic links are followed: the hub's cache is made of them.
    """
    # Here and not above: it brings in the libraries of every way to sign.
    from model_signing import hashing

    config = hashing.Config().set_ignored_paths(paths=SIDECARS).set_allow_symlinks(True)
    files: dict[str, str] = {}
    root = hashlib.sha256()
    for descriptor in config.hash(folder).resource_descriptors():
        files[descriptor.identifier] = descriptor.digest.digest_hex
        root.update(descriptor.digest.digest_value)
    return Manifest(root.hexdigest(), files)
