"""The processor's name, as figures are reported beside it."""

import platform
from pathlib import Path


def processor_name() -> str:
    """Return the model's name from /proc/cpuinfo, the architecture where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
