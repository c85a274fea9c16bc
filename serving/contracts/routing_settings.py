"""Settings of the router: what counts as narrow, what escalates, and to which tier."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.contracts.routing import Reason, Tier
from serving.contracts.setting_types import SettingFile, SettingPath


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ComplexityThresholds(_Frozen):
    """Below low: economy; below medium: standard; above: frontier.

    margin: a score this close below a threshold takes the more expensive tier.
    """

    low: float = Field(default=0.35, ge=0.0, le=1.0)
    medium: float = Field(default=0.65, ge=0.0, le=1.0)
    margin: float = Field(default=0.05, ge=0.0, le=0.5)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.medium:
            raise ValueError(f"low ({self.low}) is above medium ({self.medium})")
        return self


class RoutingSettings(_Frozen):
    """How requests are routed.

    model: folder written by `narrowgate router train`; the shipped one where None.
    """

    model: SettingPath | None = None
    narrow_certainty: float = Field(
        default=0.9, gt=0.5, le=1.0, description="least probability of a task for a narrow request"
    )
    narrow_max_chars: int = Field(
        default=4000, ge=1, le=100_000_000, description="longer requests are not narrow"
    )
    narrow_target_error: float = Field(
        default=0.05,
        gt=0.0,
        lt=1.0,
        description="largest share of the chats read as a task that the reference, asked with the "
        "client's own messages, answers otherwise; a chat is answered locally under a claim on it",
    )
    complexity: ComplexityThresholds = ComplexityThresholds()
    known_instructions: int = Field(
        default=4096,
        ge=0,
        le=1_000_000,
        description="vectors of instructions that are kept, each for its tenant, per gateway "
        "replica; 0 keeps none",
    )
    task_tier: Tier = Field(default="economy", description="tier for tasks that escalate")
    escalate_on: tuple[Reason, ...] = Field(
        default=(
            "out_of_scope", "below_threshold", "invalid_output", "not_attested", "overload",
            "local_failure", "deadline_at_risk",
        ),
        description="reasons for which a task goes to a frontier model",
    )  # fmt: skip
    frontier_reserve_s: float = Field(
        default=10.0,
        ge=0.0,
        le=3600.0,
        description="time reserved for a frontier call; at most half of the request's",
    )
    max_concurrent_frontier: int = Field(
        default=256,
        ge=1,
        le=100_000,
        description="concurrent requests at frontier APIs, per gateway replica",
    )
    max_queued_frontier: int = Field(default=256, ge=0, le=1_000_000)
    decisions_log: SettingFile | None = Field(
        default=None,
        description="JSON Lines of escalated requests with texts, for `narrowgate router train`",
    )
