"""A process's memory and open files over a soak, and whether they grow."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

_WARM_SHARE = 0.2
"""Of the samples, those that are not judged: caches fill."""

_MAX_MIB_PER_HOUR = 60.0
_MAX_FILES_PER_HOUR = 10.0


@dataclass(frozen=True, slots=True)
class Slope:
    """Growth an hour by Theil and Sen's estimator, with its 95 % interval."""

    per_hour: float
    low: float
    high: float


@dataclass(slots=True)
class Samples:
    """Of a gateway's process. times_s: since the start of the load."""

    times_s: list[float] = field(default_factory=list)
    memory_mib: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)

    def take(self, at_s: float, process: "psutil.Process") -> None:
        """Add a sample. Raises psutil.NoSuchProcess where the process has ended."""
        self.times_s.append(at_s)
        self.memory_mib.append(process.memory_info().rss / 2**20)
        self.files.append(float(process.num_fds()))

    def slope(self, values: list[float]) -> Slope:
        """Return the growth of values after the first fifth of the samples."""
        from scipy.stats import theilslopes

        skipped = int(len(values) * _WARM_SHARE)
        found = theilslopes(values[skipped:], [t / 3600 for t in self.times_s[skipped:]])
        return Slope(float(found[0]), float(found[2]), float(found[3]))


def growth(memory: Slope, files: Slope) -> list[str]:
    """Return what grows, in words: a growth counts where its whole interval is above the limit."""
    found = []
    if memory.low > _MAX_MIB_PER_HOUR:
        found.append(f"memory grows by {memory.per_hour:.1f} MiB an hour")
    if files.low > _MAX_FILES_PER_HOUR:
        found.append(f"open files grow by {files.per_hour:.1f} an hour")
    return found


def ends(values: list[float]) -> dict[str, float]:
    """Return the first value that is judged, and the last."""
    return {"first": values[int(len(values) * _WARM_SHARE)], "last": values[-1]}
