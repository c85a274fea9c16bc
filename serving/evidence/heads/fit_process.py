"""The process that fits: rows on its standard input, candidates on its standard output.

A process of its own, because a fit takes seconds to minutes of one core and its memory must be
bounded. It gets no key, no database and no text, and ends with its time, its memory or its parent.
"""

import math
import os
import resource
import sys

from serving.contracts.errors import FitFailed
from serving.evidence.heads.arrays import DamagedArrays, pack

_NICE = 10
FAILED = 3
"""Exit status where the rows do not allow a fit. The reason is the last line of stderr."""

NO_MEMORY = 4


def main(arguments: list[str]) -> int:
    """Read rows, fit, write candidates. arguments: CPU seconds, MiB of memory."""
    # The limit has whole seconds. The parent ends the process at the exact time.
    seconds, mebibytes = math.ceil(float(arguments[0])), int(arguments[1])
    os.nice(_NICE)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (mebibytes * 2**20, mebibytes * 2**20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    data = sys.stdin.buffer.read()
    try:
        found = _fitted(data)
    except MemoryError:
        return NO_MEMORY
    except (FitFailed, DamagedArrays) as error:
        sys.stderr.write(f"{error}\n")
        return FAILED
    sys.stdout.buffer.write(found)
    sys.stdout.buffer.flush()
    return 0


def _fitted(data: bytes) -> bytes:
    import numpy as np

    from serving.evidence.heads.examples import FitRows
    from serving.evidence.heads.fitting import fit_candidates

    found = fit_candidates(FitRows.unpacked(data))
    return pack({}, {c.kind: np.frombuffer(c.content, np.uint8) for c in found})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
