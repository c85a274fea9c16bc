"""Fetches an attested model by digest from a mounted folder or an https store, and verifies it.

A store has a folder `sha256-HEX` for each model. The signed attestation lists the files and their
digests: no other file of the store is read, and no byte of it is trusted.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import quote, urlsplit

import httpx

from serving.artifacts.checkpoint import WEIGHT_SUFFIXES
from serving.artifacts.trust import Attestation, TrustPolicy, read_attestation, verify_files
from serving.contracts.attestation import FILE
from serving.contracts.errors import (
    AttestationRefused,
    InvalidRequest,
    MaterializationFailed,
    UnsuitableModel,
)
from serving.contracts.plain_file import opened_plain

PREFIX = "sha256-"
_CHUNK_BYTES = 2**20
_TIMEOUT_S = 60.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Store(Protocol):
    """A place with one model's files."""

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield a file's bytes. Blocking. Raises MaterializationFailed."""
        ...


class FolderStore:
    """A model's files in a mounted folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield a file's bytes. Blocking. Raises MaterializationFailed."""
        path = self._folder / name
        try:
            with opened_plain(path) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
        except OSError as error:
            raise MaterializationFailed(
                f"{str(path)!r} cannot be read: {error.strerror}",
                fix="put the model's folder into the store, with its attestation.json",
            ) from error


class HttpStore:
    """A model's files under an https URL."""

    def __init__(self, client: httpx.Client, url: str) -> None:
        self._client = client
        self._url = url.rstrip("/")

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield a file's bytes. Blocking. Raises MaterializationFailed."""
        url = f"{self._url}/{quote(name)}"
        try:
            with self._client.stream("GET", url) as response:
                response.raise_for_status()
                yield from response.iter_bytes(_CHUNK_BYTES)
        except httpx.HTTPStatusError as error:
            raise MaterializationFailed(
                f"the store answered {error.response.status_code} for {name!r}",
                fix="upload the model's folder to the store, with its attestation.json",
            ) from error
        except httpx.HTTPError as error:
            # Not the error's text: a signed URL may be in it.
            raise MaterializationFailed(
                f"the store did not deliver {name!r}: {type(error).__name__}",
                fix="check the URL and the network policy; a second run keeps what is complete",
            ) from error


@contextmanager
def open_store(source: str, artifact: str) -> Iterator[Store]:
    """Yield the store's folder of one model.

    source: a folder or an https URL, without the digest. artifact: digest (hex). Raises
    InvalidRequest for another kind of URL.
    """
    parts = urlsplit(source)
    if not parts.scheme:
        yield FolderStore(Path(source) / f"{PREFIX}{artifact}")
        return
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise InvalidRequest(
            f"the source is a {parts.scheme!r} URL",
            field="source",
            fix="give a mounted folder or an https URL",
        )
    with httpx.Client(timeout=_TIMEOUT_S, follow_redirects=True) as client:
        yield HttpStore(client, f"{source.rstrip('/')}/{PREFIX}{artifact}")


def fetch_model(
    store: Store, artifact: str, policy: TrustPolicy, out: Path, *, descriptions: bool = False
) -> Path:
    """Return `out/sha256-HEX` with the verified files of a model.

    artifact: digest (hex). descriptions: leave the weights out, for a pod that only tokenizes.
    Files that an interrupted run has fetched are kept. Blocking: minutes for gigabytes. Raises
    AttestationRefused for other files than the attested ones, InvalidKey, MaterializationFailed.
    """
    folder = out / f"{PREFIX}{artifact}"
    unfinished = out / f".{PREFIX}{artifact}"
    target = folder if folder.is_dir() else unfinished
    try:
        target.mkdir(parents=True, exist_ok=True)
        found = _fetched_attestation(store, artifact, policy, target)
        for name, digest in sorted(found.predicate.artifact.files.items()):
            if not (descriptions and name.endswith(WEIGHT_SUFFIXES)):
                _fetch_file(store, name, digest, target)
        if not descriptions:
            _verify_all(target, found)
        if target is unfinished:
            unfinished.rename(folder)
    except OSError as error:
        raise MaterializationFailed(
            f"the model cannot be written to {str(out)!r}: {error.strerror}",
            fix="free space on the volume, and let this user write to it",
        ) from error
    return folder


def _fetched_attestation(
    store: Store, artifact: str, policy: TrustPolicy, folder: Path
) -> Attestation:
    envelope = folder / FILE
    with envelope.open("wb") as file:
        for chunk in store.chunks(FILE):
            file.write(chunk)
    found = read_attestation(envelope, policy)
    if found.root != artifact:
        raise AttestationRefused(
            f"the store's attestation is for {PREFIX}{found.root}, not for the requested "
            f"{PREFIX}{artifact}",
            fix="upload each model to the folder of its own digest",
        )
    return found


def _fetch_file(store: Store, name: str, digest: str, folder: Path) -> None:
    path = folder / _safe(name)
    if path.is_file() and _digest(path) == digest:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    hashed = hashlib.sha256()
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        for chunk in store.chunks(name):
            hashed.update(chunk)
            file.write(chunk)
    if hashed.hexdigest() != digest:
        partial.unlink()
        raise AttestationRefused(
            f"the store's file {name!r} is sha256:{hashed.hexdigest()}, and sha256:{digest} was "
            "attested",
            fix="upload the model again",
        )
    partial.replace(path)


def _verify_all(folder: Path, found: Attestation) -> None:
    for path in folder.rglob("*.partial"):
        path.unlink()
    verify_files(folder, found)


def _safe(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise UnsuitableModel(f"the attestation lists {name!r}, outside the model's folder")
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
