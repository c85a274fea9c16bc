"""Progress on a terminal."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn


def terminal_progress(*columns: "ProgressColumn") -> "Progress":
    """Return a display on standard error, which shows nothing if that is not a terminal.

    columns: rich's own (description, bar, share, time left) where none are given.
    """
    # Imported here: subcommands import this module while the command line is parsed.
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    return Progress(*columns, console=console, disable=not console.is_terminal)
