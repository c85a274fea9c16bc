"""Where model files are: folders, pinned hub ids, finished and unfinished copies."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving.artifacts import checkpoint
from serving.artifacts.checkpoint import (
    Checkpoint,
    is_materialized,
    locate,
    materialize_bundled,
)
from serving.contracts.errors import InvalidSettings
from serving.contracts.settings import ModelSettings

from .patience import GUARD_S


def model(source: str, revision: str | None = None) -> ModelSettings:
    return ModelSettings.model_validate(
        {"id": "m", "source": source, "revision": revision, "accelerator": {"kind": "cpu"}}
    )


def test_a_folder_with_a_checkpoint_is_taken(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    assert locate(model(str(tmp_path)), tmp_path) == Checkpoint(str(tmp_path), None)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match=r"no config\.json"):
        locate(model(str(tmp_path)), tmp_path)


def test_a_hub_id_keeps_its_revision(tmp_path: Path) -> None:
    found = locate(model("owner/name", "b" * 40), tmp_path)
    assert found == Checkpoint("owner/name", "b" * 40)


def test_an_unfinished_copy_of_the_bundled_model_does_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "smollm2-135m-instruct"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"half")
    assert not is_materialized(tmp_path)
    (folder / "narrowgate.json").write_text('{"format": 0}', encoding="utf-8")
    assert not is_materialized(tmp_path)


# A process that begins to write the bundled model and does not end.
_ENDLESS = """
import sys, time
from pathlib import Path
from serving.artifacts import checkpoint
def endless(source, folder):
    (folder / "model.safetensors").write_bytes(b"half")
    time.sleep(600)
checkpoint._dequantize = endless
checkpoint.materialize_bundled(Path(sys.argv[1]))
"""


def _unfinished(models: Path) -> list[Path]:
    return [path for path in models.glob(".smollm2-*") if path.is_dir()]


def _begun(models: Path) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([sys.executable, "-c", _ENDLESS, str(models)])
    end = time.monotonic() + GUARD_S
    while not any((folder / "model.safetensors").exists() for folder in _unfinished(models)):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.02)
    return process


def test_what_a_killed_run_left_is_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        process = _begun(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        # The second run removed what the first left.
        assert len(_unfinished(tmp_path)) == 1
    monkeypatch.setattr(checkpoint, "_dequantize", lambda source, folder: None)
    folder = materialize_bundled(tmp_path)
    assert is_materialized(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert (folder / "narrowgate.json").is_file()


def test_what_a_live_run_writes_stays(tmp_path: Path) -> None:
    live = _begun(tmp_path)
    other = subprocess.Popen([sys.executable, "-c", _ENDLESS, str(tmp_path)])
    try:
        (folder,) = _unfinished(tmp_path)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(3)
        # The other one waits: it neither removes the folder nor begins its own.
        assert _unfinished(tmp_path) == [folder]
        assert (folder / "model.safetensors").read_bytes() == b"half"
    finally:
        for process in (live, other):
            process.kill()
            process.wait()
