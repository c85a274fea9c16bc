"""The digest that names a model: over every file of its folder, by OpenSSF model-signing.

Attestations name their subject by it, so any changed byte of weights, tokenizer, configuration or
chat template makes it another model.
"""

import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from serving.artifacts.digest_cache import DigestCache, Identity
from serving.contracts.errors import UnsuitableModel
from serving.contracts.plain_file import read_plain

SIDECARS = ("manifest.json", "attestation.json", "report.html", "report.md")
"""Files in an artifact's folder that describe it; they are not digested."""
_OTHER_MODEL = "speculators_config"
# Entries that repositories and download tools add to a folder; no engine reads them.
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

    cache: digests of files that have not changed since they were read; every byte is read without
    one. Raises OSError, and UnsuitableModel for an entry that is neither a plain file nor a real
    folder, and for a configuration that names another model.
    """
    _refuse_other_model(folder)
    paths = {path.relative_to(folder).as_posix(): path for path in model_files(folder)}
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


def model_files(folder: Path) -> list[Path]:
    """Return the files of a folder that are digested: all but sidecars and bookkeeping.

    A symbolic link is accepted in one place: a file of a hub snapshot that points into the blob
    folder of the same repository, where the hub's client keeps the content.
    Raises OSError, and UnsuitableModel for any other link, a socket, a pipe or a device.
    """
    found = []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        at_top = Path(parent) == folder
        for name in [*folders, *names]:
            path = Path(parent, name)
            if not _is_folder(path) and not _is_plain_file(path, folder):
                raise UnsuitableModel(
                    f"{str(path)!r} is {_kind(path)}; a model's folder may hold only plain files "
                    "and real folders",
                    field="model",
                    fix="replace it by a copy of its target, or remove it",
                )
        if at_top:
            folders[:] = [name for name in folders if name not in _BOOKKEEPING]
        found += [
            Path(parent, name)
            for name in names
            if not (at_top and (name in _BOOKKEEPING or name in SIDECARS))
        ]
    return found


def entry_identities(folder: Path) -> dict[Path, Identity]:
    """Return the identity of a folder, of each folder in it, and of each file that is digested.

    A file that is exchanged, or moved away and back, changes its own identity or its folder's.
    Raises as model_files.
    """
    files = model_files(folder)
    folders = {parent for path in files for parent in path.parents if folder in parent.parents}
    return {path: DigestCache.identity(path) for path in (folder, *sorted(folders), *files)}


def _refuse_other_model(folder: Path) -> None:
    """Raise UnsuitableModel where vLLM would load weights that are not in the folder.

    For a speculators checkpoint it replaces the model by the one that `verifier` names.
    """
    # config.json may name another file, by the version of transformers.
    for file in sorted(folder.glob("config*.json")):
        try:
            config = json.loads(read_plain(file))
        except (OSError, ValueError, RecursionError):
            # The engine names what is wrong with the file.
            continue
        if isinstance(config, dict) and config.get(_OTHER_MODEL) is not None:
            raise UnsuitableModel(
                f"{str(file)!r} has {_OTHER_MODEL}: vLLM would load the model that it names, whose "
                "files no digest covers",
                field="model",
                fix="use the folder of that model itself",
            )


def _raise(error: OSError) -> None:
    # os.walk otherwise leaves out a folder that it cannot read.
    raise error


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def _is_plain_file(path: Path, folder: Path) -> bool:
    if not path.is_symlink():
        return stat.S_ISREG(path.lstat().st_mode)
    content = path.resolve()
    return content.parent == _blob_folder(folder) and stat.S_ISREG(content.lstat().st_mode)


def _blob_folder(folder: Path) -> Path | None:
    """Return where the hub's client keeps the content of a snapshot's files."""
    resolved = folder.resolve()
    return resolved.parents[1] / "blobs" if resolved.parent.name == "snapshots" else None


def _kind(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"a symbolic link to {str(path.readlink())!r}"
    for is_kind, name in (
        (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a character device"),
        (stat.S_ISBLK, "a block device"),
    ):
        if is_kind(mode):
            return name
    return "not a plain file"


def _digests(folder: Path, paths: list[Path]) -> dict[str, str]:
    # Imported here: it imports the libraries of every signing method.
    from model_signing import hashing

    # `model_files` has refused every link that does not point into the hub's own blobs.
    config = hashing.Config().set_allow_symlinks(True)
    descriptors = config.hash(folder, files_to_hash=paths).resource_descriptors()
    return {descriptor.identifier: descriptor.digest.digest_hex for descriptor in descriptors}
