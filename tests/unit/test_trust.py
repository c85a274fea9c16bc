"""Attestations: a valid one is accepted, every other one refused."""

import base64
import grp
import hashlib
import json
import os
import pwd
import shutil
from collections.abc import Callable
from contextlib import chdir
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.artifacts.digest_cache import DigestCache
from serving.artifacts.manifest import file_manifest
from serving.artifacts.signing_key import KeyPair, generate_key, load_signer, read_key
from serving.artifacts.trust import (
    TrustPolicy,
    read_attestation,
    refuse_other_engine,
    verify_files,
)
from serving.cli import main
from serving.contracts.attestation import canonical_envelope
from serving.contracts.errors import AttestationRefused, InvalidKey, OutputInUse, UnsuitableModel
from serving.contracts.task_spec import TaskSpec

from .attested import FILES, attest, make_key, predicate, result, write_model


@pytest.fixture
def model(tmp_path: Path, key: KeyPair, specs: dict[str, TaskSpec]) -> Path:
    folder = write_model(tmp_path / "model")
    attest(folder, key, predicate(folder, {"topic": result(specs["topic"])}))
    return folder


@pytest.fixture(scope="module")
def signed(
    tmp_path_factory: pytest.TempPathFactory, key: KeyPair, specs: dict[str, TaskSpec]
) -> Path:
    folder = write_model(tmp_path_factory.mktemp("signed") / "model")
    attest(folder, key, predicate(folder, {"topic": result(specs["topic"])}))
    return folder


def verify(folder: Path, *keys: KeyPair, max_age_days: float | None = None) -> str:
    policy = TrustPolicy(tuple(key.public for key in keys), max_age_days)
    found = read_attestation(folder / "attestation.json", policy)
    verify_files(folder, found)
    return found.digest


def test_a_valid_one_is_read_whole(model: Path, key: KeyPair) -> None:
    found = read_attestation(model / "attestation.json", TrustPolicy((key.public,)))
    assert found.root == verify_files(model, found).root == file_manifest(model).root
    assert found.key_id == key.key_id
    task = found.predicate.tasks["topic"]
    assert task.certificate is not None
    assert (task.verdict.value, task.certificate.threshold) == ("pass", 0.9)


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_flipped_bit_of_any_file_is_refused(
    signed: Path, key: KeyPair, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from([*FILES, "attestation.json"]))
    path = signed / name
    before = path.read_bytes()
    place = data.draw(st.integers(0, len(before) - 1))
    changed = bytearray(before)
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)
    try:
        with pytest.raises(AttestationRefused):
            verify(signed, key)
    finally:
        path.write_bytes(before)
    assert verify(signed, key)


@pytest.mark.parametrize("change", ["added", "missing", "renamed", "swapped", "nested"])
def test_the_list_of_files_counts_too(model: Path, key: KeyPair, change: str) -> None:
    if change == "added":
        (model / "adapter.safetensors").write_bytes(b"x")
    elif change == "missing":
        (model / "tokenizer.json").unlink()
    elif change == "renamed":
        # In the same place of the order: the root would not show it.
        (model / "tokenizer.json").rename(model / "tokenizer2.json")
        assert file_manifest(model).root == read_root(model, key)
    elif change == "swapped":
        first = (model / "tokenizer.json").read_bytes()
        (model / "tokenizer.json").write_bytes((model / "config.json").read_bytes())
        (model / "config.json").write_bytes(first)
    else:
        (model / "sub").mkdir()
        (model / "sub" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(AttestationRefused, match="not the model that was attested"):
        verify(model, key)


def read_root(model: Path, key: KeyPair) -> str:
    return read_attestation(model / "attestation.json", TrustPolicy((key.public,))).root


def test_files_about_a_model_are_not_part_of_it(model: Path, key: KeyPair) -> None:
    (model / "report.html").write_text("<p>", encoding="utf-8")
    (model / ".cache" / "huggingface").mkdir(parents=True)
    (model / ".cache" / "huggingface" / "x.metadata").touch()
    (model / ".gitattributes").touch()
    assert verify(model, key)


def make_link(path: Path) -> None:
    path.symlink_to(path.parent / "config.json")


def make_folder_link(path: Path) -> None:
    elsewhere = path.parents[1] / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "default.jinja").write_text("{{ 'gone' }}", encoding="utf-8")
    path.symlink_to(elsewhere, target_is_directory=True)


def make_dangling_link(path: Path) -> None:
    path.symlink_to("/nowhere")


