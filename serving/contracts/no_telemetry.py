"""Switches off what the libraries would tell their makers about this machine and its use."""

import os

NO_TELEMETRY = {
    "DO_NOT_TRACK": "1",
    # ONNX Runtime posts events about each session to Microsoft, from the process's first one on.
    "ORT_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Environment variables, read when each library is imported."""


def disable_telemetry() -> None:
    """Set the variables for this process and those that it starts. Call before the imports."""
    os.environ.update(NO_TELEMETRY)
