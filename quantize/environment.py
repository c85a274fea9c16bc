"""The quantization environment: libraries that cannot be installed beside the serving engine.

llm-compressor and vLLM pin different versions of compressed-tensors, so the quantization worker
runs in an environment of its own. It is made when a run needs it and it is missing or out of date.
It holds only the packages that this environment lacks or has in another version; every other
package is read from this environment, which saves most of the installation. It is in the user's
cache folder (`$XDG_CACHE_HOME/narrowgate`, by default `~/.cache/narrowgate`).
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from serving.contracts.errors import EnvironmentUnavailable

REQUIREMENTS = Path(__file__).parent / "requirements"
"""Resolved requirements with hashes: cpu.txt, gpu.txt; torch-cpu.txt names the CPU build."""

_TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)")
_STAMP = ".complete"
_SHARED = "_serving_environment.pth"
_LOG_LINES = 15
# The modules of this project that the worker imports.
_PACKAGES = ("quantize", "serving")


def quantize_python(
    *,
    gpu: bool,
    given: Path | None,
    announce: Callable[[str], None],
    requirements: Path = REQUIREMENTS,
) -> Path:
    """Return an interpreter that has the quantization libraries, installing them first if needed.

    Blocking: seconds with cached packages, minutes with a network. given: an interpreter that the
    user names, used as it is. announce: called with a sentence before an installation.
    requirements: folder with the resolved requirements. Raises EnvironmentUnavailable.
    """
    if given is not None:
        refuse_no_interpreter(given)
        return given
    folder = environment_folder(gpu=gpu)
    plan = _Plan.of(requirements, gpu=gpu)
    with _lock(folder):
        if _stamp(folder) != plan.digest():
            announce(f"installing the quantization libraries into {str(folder)!r} (once)")
            _install(folder, plan)
    return folder / "bin" / "python"


def refuse_no_interpreter(python: Path) -> None:
    """Raise EnvironmentUnavailable for what cannot be run."""
    if not (python.is_file() and os.access(python, os.X_OK)):
        raise EnvironmentUnavailable(
            f"--python {str(python)!r} is not an executable file", field="python"
        )


def environment_folder(*, gpu: bool) -> Path:
    """Return the folder of the quantization environment that belongs to this environment."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        cache = Path(named) if Path(named).is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        raise _unavailable(str(error)) from error
    owner = hashlib.sha256(str(Path(sys.prefix).resolve()).encode()).hexdigest()[:12]
    return cache / "narrowgate" / f"quantize-{'gpu' if gpu else 'cpu'}-{owner}"


@contextmanager
def worker_environment(folder: Path) -> Iterator[dict[str, str]]:
    """Give environment variables with which the worker imports the same code as this process.

    folder: an existing folder, in which links to the project's packages are made for that time.
    """
    code = folder / "code"
    code.mkdir()
    for name in _PACKAGES:
        (code / name).symlink_to(Path(__file__).resolve().parent.parent / name)
    try:
        yield {"PYTHONPATH": str(code.resolve())}
    finally:
        shutil.rmtree(code)


@dataclass(frozen=True, slots=True)
class _Plan:
    """The packages to install and to share.

    torch_cpu: requirement of the CPU build, None where it is shared or a GPU build is wanted.
    install: lines of a requirements file. shared: folders with the packages that are shared, in the
    order in which they are searched. versions: of the shared packages.
    """

    torch_cpu: str | None
    install: tuple[str, ...]
    shared: tuple[str, ...]
    versions: tuple[str, ...]

    @classmethod
    def of(cls, requirements: Path, *, gpu: bool) -> "_Plan":
        """Compare the resolved requirements with what is installed."""
        torch_cpu = None if gpu else _read(requirements / "torch-cpu.txt").strip()
        install: list[str] = []
        shared: set[str] = set()
        versions: list[str] = []
        if torch_cpu is not None and (found := _installed(torch_cpu)) is not None:
            torch_cpu = None
            shared.add(found)
        for block in _blocks(_read(requirements / ("gpu.txt" if gpu else "cpu.txt"))):
            if (found := _installed(block)) is None:
                install.append(block)
            else:
                shared.add(found)
                versions.append(block.split(maxsplit=1)[0])
        ordered = [path for path in sys.path if path in shared]
        return cls(torch_cpu, tuple(install), (*ordered, *sorted(shared - set(ordered))),
                   tuple(versions))  # fmt: skip

    def digest(self) -> str:
        """Return a digest that changes when the environment must be made again."""
        return hashlib.sha256(repr((self, sys.version_info[:3])).encode()).hexdigest()


