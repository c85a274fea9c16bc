"""The end of a long command after SIGINT or SIGTERM."""

import signal
import sys
from collections.abc import Callable

EXIT_STOPPED = 130
"""128 and SIGINT's number, as a shell reports it."""


def run_until_stopped(command: Callable[[], int], consequence: str) -> int:
    """Run a command and return its exit status; SIGTERM interrupts it as Ctrl-C does.

    The command cleans up what it started. consequence: text after "stopped". Only for the main
    thread, because it sets the process's signal handler.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return command()
    except KeyboardInterrupt:
        sys.stderr.write(f"narrowgate: stopped; {consequence}\n")
        return EXIT_STOPPED
