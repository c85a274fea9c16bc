"""What a person or a CI log sees while a gate runs. On standard error."""

import json
import sys
from typing import Self

from serving.host.terminal import terminal_progress


class Bar:
    """A bar over the examples on a terminal; silent elsewhere. A context manager."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._bar = terminal_progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
        )
        self._task = self._bar.add_task("checking", total=1)

    def __enter__(self) -> Self:
        """Begin."""
        self._bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        """End."""
        self._bar.stop()

    def step(self, sentence: str, done: int, total: int) -> None:
        """Show a step that has begun."""
        self._bar.update(self._task, description=sentence, completed=done, total=total)


class JsonLines:
    """One JSON object a step, for programs. A context manager."""

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *raised: object) -> None:
        """End."""

    def step(self, sentence: str, done: int, total: int) -> None:
        """Print the step."""
        print(
            json.dumps({"event": "step", "step": sentence, "done": done, "total": total}),
            file=sys.stderr,
            flush=True,
        )
