"""The second environment: quantization and serving pin different versions of compressed-tensors.

It lies beside the environment that this process runs in and is made, by the same script and from
resolved requirements like the first, when a run needs it and it is missing or out of date.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.contracts.errors import EnvironmentUnavailable

_ROOT = Path(__file__).parent.parent
_INSTALL = _ROOT / "requirements" / "install"
_STAMP = ".narrowgate-quantize"
_TAIL = 15


def quantize_python(*, gpu: bool, given: Path | None, announce: Callable[[str], None]) -> Path:
    """Return an interpreter that has the quantization libraries, installing them if need be.

    Blocking: seconds with packages at hand, minutes with a network. given: an interpreter that the
    user names, taken as it is. announce: called with a sentence before an installation.
    Raises EnvironmentUnavailable.
    """
    if given is not None:
        if not os.access(given, os.X_OK):
            raise EnvironmentUnavailable(f"no interpreter {str(given)!r}", field="python")
        return given
    resolved = _ROOT / "requirements" / ("quantize-gpu.txt" if gpu else "quantize-cpu.txt")
    if not (_INSTALL.is_file() and resolved.is_file()):
        raise EnvironmentUnavailable(
            "the requirements of the quantization libraries are not part of this installation",
            field="python",
            fix="run from a source checkout, or install narrowgate[quantize] into an environment "
            "of its own and pass --python with its interpreter",
        )
    folder = Path(sys.prefix).with_name(Path(sys.prefix).name + "-quantize")
    wanted = _digest([resolved, _INSTALL, _ROOT / "pyproject.toml"])
    with _lock(folder):
        if _stamp(folder) != wanted:
            announce(f"installing the quantization libraries into {folder.name} (once)")
            _install(folder, resolved)
            (folder / _STAMP).write_text(wanted, encoding="utf-8")
    return folder / "bin" / "python"


def _install(folder: Path, resolved: Path) -> None:
    # Made anew: an environment half upgraded is worse than one more installation.
    shutil.rmtree(folder, ignore_errors=True)
    # The environment is made by the interpreter that this one was made by.
    base = Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    environment = {**os.environ, "PYTHON": str(base if base.is_file() else sys.executable)}
    environment.pop("VIRTUAL_ENV", None)
    try:
        done = subprocess.run(  # noqa: S603  # our own script
            [_INSTALL, folder, resolved],
            cwd=_ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise EnvironmentUnavailable(f"{str(_INSTALL)!r} cannot be run: {error}") from error
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-_TAIL:])
        raise EnvironmentUnavailable(
            f"the quantization libraries could not be installed:\n{tail}",
            fix="the package index must be reachable, as for the first set-up",
        )


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _stamp(folder: Path) -> str | None:
    try:
        return (folder / _STAMP).read_text(encoding="utf-8")
    except OSError:
        return None


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let one process at a time install. The lock goes with the process that holds it."""
    path = folder.with_name(f"{folder.name}.lock")
    try:
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise EnvironmentUnavailable(
            f"the environment {str(folder)!r} cannot be made: {error}",
            field="python",
            fix="pass --python with an interpreter that has narrowgate[quantize]",
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
