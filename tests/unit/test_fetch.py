"""`narrowgate k8s fetch`: by digest, from a folder or over HTTP, and nothing unverified."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from serving.artifacts.fetch import fetch_model, open_store
from serving.artifacts.manifest import file_manifest
from serving.artifacts.signing_key import KeyPair
from serving.artifacts.trust import TrustPolicy
from serving.contracts.errors import AttestationRefused, InvalidRequest, MaterializationFailed
from serving.contracts.task_spec import TaskSpec

from .attested import FILES, attest, make_key, predicate, result, write_model


@pytest.fixture
def store(tmp_path: Path, key: KeyPair, specs: dict[str, TaskSpec]) -> Path:
    written = write_model(tmp_path / "made" / "model")
    attest(written, key, predicate(written, {"topic": result(specs["topic"])}))
    folder = tmp_path / "store"
    folder.mkdir()
    written.rename(folder / f"sha256-{file_manifest(written).root}")
    return folder


@pytest.fixture
def url(store: Path) -> Iterator[str]:
    handler = partial(SimpleHTTPRequestHandler, directory=str(store))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def digest(store: Path) -> str:
    (folder,) = store.iterdir()
    return folder.name.removeprefix("sha256-")


def fetched(source: str, artifact: str, key: KeyPair, out: Path, **options: bool) -> Path:
    with open_store(source, artifact) as opened:
        return fetch_model(opened, artifact, TrustPolicy((key.public,)), out, **options)


def test_a_folder_gives_the_whole_model(store: Path, key: KeyPair, tmp_path: Path) -> None:
    found = fetched(str(store), digest(store), key, tmp_path / "out")
    assert found == tmp_path / "out" / f"sha256-{digest(store)}"
    assert file_manifest(found).root == digest(store)


def test_http_gives_the_whole_model(store: Path, url: str, key: KeyPair, tmp_path: Path) -> None:
    found = fetched(url, digest(store), key, tmp_path / "out")
    assert {path.name for path in found.iterdir()} == {*FILES, "attestation.json"}


def test_a_gateway_gets_no_weights(store: Path, url: str, key: KeyPair, tmp_path: Path) -> None:
    found = fetched(url, digest(store), key, tmp_path / "out", descriptions=True)
    assert (found / "tokenizer.json").is_file()
    assert not (found / "model.safetensors").exists()


def test_a_changed_byte_is_refused_and_nothing_is_published(
    store: Path, key: KeyPair, tmp_path: Path
) -> None:
    weights = store / f"sha256-{digest(store)}" / "model.safetensors"
    weights.write_bytes(b"\1" + weights.read_bytes()[1:])
    with pytest.raises(AttestationRefused, match=r"model\.safetensors"):
        fetched(str(store), digest(store), key, tmp_path / "out")
    assert not (tmp_path / "out" / f"sha256-{digest(store)}").exists()


def test_an_interrupted_run_keeps_what_is_complete(
    store: Path, key: KeyPair, tmp_path: Path
) -> None:
    artifact = digest(store)
    weights = store / f"sha256-{artifact}" / "model.safetensors"
    weights.rename(tmp_path / "away")
    with pytest.raises(MaterializationFailed, match="cannot be read"):
        fetched(str(store), artifact, key, tmp_path / "out")
    (tmp_path / "away").rename(weights)
    # Complete already: not read again.
    (store / f"sha256-{artifact}" / "config.json").unlink()
    assert file_manifest(fetched(str(store), artifact, key, tmp_path / "out")).root == artifact


def test_another_signer_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(AttestationRefused):
        fetched(str(store), digest(store), make_key(tmp_path, "other"), tmp_path / "out")


def test_the_store_may_not_give_another_model(store: Path, key: KeyPair, tmp_path: Path) -> None:
    asked = "0" * 64
    (store / f"sha256-{digest(store)}").rename(store / f"sha256-{asked}")
    with pytest.raises(AttestationRefused, match="not for the requested"):
        fetched(str(store), asked, key, tmp_path / "out")


def test_a_missing_model_and_another_kind_of_url_are_named(
    url: str, key: KeyPair, tmp_path: Path
) -> None:
    with pytest.raises(MaterializationFailed, match="answered 404"):
        fetched(url, "0" * 64, key, tmp_path / "out")
    with pytest.raises(InvalidRequest, match="'s3' URL"):
        fetched("s3://bucket/models", "0" * 64, key, tmp_path / "out")


def test_fetching_needs_neither_ray_nor_vllm() -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['ray'] = sys.modules['vllm'] = sys.modules['torch'] = None\n"
        "import serving.artifacts.fetch, serving.commands.k8s_fetch, serving.commands.k8s\n"
        "import model_signing.hashing\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
