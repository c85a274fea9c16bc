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
    return _has_avx512()


def has_int4_kernel() -> bool:
    """Return whether vLLM has a kernel for INT4 weights here; on x86 it needs AVX-512.

    vLLM 0.29 has `cpu_gemm_wna16` in its libraries for AVX-512, and not in the one for AVX2.
    """
    return _has_avx512()


def _has_avx512() -> bool:
    """Return whether the processor has AVX-512; True where it is not x86, and unknown."""
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
