"""Detects this machine's memory (within its container's limit), disk, cores and NVIDIA GPU."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

from serving.host.processor import processor_name

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU. capability: 10 x major + minor. Memory in bytes."""

    name: str
    capability: int
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Machine:
    """The resources of a run. Memory in bytes."""

    cpu: str
    cores: int
    available_bytes: int
    gpu: Gpu | None


def this_machine() -> Machine:
    """Return the resources available now. Runs nvidia-smi if it is installed."""
    return Machine(
        cpu=processor_name(),
        cores=len(os.sched_getaffinity(0)),
        available_bytes=min(psutil.virtual_memory().available, _container_room()),
        gpu=_first_gpu(),
    )


def free_disk_bytes(folder: Path) -> int:
    """Return the free bytes on the disk that holds a folder; the folder need not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _container_room() -> int:
    # cgroup v2; "max" or no file means no limit of its own. Page cache counts as used there and
    # is given back on demand, so it is added again.
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        stat = (_CGROUP / "memory.stat").read_text().splitlines()
    except (OSError, ValueError):
        return 2**62
    cached = sum(int(line.split()[1]) for line in stat if line.startswith("inactive_file "))
    return max(limit - used + cached, 0)


def _first_gpu() -> Gpu | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = "name,compute_cap,memory.total,memory.free"
    try:
        done = subprocess.run(  # noqa: S603  # a fixed command
            [program, f"--query-gpu={query}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        return parse_gpu(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def parse_gpu(listing: str) -> Gpu:
    """Return the first GPU of nvidia-smi's CSV (MiB without units). Raises ValueError."""
    name, capability, total, free = (part.strip() for part in listing.splitlines()[0].split(","))
    major, _, minor = capability.partition(".")
    mib = 2**20
    return Gpu(name, 10 * int(major) + int(minor), int(total) * mib, int(free) * mib)
