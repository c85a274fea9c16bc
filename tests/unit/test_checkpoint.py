"""Where model files are: folders, pinned hub ids, finished and unfinished copies."""

from pathlib import Path

import pytest

from serving.artifacts.checkpoint import Checkpoint, is_materialized, locate
from serving.contracts.errors import InvalidSettings
from serving.contracts.settings import ModelSettings


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
