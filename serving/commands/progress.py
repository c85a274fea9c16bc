"""Progress of long steps on standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.contracts.model_status import Progress
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


@contextmanager
def start_bar() -> Iterator[Callable[[Progress], None]]:
    """Show a bar with the step, the share done and the time left on standard error.

    Where that is not a terminal, each step is a line of its own. Yields a function that takes the
    progress; calls must not overlap.
    """
    from rich.progress import BarColumn, SpinnerColumn, TaskProgressColumn, TextColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with terminal_progress(*columns) as progress:
        if progress.disable:
            yield _step_lines()
            return
        task = progress.add_task("starting", total=1.0, left="")

        def show(found: Progress) -> None:
            left = "" if found.left_s is None else f"{_minutes(found.left_s)} left"
            progress.update(task, description=found.step, completed=found.share, left=left)

        yield show
        progress.update(task, completed=1.0, left="")


@contextmanager
def byte_bar(description: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show a bar of bytes on standard error. Yields a function that takes done and total."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    )  # fmt: skip
    with terminal_progress(*columns) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _step_lines() -> Callable[[Progress], None]:
    shown: set[str] = set()

    def show(found: Progress) -> None:
        # A gate comes back to a task: its step is a line only once.
        if found.step not in shown:
            shown.add(found.step)
            print(f"{found.share:4.0%}  {found.step}", file=sys.stderr, flush=True)

    return show


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"
