"""The output folder: there whole or not at all; the manifest's digest is model-signing's own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_signing import hashing
from model_signing._signing.signing import Payload

from quantize.artifact import partial_folder, workspace
from serving.artifacts.manifest import SIDECARS, file_manifest
from serving.contracts.errors import OutputInUse


def fill(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 8)
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "sub" / "chat_template.jinja").write_text("{{ x }}", encoding="utf-8")
    return folder


def test_an_artifact_gets_its_name_only_when_complete(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "artifact"
    with workspace(out) as space:
        fill(space.checkpoint)
        assert not out.exists()
        space.publish()
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "sub"}
    assert [path.name for path in out.parent.iterdir()] == ["artifact"]


def test_a_failed_run_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    out = tmp_path / "artifact"

    def fail() -> None:
        with workspace(out) as space:
            fill(space.checkpoint)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not out.exists()
    assert partial_folder(out).is_dir()
    with workspace(out) as space:
        assert not space.checkpoint.exists(), "the next run begins anew"
        fill(space.checkpoint)
        space.publish()
    assert out.is_dir()
    assert not partial_folder(out).exists()


def test_two_runs_cannot_write_one_output_and_a_killed_one_gives_it_back(tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom quantize.artifact import workspace\n"
        "with workspace(Path(sys.argv[1])):\n    print('in', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(OutputInUse, match="another run"), workspace(out):
            pass
        os.kill(other.pid, signal.SIGKILL)
    assert partial_folder(out).is_dir()
    with workspace(out) as space:
        fill(space.checkpoint)
        space.publish()


def test_a_folder_that_filled_up_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "artifact"
    with workspace(out) as space:
        fill(space.checkpoint)
        fill(out)
        with pytest.raises(OutputInUse):
            space.publish()
    assert (out / "config.json").is_file()


def test_tokenizer_and_licence_are_copied_byte_for_byte(tmp_path: Path) -> None:
    base = fill(tmp_path / "base")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE.txt"):
        (base / name).write_bytes(os.urandom(100))
    with workspace(tmp_path / "artifact") as space:
        space.checkpoint.mkdir()
        space.copy_description(base)
        space.publish()
    copied = {path.name for path in (tmp_path / "artifact").iterdir()}
    assert copied == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                      "LICENSE.txt"}  # fmt: skip
    for name in copied:
        assert (tmp_path / "artifact" / name).read_bytes() == (base / name).read_bytes()


def test_the_root_is_the_digest_that_model_signing_signs(tmp_path: Path) -> None:
    folder = fill(tmp_path / "model")
    payload = Payload(hashing.hash(folder))
    statement = json.loads(payload.statement.pb and _as_json(payload))
    assert file_manifest(folder).root == statement["subject"][0]["digest"]["sha256"]


def _as_json(payload: Payload) -> str:
    from google.protobuf import json_format

    return str(json_format.MessageToJson(payload.statement.pb))


def test_sidecars_are_not_part_of_the_model(tmp_path: Path) -> None:
    folder = fill(tmp_path / "model")
    before = file_manifest(folder)
    for name in SIDECARS:
        (folder / name).write_text("anything", encoding="utf-8")
    assert file_manifest(folder) == before
    (folder / "extra.py").write_text("anything", encoding="utf-8")
    assert file_manifest(folder).root != before.root


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(data=st.data())
def test_any_changed_byte_makes_another_model(tmp_path: Path, data: st.DataObject) -> None:
    folder = fill(tmp_path / "model")
    before = file_manifest(folder).root
    path = data.draw(st.sampled_from([p for p in sorted(folder.rglob("*")) if p.is_file()]))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    assert file_manifest(folder).root != before


def test_a_renamed_file_makes_another_model(tmp_path: Path) -> None:
    folder = fill(tmp_path / "model")
    before = file_manifest(folder)
    (folder / "config.json").rename(folder / "config2.json")
    # The root is over the digests in the order of their names: names themselves are in the files.
    assert file_manifest(folder) != before


def test_the_links_of_a_hub_snapshot_are_followed(tmp_path: Path) -> None:
    folder = fill(tmp_path / "model")
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "c0ffee"
    (snapshot / "sub").mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(path for path in folder.rglob("*") if path.is_file()):
        blob = blobs / f"{number:064x}"
        blob.write_bytes(path.read_bytes())
        (snapshot / path.relative_to(folder)).symlink_to(blob)
    assert file_manifest(snapshot) == file_manifest(folder)
