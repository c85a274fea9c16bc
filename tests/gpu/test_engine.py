"""The checks of `engine_checks.py`, run on the GPU of this machine."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from serving.artifacts.checkpoint import materialize_bundled
from tests.gpu.engine_checks import REPORT, check_engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed"),
]


@pytest.mark.timeout(1800)
def test_vllm_on_the_gpu_scores_what_transformers_scores(tmp_path: Path) -> None:
    status = check_engine(materialize_bundled(tmp_path / "models"), tmp_path)
    report = json.loads((tmp_path / REPORT).read_text(encoding="utf-8"))
    assert status == 0, report
    # Whole blocks of a shared prefix come from the cache.
    cached = {row["shared"]: row["cached_tokens"] for row in report["scoring"]}
    assert cached[True] > 0, report
    assert cached[False] == 0, report
