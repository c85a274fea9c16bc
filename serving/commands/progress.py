"""Progress of long steps: a spinner with the time on a terminal, nothing in a pipe."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.host.terminal import terminal_progress


@contextmanager
def step(description: str) -> Iterator[Callable[[str], None]]:
    """Show a step with its elapsed time on standard error while the body runs.

    Yields a function that changes the description.
    """
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with terminal_progress(*columns) as progress:
        task = progress.add_task(description, total=None)
        yield lambda text: progress.update(task, description=text)
        progress.update(task, total=1, completed=1)
