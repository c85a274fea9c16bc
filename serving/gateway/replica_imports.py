"""What a gateway replica's process must not import. Runs before anything else in it."""

import sys

LEFT_OUT = ("torch", "pandas", "pyarrow")
"""transformers imports torch where it is installed (200 MB), and Ray Serve pandas with pyarrow
(65 MB). Both do without, and a gateway only tokenizes."""


def leave_out_large_libraries() -> None:
    """Make the import of each library fail from now on, as if it were not installed."""
    for name in LEFT_OUT:
        # None in the place of a module: its import raises ModuleNotFoundError.
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]
