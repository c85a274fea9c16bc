"""The steps of a quantization, from the worker's reports."""

from typing import Any

from quantize.job import Layer, Outliers, Report, Stage
from serving.host.progress import StepObserver

_STAGES = {"load": "loading the model", "quantize": "quantizing", "save": "writing the checkpoint"}
# The other work (loading, outliers, writing, checking) in units of decoder blocks.
_BESIDES_BLOCKS = 4


class RunSteps:
    """Reports the steps of one run to an observer. blocks: decoder blocks of the model."""

    def __init__(self, observer: StepObserver, blocks: int) -> None:
        self._observer = observer
        self._total = blocks + _BESIDES_BLOCKS
        self._done = 0

    def begin(self, name: str) -> None:
        """Report a step of the command itself."""
        self._observer.step(name, self._done, self._total)

    def report(self, report: Report) -> None:
        """Convert a report of the worker to a step of the observer."""
        match report:
            case Stage(name=name):
                if name != "load":
                    self._done += 1
                self.begin(_STAGES[name])
            case Outliers(layers=layers):
                self._done += 1
                named = ", ".join(layers) or "none"
                details = {"kept_16bit": layers, "shown": f"kept in 16 bits: {named}"}
                self._observer.step("quantizing", self._done, self._total, details)
            case Layer(index=index, total=blocks):
                self._done += 1
                loss = "" if report.loss is None else f"loss {report.loss:.3g}  "
                about: dict[str, Any] = {
                    "index": index,
                    "loss": report.loss,
                    "memory_bytes": report.memory_bytes,
                    "shown": f"block {index}/{blocks}  {loss}{report.memory_bytes / 2**30:.1f} GiB",
                }
                self._observer.step("quantizing", self._done, self._total, about)
            case _:
                pass
