"""The state of each local model before it serves. No pydantic: the error tree imports this."""

from dataclasses import dataclass
from typing import Literal

ModelState = Literal["preparing", "deployed", "failed"]


@dataclass(frozen=True, slots=True)
class Progress:
    """A step of a model's preparation.

    share: of the whole preparation that is done, in [0, 1]. left_s: estimated seconds until the
    model serves, None without an estimate.
    """

    step: str
    share: float
    left_s: float | None


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """The state of one local model, written by the process that starts the stack.

    preparing: its files are being made. deployed: its engine runs, or starts, as the Serve
    application `application`. failed: it will not serve; `reason` says why.
    """

    state: ModelState
    progress: Progress | None = None
    application: str | None = None
    reason: str | None = None
