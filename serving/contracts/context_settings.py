"""Settings of context pruning."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.contracts.frontier_settings import FrontierModelName
from serving.contracts.requests import PruningMode
from serving.contracts.setting_types import SettingPath, SettingText


class ContextSettings(BaseModel):
    """Context pruning: which sentences of a context are sent to a frontier model.

    mode: of requests that name none. Only in auto a claim on live traffic bounds the error. model:
    written by `narrowgate context fit`; the shipped one where None.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: PruningMode = Field(
        default="off",
        description="off; ratio keeps a share; threshold keeps what scores above it; auto does so "
        "under a claim, and needs a judge",
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
    judge: FrontierModelName | None = Field(
        default=None,
        description="provider/model that compares answers from pruned and from whole contexts, for "
        "the mode auto",
    )
    target_error: float = Field(
        default=0.05,
        gt=0.0,
        lt=0.5,
        description="largest share of answers judged worse less the share judged better",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mode == "auto" and self.judge is None:
            raise ValueError(
                "mode is 'auto', which prunes under a claim, and no judge compares answers: set "
                "context.judge, or mode: threshold to prune without a claim"
            )
        return self
