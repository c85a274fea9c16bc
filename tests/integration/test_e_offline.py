"""The engine in a process of its own: what fails there is told here, with its last words."""

from pathlib import Path

import pytest

from serving.contracts.errors import EngineFailure
from serving.local.offline import OfflineEngine


def test_a_model_that_cannot_be_loaded_is_told_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nonsense"}', encoding="utf-8")
    with pytest.raises(EngineFailure) as caught:
        OfflineEngine.start(
            {"model": str(tmp_path)}, {"HF_HUB_OFFLINE": "1"}, tmp_path / "engine.log"
        )
    assert "nonsense" in caught.value.message
    assert str(tmp_path) in caught.value.message


def test_an_argument_that_vllm_does_not_have_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineFailure, match="no_such_argument"):
        OfflineEngine.start({"model": "x", "no_such_argument": 1}, {}, tmp_path / "engine.log")
