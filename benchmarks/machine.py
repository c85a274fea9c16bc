"""Describes the machine of a measurement."""

import os
import platform
import time
from typing import Any


def machine() -> dict[str, Any]:
    """Return the description of the machine for a report."""
    import psutil

    from serving.host.processor import processor_name

    return {
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
