"""What a measurement was taken on."""

import os
import platform
import time
from typing import Any


def machine() -> dict[str, Any]:
    """Return the machine as figures are reported beside it."""
    import psutil

    from serving.host.processor import processor_name

    return {
        "cpu": processor_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
