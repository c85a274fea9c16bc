"""What runs first in a gateway replica's process, and the variables that it starts with."""

import sys

from serving.contracts.no_telemetry import NO_TELEMETRY

LEFT_OUT = ("torch", "pandas", "pyarrow")
"""transformers imports torch where it is installed (200 MB), and Ray Serve pandas with pyarrow
(65 MB). Both do without, and a gateway only tokenizes."""


def leave_out_large_libraries() -> None:
    """Make the import of each library fail from now on, as if it were not installed."""
    for name in LEFT_OUT:
        # None in the place of a module: its import raises ModuleNotFoundError.
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


REPLICA_ENVIRONMENT = {
    **NO_TELEMETRY,
    # Ray offers such a function to whole jobs only (worker_process_setup_hook), whose engines need
    # these libraries. It reads this variable.
    "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR": (
        f"{leave_out_large_libraries.__module__}.{leave_out_large_libraries.__name__}"
    ),
    # Threads of small matrix products wait for one another: pruning 4,000 tokens took 103 ms of
    # processor time with two of them, and 17 ms with one.
    "OPENBLAS_NUM_THREADS": "1",
}
"""Of the gateway's deployment, in every place that states its options."""
