"""How a long command ends that was told to stop."""

import signal
import sys
from collections.abc import Callable

EXIT_STOPPED = 130
"""128 and SIGINT's number, as a shell reports it."""


def run_until_stopped(command: Callable[[], int], consequence: str) -> int:
    """Run a command and return its exit status; SIGTERM interrupts it as Ctrl-C does.

    What the command started is ended by its own cleaning up. consequence: said of a stopped
    command. For the main thread alone: sets the process's handler.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return command()
    except KeyboardInterrupt:
        sys.stderr.write(f"narrowgate: stopped; {consequence}\n")
        return EXIT_STOPPED
