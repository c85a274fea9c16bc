"""The checks of `torch_checks.py`, run on the GPU of this machine."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from serving.artifacts.checkpoint import materialize_bundled
from tests.gpu.pack_model import packed

CHECKS = Path(__file__).with_name("torch_checks.py")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU"),
]


@pytest.mark.timeout(1800)
def test_the_gpu_computes_what_the_cpu_computes(tmp_path: Path) -> None:
    model = tmp_path / "bundled.packed"
    model.write_bytes(packed(materialize_bundled(tmp_path / "models")))
    run = subprocess.run(
        [sys.executable, CHECKS, "--model", model, "--out", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