def _blocks(resolved: str) -> list[str]:
    """Split a requirements file into its requirements, each with its hashes."""
    blocks: list[str] = []
    for line in resolved.splitlines():
        if _PIN.match(line):
            blocks.append(line)
        elif blocks and line.startswith(" "):
            blocks[-1] += f"\n{line}"
    return blocks


def _installed(requirement: str) -> str | None:
    """Return the folder of a package that is installed in the required version, else None.

    A local version (`2.13.0+cpu`) meets a requirement without one.
    """
    match = _PIN.match(requirement)
    if match is None:
        return None
    try:
        found = metadata.distribution(match[1])
    except metadata.PackageNotFoundError:
        return None
    installed, wanted = found.version, match[2]
    if installed == wanted or installed.partition("+")[0] == wanted:
        return str(Path(str(found.locate_file(""))).resolve())
    return None


def _install(folder: Path, plan: _Plan) -> None:
    # Made from scratch: an environment that is only partly upgraded may not work.
    shutil.rmtree(folder, ignore_errors=True)
    links = _find_links()
    _uv("venv", "--quiet", "--python", sys.executable, str(folder))
    python = folder / "bin" / "python"
    install = ["pip", "install", "--quiet", "--no-deps", "--python", str(python)]
    if plan.torch_cpu is not None:
        _install_torch([*install, plan.torch_cpu], links)
    if plan.install:
        resolved = folder / "requirements.txt"
        resolved.write_text("\n".join(plan.install) + "\n", encoding="utf-8")
        # A whole resolution: resolving again would bring back what its overrides left out.
        _uv(*install, "--require-hashes", *links, "-r", str(resolved))
    packages = folder / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    # Searched after the environment's own packages.
    (packages / _SHARED).write_text("".join(f"{path}\n" for path in plan.shared), encoding="utf-8")
    (folder / _STAMP).write_text(plan.digest(), encoding="utf-8")


def _install_torch(install: Sequence[str], links: Sequence[str]) -> None:
    """Install the CPU build from a local folder of wheels, or else from PyTorch's own index."""
    try:
        _uv(*install, *links)
    except EnvironmentUnavailable:
        _uv(*install, "--index-url", _TORCH_CPU_INDEX)


def _uv(*arguments: str) -> None:
    try:
        from uv import find_uv_bin

        program = find_uv_bin()
    except (ImportError, FileNotFoundError) as error:
        raise _unavailable("uv, which installs it, is not installed here") from error
    # Compiled once: where Python writes no bytecode, each process would compile what it imports.
    environment = {**os.environ, "UV_PYTHON_DOWNLOADS": "never", "UV_COMPILE_BYTECODE": "1"}
    environment.pop("VIRTUAL_ENV", None)
    try:
        done = subprocess.run(  # noqa: S603  # the installed uv, arguments are ours
            [program, *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise _unavailable(f"{program!r} cannot be run: {error}") from error
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-_LOG_LINES:])
        raise EnvironmentUnavailable(
            f"the quantization libraries could not be installed:\n{tail}",
            fix="make the package index reachable, or pass --python with an interpreter that has "
            "narrowgate[quantize]",
        )


def _find_links() -> list[str]:
    """Return uv's arguments for the local folders of wheels that pip is configured with."""
    done = subprocess.run(  # the arguments are ours
        [sys.executable, "-m", "pip", "config", "get", "global.find-links"],
        capture_output=True,
        text=True,
        check=False,
    )
    configured = done.stdout.split() if done.returncode == 0 else []
    named = os.environ.get("PIP_FIND_LINKS", "").split()
    return [part for link in [*configured, *named] for part in ("--find-links", link)]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise _unavailable(f"{str(path)!r} cannot be read: {error.strerror}") from error


def _stamp(folder: Path) -> str | None:
    try:
        return (folder / _STAMP).read_text(encoding="utf-8")
    except OSError:
        return None


def _unavailable(reason: str) -> EnvironmentUnavailable:
    return EnvironmentUnavailable(
        f"the quantization environment cannot be made: {reason}",
        field="python",
        fix="pass --python with an interpreter that has narrowgate[quantize]",
    )


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let one process at a time install. The lock ends with the process that holds it."""
    path = folder.with_name(f"{folder.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise EnvironmentUnavailable(
            f"{str(path)!r} cannot be written: {error.strerror}",
            field="python",
            fix="set XDG_CACHE_HOME to a folder that can be written, or pass --python with an "
            "interpreter that has narrowgate[quantize]",
        ) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
