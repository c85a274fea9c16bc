"""The bundled model is written twice with the same bytes."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, Stack

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.slow
def test_two_runs_write_the_same_bytes_and_nothing_to_a_pipe(stack: Stack, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "serving.cli", "materialize", "--state", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    folder = Path(done.stdout.strip())
    assert done.stderr == ""
    assert digests(folder) == digests(ROOT / ".narrowgate" / "models" / folder.name)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [folder.name]