def make_socket(path: Path) -> None:
    import socket

    # By its name only: the path of a Unix socket has at most 107 bytes.
    with chdir(path.parent), socket.socket(socket.AF_UNIX) as endpoint:
        endpoint.bind(path.name)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (make_link, "a symbolic link to"),
        (make_folder_link, "a symbolic link to"),
        (make_dangling_link, "a symbolic link to"),
        (os.mkfifo, "a pipe"),
        (make_socket, "a socket"),
    ],
)
@pytest.mark.parametrize(
    "place", ["additional_chat_templates", "sub/deep", "attestation.json", "report.html", ".cache"]
)
def test_only_plain_files_and_real_folders_make_a_model(
    model: Path, key: KeyPair, place: str, make: Callable[[Path], None], kind: str
) -> None:
    found = read_attestation(model / "attestation.json", TrustPolicy((key.public,)))
    path = model / place
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    make(path)
    with pytest.raises(AttestationRefused, match=f"{path.name}' is {kind}"):
        verify_files(model, found)
    with pytest.raises(UnsuitableModel, match="only plain files and real folders"):
        file_manifest(model)


def hub_snapshot(model: Path, hub: Path) -> Path:
    """Lay a model out as the hub's client does."""
    blobs, snapshot = hub / "blobs", hub / "snapshots" / "c0ffee"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in [*FILES, "attestation.json"]:
        digest = hashlib.sha256((model / name).read_bytes()).hexdigest()
        shutil.copy(model / name, blobs / digest)
        (snapshot / name).symlink_to(Path("..", "..", "blobs", digest))
    return snapshot


def test_a_private_key_in_place_of_the_public_one_is_refused_in_words(
    model: Path, key: KeyPair
) -> None:
    with pytest.raises(InvalidKey, match=r"as a public key: it holds no public key in PEM"):
        verify(model, replace(key, public=key.private))


def test_a_hub_snapshot_may_link_to_its_own_blobs_only(
    model: Path, key: KeyPair, tmp_path: Path
) -> None:
    snapshot = hub_snapshot(model, tmp_path / "models--a--b")
    assert verify(snapshot, key)
    link = snapshot / "config.json"
    outside = tmp_path / "config.json"
    shutil.copy(model / "config.json", outside)
    for target in (outside, tmp_path / "models--a--b" / "refs"):
        link.unlink()
        link.symlink_to(target)
        with pytest.raises(AttestationRefused, match="a symbolic link to"):
            verify(snapshot, key)


def test_a_folder_that_cannot_be_read_is_not_left_out(
    model: Path, key: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    (model / "hidden").mkdir()
    listing = os.scandir

    def refusing(path: str) -> Any:
        if str(path).endswith("hidden"):
            raise PermissionError(13, "Permission denied", str(path))
        return listing(path)

    # As root, every folder can be read.
    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(AttestationRefused, match="Permission denied"):
        verify(model, key)


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o602])
def test_a_key_that_others_can_write_is_not_trusted(model: Path, key: KeyPair, mode: int) -> None:
    before = key.public.stat().st_mode
    key.public.chmod(mode)
    try:
        with pytest.raises(InvalidKey, match=f"has mode {mode:04o}: other users can write it"):
            verify(model, key)
    finally:
        key.public.chmod(before)
    assert verify(model, key)


