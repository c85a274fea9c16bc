"""Reports to the parent process."""

import resource
from typing import TextIO

import psutil
from pydantic import BaseModel


class Reporter:
    """Writes reports as JSON lines, flushed one by one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def send(self, report: BaseModel) -> None:
        """Write one report."""
        self._stream.write(report.model_dump_json() + "\n")
        self._stream.flush()

    def memory_bytes(self) -> int:
        """Return the resident memory of this process now."""
        return int(psutil.Process().memory_info().rss)

    def peak_memory_bytes(self) -> int:
        """Return the largest resident memory so far. Linux counts it in KiB."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
