"""Settings of context pruning, and what a request asks of it."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.contracts.setting_types import SettingPath, SettingText

PruningMode = Literal["off", "ratio", "threshold"]


class ContextSettings(BaseModel):
    """Context pruning: which sentences of a context are sent to a frontier model.

    mode: of requests that name none. off until it is turned on: no claim on live traffic bounds the
    error yet. model: written by `narrowgate context fit`; the shipped one where None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: PruningMode = Field(
        default="off", description="off; ratio keeps a share; threshold keeps what scores above it"
    )
    ratio: float = Field(
        default=0.5, gt=0.0, le=1.0, description="share of a context's tokens that ratio keeps"
    )
    tools: tuple[SettingText, ...] = Field(
        default=(), description="tools whose results are context, such as search"
    )
    min_tokens: int = Field(
        default=300, ge=0, le=100_000_000, description="shorter contexts are sent whole"
    )
    max_tokens: int = Field(
        default=100_000, ge=1, le=100_000_000, description="longer contexts are sent whole"
    )
    model: SettingPath | None = None


@dataclass(frozen=True, slots=True)
class PruningOptions:
    """What a chat asks of context pruning.

    mode, ratio: as in the settings; None takes the settings'. marked: (message, part) of texts that
    the client marked as context; part is None for a message whose content is a string.
    """

    mode: PruningMode | None = None
    ratio: float | None = None
    marked: frozenset[tuple[int, int | None]] = frozenset()
