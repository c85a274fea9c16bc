"""Unit tests. This runs before any of them imports numpy."""

import os

# Two workers share two cores. Threads of a matrix product that wait for one another take most of
# the time of a fit: 63 s instead of 1 s on a busy machine.
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(name, "1")
