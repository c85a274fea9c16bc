"""How far each local model is on its way to serving. No pydantic: the error tree imports this."""

from dataclasses import dataclass
from typing import Literal

ModelState = Literal["preparing", "deployed", "failed"]


@dataclass(frozen=True, slots=True)
class Progress:
    """A step of a model's preparation.

    share: of the whole preparation that is done, in [0, 1]. left_s: estimated seconds until the
    model serves, None where there is no estimate.
    """

    step: str
    share: float
    left_s: float | None


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One local model, as the process that starts the stack sees it.

    preparing: its files are being made. deployed: its engine runs, or starts, as the Serve
    application `application`. failed: it will not serve; `reason` says why.
    """

    state: ModelState
    progress: Progress | None = None
    application: str | None = None
    reason: str | None = None
