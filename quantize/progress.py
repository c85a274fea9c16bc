"""What a person or a CI log sees while a run goes on. On standard error."""

import sys
import time
from abc import ABC, abstractmethod
from typing import Self

from pydantic import BaseModel

from quantize.job import Layer, Outliers, Report, Stage
from serving.host.terminal import terminal_progress

_STAGES = {"load": "loading the model", "quantize": "quantizing", "save": "writing the checkpoint"}


class Progress(ABC):
    """Takes the worker's reports as they come. A context manager."""

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *raised: object) -> None:
        """End."""
        return

    @abstractmethod
    def say(self, sentence: str) -> None:
        """Show that a step of our own has begun."""

    @abstractmethod
    def report(self, report: Report) -> None:
        """Show a report of the worker."""


class Bar(Progress):
    """A bar with blocks, loss, memory and time left on a terminal; silent elsewhere."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._bar = terminal_progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
        )
        self._task = self._bar.add_task("checking", total=None, detail="")
        self._quantizing_since = 0.0

    def __enter__(self) -> Self:
        """Begin."""
        self._bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        """End."""
        self._bar.stop()

    def say(self, sentence: str) -> None:
        """Show that a step of our own has begun."""
        self._bar.update(self._task, description=sentence, total=None, detail="")

    def report(self, report: Report) -> None:
        """Show a report of the worker."""
        match report:
            case Stage(name=name):
                self._quantizing_since = time.monotonic()
                self.say(_STAGES[name])
            case Outliers(layers=layers):
                named = ", ".join(layers) or "none"
                if self._bar.console.is_terminal:
                    self._bar.console.print(f"kept in 16 bits: {named}", highlight=False)
            case Layer(index=index, total=total):
                self._bar.update(
                    self._task, total=total, completed=index, detail=self._detail(report)
                )
            case _:
                pass

    def _detail(self, layer: Layer) -> str:
        each_s = (time.monotonic() - self._quantizing_since) / layer.index
        left_s = round(each_s * (layer.total - layer.index))
        loss = "" if layer.loss is None else f"loss {layer.loss:.3g}  "
        return (
            f"block {layer.index}/{layer.total}  {loss}{layer.memory_bytes / 2**30:.1f} GiB  "
            f"{left_s // 60}:{left_s % 60:02d} left"
        )


class JsonLines(Progress):
    """One JSON object a report."""

    def say(self, sentence: str) -> None:
        """Show that a step of our own has begun."""
        self._print(_Said(message=sentence))

    def report(self, report: Report) -> None:
        """Show a report of the worker."""
        self._print(report)

    def _print(self, report: BaseModel) -> None:
        print(report.model_dump_json(exclude={"losses"}), file=sys.stderr, flush=True)


class _Said(BaseModel):
    event: str = "step"
    message: str
