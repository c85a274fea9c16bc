"""The processor: its name for reports, and the number formats that it computes fast."""

import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")


def processor_name() -> str:
    """Return the model's name from /proc/cpuinfo, the architecture where there is none."""
    return _first("model name") or platform.machine()


def multiplies_bfloat16() -> bool:
    """Return whether oneDNN has bfloat16 kernels for this processor; on x86 they need AVX-512.

    Without them, a product of bfloat16 matrices takes 50 times as long as one of float32 (AMD EPYC
    with AVX2, torch 2.13: 3,500 ms against 69 ms for 2048 x 576 by 576 x 1536).
    """
    flags = _first("flags")
    return flags is None or "avx512bw" in flags.split()


def _first(field: str) -> str | None:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return None