def test_a_key_that_others_can_replace_is_not_trusted(model: Path, key: KeyPair) -> None:
    folder = key.public.parent
    before = folder.stat().st_mode
    folder.chmod(0o777)
    try:
        with pytest.raises(InvalidKey, match="has mode 0777: other users can replace"):
            verify(model, key)
        # As in /tmp, where nobody renames another's file.
        folder.chmod(0o1777)
        assert verify(model, key)
    finally:
        folder.chmod(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to other users")
@pytest.mark.parametrize(
    ("place", "owner", "group", "mode", "says"),
    [
        ("folder", 0, 2000, 0o775, "has mode 0775: other users can replace"),
        ("folder", 0, 2000, 0o1775, None),
        ("folder", 0, 0, 0o775, None),
        ("folder", 1000, 1000, 0o755, "belongs to user 1000"),
        ("folder", 1000, 1000, 0o1777, "belongs to user 1000"),
        ("file", 1000, 1000, 0o644, "belongs to user 1000"),
    ],
)
def test_a_key_that_another_owner_or_group_can_replace_is_not_trusted(
    model: Path, key: KeyPair, tmp_path: Path, place: str, owner: int, group: int, mode: int,
    says: str | None,
) -> None:  # fmt: skip
    moved = _moved(key, tmp_path / "a" / "k.pub")
    given = moved.public if place == "file" else moved.public.parent
    os.chown(given, owner, group)
    given.chmod(mode)
    if says is None:
        assert verify(model, moved)
    else:
        with pytest.raises(InvalidKey, match=says):
            verify(model, moved)


def test_a_folder_of_ones_own_group_is_ones_own(
    model: Path, key: KeyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = _moved(key, tmp_path / "a" / "k.pub")
    folder, nobodys = moved.public.parent, 54321
    real = Path.stat

    def in_group(path: Path, **more: Any) -> Any:
        facts = real(path, **more)
        return (
            SimpleNamespace(st_mode=0o42775, st_uid=0, st_gid=nobodys) if path == folder else facts
        )

    monkeypatch.setattr(Path, "stat", in_group)
    # As the volume of a pod with an fsGroup; and as a folder of a group that this user is not in.
    monkeypatch.setattr(os, "getgroups", lambda: [nobodys])
    assert verify(model, moved)
    monkeypatch.setattr(os, "getgroups", lambda: [])
    with pytest.raises(InvalidKey, match="other users can replace"):
        verify(model, moved)
    # One's own group, which has another member: as their first group, or by name.
    monkeypatch.setattr(os, "getgroups", lambda: [nobodys])
    other = SimpleNamespace(pw_uid=4711, pw_gid=nobodys)
    with monkeypatch.context() as patch:
        patch.setattr(pwd, "getpwall", lambda: [other])
        with pytest.raises(InvalidKey, match="other users can replace"):
            verify(model, moved)
    with monkeypatch.context() as patch:
        patch.setattr(grp, "getgrgid", lambda _: SimpleNamespace(gr_mem=["ann"]))
        patch.setattr(pwd, "getpwnam", lambda _: other)
        with pytest.raises(InvalidKey, match="other users can replace"):
            verify(model, moved)
    assert verify(model, moved)


def _moved(key: KeyPair, file: Path) -> KeyPair:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(key.public.read_bytes())
    file.chmod(0o644)
    return replace(key, public=file)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_key_below_a_folder_that_others_can_write_is_not_trusted(
    model: Path, key: KeyPair, tmp_path: Path, depth: int
) -> None:
    moved = _moved(key, tmp_path / "a" / "b" / "c" / "k.pub")
    folder = moved.public.parents[depth - 1]
    folder.chmod(0o777)
    name = moved.public.name if depth == 1 else moved.public.parents[depth - 2].name
    with pytest.raises(InvalidKey, match=f"can replace '{name}'"):
        verify(model, moved)
    folder.chmod(0o1777)
    assert verify(model, moved)


def test_a_link_to_a_key_that_others_can_replace_is_not_trusted(
    model: Path, key: KeyPair, tmp_path: Path
) -> None:
    moved = _moved(key, tmp_path / "safe" / "k.pub")
    opened = tmp_path / "open"
    opened.mkdir()
    (opened / "link").symlink_to(moved.public.parent)
    (tmp_path / "first").symlink_to(opened / "link")
    linked = replace(moved, public=tmp_path / "first" / "k.pub")
    assert verify(model, linked)
    opened.chmod(0o777)
    with pytest.raises(InvalidKey, match="can replace 'link'"):
        verify(model, linked)
    # The key itself is safe by its own name.
    assert verify(model, moved)


def test_a_key_in_a_read_only_mount_is_trusted(
    model: Path, key: KeyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = _moved(key, tmp_path / "mount" / "k.pub")
    moved.public.parent.chmod(0o777)
    real = os.statvfs

    def read_only(path: Path) -> Any:
        facts = real(path)
        if Path(path) != moved.public.parent:
            return facts
        return SimpleNamespace(f_flag=facts.f_flag | os.ST_RDONLY)

    # Kubernetes mounts a ConfigMap with mode 0777, read-only.
    monkeypatch.setattr(os, "statvfs", read_only)
    assert verify(model, moved)


@pytest.mark.parametrize("place", ["twice", "before", "behind"])
def test_a_key_file_with_more_than_one_key_is_refused(
    model: Path, key: KeyPair, tmp_path: Path, place: str
) -> None:
    text = key.public.read_text()
    content = {"twice": text * 2, "before": f"mine\n{text}", "behind": f"{text}mine\n"}[place]
    file = tmp_path / "k.pub"
    file.write_text(content)
    file.chmod(0o644)
    with pytest.raises(InvalidKey, match="more than one public key, or other text"):
        verify(model, replace(key, public=file))


def test_a_digest_cache_that_others_can_write_is_refused(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "digests.json"
    file_manifest(model, DigestCache(file))
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o666)
    with pytest.raises(AttestationRefused, match="has mode 0666: other users can write it"):
        DigestCache(file)


def test_another_models_attestation_is_refused(
    model: Path, key: KeyPair, tmp_path: Path, specs: dict[str, TaskSpec]
) -> None:
    other = write_model(tmp_path / "other")
    (other / "model.safetensors").write_bytes(b"other weights")
    shutil.copy(model / "attestation.json", other)
    with pytest.raises(AttestationRefused, match=r"changed model\.safetensors"):
        verify(other, key)
    attest(other, key, predicate(other, {}), root="a" * 64)
    with pytest.raises(AttestationRefused, match="subject is aaaa"):
        verify(other, key)


def test_only_a_trusted_key_counts(model: Path, key: KeyPair, tmp_path: Path) -> None:
    stranger = make_key(tmp_path, "stranger")
    with pytest.raises(AttestationRefused, match="no valid signature of a trusted key"):
        verify(model, stranger)
    assert verify(model, stranger, key), "several keys are trusted while one is replaced"
    with pytest.raises(InvalidKey, match="no trusted key"):
        verify(model)
    envelope = json.loads((model / "attestation.json").read_bytes())
    envelope["signatures"][0]["keyid"] = stranger.key_id
    (model / "attestation.json").write_bytes(canonical_envelope(envelope))
    with pytest.raises(AttestationRefused):
        verify(model, stranger)
    envelope["signatures"] = []
    (model / "attestation.json").write_bytes(canonical_envelope(envelope))
    with pytest.raises(AttestationRefused):
        verify(model, key)


def test_a_changed_verdict_breaks_the_signature(model: Path, key: KeyPair) -> None:
    envelope = json.loads((model / "attestation.json").read_bytes())
    statement = json.loads(base64.b64decode(envelope["payload"]))
    statement["predicate"]["tasks"]["topic"]["certificate"]["threshold"] = 0.1
    envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    (model / "attestation.json").write_bytes(canonical_envelope(envelope))
    with pytest.raises(AttestationRefused, match="no valid signature"):
        verify(model, key)


def test_age_and_the_future(model: Path, key: KeyPair) -> None:
    old = datetime.now(UTC) - timedelta(days=31)
    attest(model, key, predicate(model, {}, date=old))
    assert verify(model, key)
    assert verify(model, key, max_age_days=32)
    with pytest.raises(AttestationRefused, match=r"31\.0 days old, and at most 30 are"):
        verify(model, key, max_age_days=30)
    attest(model, key, predicate(model, {}, date=datetime.now(UTC) + timedelta(days=1)))
    with pytest.raises(AttestationRefused, match="in the future"):
        verify(model, key)


def test_the_engine_must_be_the_one_that_was_tested(model: Path, key: KeyPair) -> None:
    found = read_attestation(model / "attestation.json", TrustPolicy((key.public,)))
    refuse_other_engine(found, "vllm", "0.29.3")
    for name, version in (("vllm", "0.30.0"), ("vllm", "1.0.0"), ("sglang", "0.29.0")):
        with pytest.raises(AttestationRefused, match="the gate ran on vllm"):
            refuse_other_engine(found, name, version)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"\xff", b'{"payload": 1}'])
def test_bytes_other_than_an_envelope_are_refused(
    model: Path, key: KeyPair, content: bytes
) -> None:
    (model / "attestation.json").write_bytes(content)
    with pytest.raises(AttestationRefused, match="is not a DSSE envelope"):
        verify(model, key)
    (model / "attestation.json").unlink()
    with pytest.raises(AttestationRefused, match="no attestation"):
        verify(model, key)


def test_stock_securesystemslib_and_in_toto_verify_it(model: Path, key: KeyPair) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from google.protobuf import json_format
    from in_toto_attestation.v1 import statement_pb2
    from in_toto_attestation.v1.statement import Statement
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import SSlibKey

    envelope = Envelope.from_dict(json.loads((model / "attestation.json").read_bytes()))
    public = SSlibKey.from_crypto(load_pem_public_key(key.public.read_bytes()))
    assert list(envelope.verify([public], 1)) == [key.key_id]
    assert envelope.payload_type == "application/vnd.in-toto+json"
    parsed = json_format.Parse(envelope.payload, statement_pb2.Statement())
    Statement.copy_from_pb(parsed).validate()
    assert parsed.subject[0].digest["sha256"] == file_manifest(model).root
    assert parsed.predicate_type == "urn:narrowgate:gate:v1"


def test_a_cached_digest_does_not_hide_a_change(model: Path, key: KeyPair, tmp_path: Path) -> None:
    file = tmp_path / "digests.json"
    found = read_attestation(model / "attestation.json", TrustPolicy((key.public,)))
    weights = model / "model.safetensors"
    for _ in range(2):
        assert verify_files(model, found, DigestCache(file)) == file_manifest(model)
    assert DigestCache(file).find(weights) is not None
    facts = weights.stat()
    weights.write_bytes(bytes(256))
    os.utime(weights, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert weights.stat().st_mtime_ns == facts.st_mtime_ns
    with pytest.raises(AttestationRefused, match=r"changed model\.safetensors"):
        verify_files(model, found, DigestCache(file))
    file.write_text("{", encoding="utf-8")
    with pytest.raises(AttestationRefused):
        verify_files(model, found, DigestCache(file))
    weights.write_bytes(FILES["model.safetensors"])
    assert verify_files(model, found, DigestCache(file)).root == found.root


def test_a_cache_that_cannot_be_written_only_costs_time(model: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    assert file_manifest(model, DigestCache(blocked / "digests.json")) == file_manifest(model)


def test_keys_are_private_and_never_overwritten(tmp_path: Path) -> None:
    pair = generate_key(tmp_path / "gate")
    assert pair.private.stat().st_mode & 0o777 == 0o600
    with pytest.raises(OutputInUse):
        generate_key(tmp_path / "gate")
    pair.private.chmod(0o644)
    with pytest.raises(InvalidKey, match="can be read by others"):
        read_key(pair.private)
    with pytest.raises(InvalidKey, match="cannot be read as a private key"):
        load_signer(b"not a key", "standard input")
    with pytest.raises(InvalidKey):
        load_signer(pair.public.read_bytes(), "the public key")


def test_verify_prints_text_and_json(
    model: Path, key: KeyPair, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["verify", str(model), "--trust", str(key.public)]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "valid" in shown
    assert "error at most 0.080 from confidence 0.900 on, coverage 0.50" in shown
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"] == {"topic": "pass"}
    (model / "config.json").write_bytes(b"{}")
    assert main(arguments) == 1
    assert "REFUSED" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["valid"] is False
    assert main(["verify", str(model), "--trust", str(model / "none.pub"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "invalid_key"


def test_a_missing_folder_is_not_called_a_missing_attestation(
    model: Path, key: KeyPair, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(model.parent / "absent"), "--trust", str(key.public)]) == 1
    assert f"the folder {str(model.parent / 'absent')!r} does not exist" in capsys.readouterr().out
    (model / "attestation.json").unlink()
    assert main(["verify", str(model), "--trust", str(key.public)]) == 1
    assert "no attestation at" in capsys.readouterr().out


def test_keygen_makes_a_pair_that_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keygen", "--out", str(tmp_path / "gate"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    signer = load_signer(read_key(Path(found["private"])), "gate")
    assert signer.public_key.keyid == found["key_id"]
    assert main(["keygen", "--out", str(tmp_path / "gate")]) == 2


@pytest.mark.parametrize("name", ["config.json", "config.4.0.0.json"])
def test_a_configuration_that_names_another_model_is_refused(
    model: Path, key: KeyPair, specs: dict[str, TaskSpec], name: str
) -> None:
    signed = predicate(model, {"topic": result(specs["topic"])})
    config = {"model_type": "llama", "speculators_config": {"verifier": {"name_or_path": "/other"}}}
    content = json.dumps(config).encode()
    (model / name).write_bytes(content)
    files = {**signed.artifact.files, name: hashlib.sha256(content).hexdigest()}
    artifact = signed.artifact.model_copy(update={"files": dict(sorted(files.items()))})
    attest(model, key, signed.model_copy(update={"artifact": artifact}), root="0" * 64)
    with pytest.raises(AttestationRefused, match="vLLM would load the model that it names"):
        verify(model, key)
    with pytest.raises(UnsuitableModel, match="speculators_config"):
        file_manifest(model)
