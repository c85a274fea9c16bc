"""Progress of long steps: a spinner with the time on a terminal, nothing in a pipe."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def step(description: str) -> Iterator[Callable[[str], None]]:
    """Show a step with its elapsed time on standard error while the body runs.

    Yields a function that changes the description.
    """
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(description, total=None)
        yield lambda text: progress.update(task, description=text)
        progress.update(task, total=1, completed=1)
