"""The job that the command gives the worker, and the reports that the worker sends back.

The two are separate processes in separate environments. The job is a JSON file; reports are JSON
lines on the worker's standard output.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from quantize.recipe import Recipe


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Job(_Frozen):
    """One quantization. group_size and the layers: the recipe resolved for the model.

    linear: every linear layer of the decoder blocks, by name.
    sequences: token ids in the order in which they are fed; empty without calibration.
    """

    recipe: Recipe
    base: Path
    out: Path
    group_size: int | None
    linear: tuple[str, ...]
    layers_16bit: tuple[str, ...]
    layers_8bit: tuple[str, ...]
    sequences: tuple[tuple[int, ...], ...]
    batch_tokens: int
    device: Literal["cpu", "cuda"]
    threads: int
    seed: int


class Stage(_Frozen):
    """A step has begun."""

    event: Literal["stage"] = "stage"
    name: Literal["load", "quantize", "save"]


class Outliers(_Frozen):
    """Layers left in 16 bits because rounding would hurt them most, with how many times more."""

    event: Literal["outliers"] = "outliers"
    layers: dict[str, float]


class Layer(_Frozen):
    """A decoder block is done. loss: its summed rounding error, if the library reports it."""

    event: Literal["layer"] = "layer"
    index: int
    total: int
    loss: float | None = None
    memory_bytes: int


class Done(_Frozen):
    """The checkpoint is written. Peaks in bytes; accelerator: 0 without one."""

    event: Literal["done"] = "done"
    libraries: dict[str, str]
    accelerator_name: str | None
    peak_memory_bytes: int
    peak_accelerator_bytes: int
    losses: dict[str, float]


class Failed(_Frozen):
    """The library raised; the log has its stack trace."""

    event: Literal["failed"] = "failed"
    message: str


Report = Stage | Outliers | Layer | Done | Failed
REPORT: TypeAdapter[Report] = TypeAdapter(Annotated[Report, Field(discriminator="event")])
