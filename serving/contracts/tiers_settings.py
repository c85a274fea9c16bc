"""Settings of tiers that are earned per cluster of open-ended requests."""

from decimal import Decimal
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.contracts.frontier_settings import FrontierModelName
from serving.contracts.routing import Tier
from serving.contracts.setting_types import SettingFile, UsdAmount


class TiersSettings(BaseModel):
    """Which tier answers a cluster of open-ended requests, and how cheaper ones are earned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["off", "shadow", "on"] = Field(
        default="off",
        description="off: the rules of routing decide alone. shadow: cheaper tiers are explored "
        "and earned, and never answer. on: they answer while their claim is held",
    )
    reference: Literal["rule", "economy", "standard", "frontier"] = Field(
        default="rule",
        description="tier of a cluster that has earned none: that of the rules, or a fixed one",
    )
    target_error: float = Field(
        default=0.1,
        gt=0.0,
        lt=0.5,
        description="largest share of answers judged worse less the share judged better",
    )
    judge: FrontierModelName | None = Field(
        default=None,
        description="provider/model that compares answers; the first configured model of the "
        "standard tier if absent",
    )
    explore_usd_a_day: UsdAmount = Field(
        default=Decimal(5), description="cheaper answers and judging, US dollars a day (UTC)"
    )
    payback_days: float = Field(
        default=30.0,
        gt=0.0,
        le=365.0,
        description="a tier is explored where it is expected to save its cost within them",
    )
    audit_share_of_saving: float = Field(
        default=0.1, ge=0.0, le=1.0, description="audits' cost as share of what a held tier saves"
    )
    audit_floor: float = Field(
        default=0.02, gt=0.0, le=1.0, description="least share of a held tier's answers audited"
    )
    audit_high: float = Field(default=0.2, gt=0.0, le=1.0, description="the largest share")
    audit_high_requests: int = Field(
        default=500,
        ge=0,
        le=1_000_000,
        description="requests after earning for which twice as many are audited",
    )
    audit_settled: int = Field(
        default=100,
        ge=0,
        le=1_000_000,
        description="audits of a held tier after which audit_floor is enough while its watch is "
        "quiet; 0 for never",
    )
    again_share: float = Field(
        default=0.05,
        ge=0.0,
        le=1.0,
        description="share of compared requests whose reference is asked twice: what the judge "
        "makes of equal answers",
    )
    max_chars: int = Field(
        default=40_000,
        ge=100,
        le=100_000_000,
        description="longer conversations stay at their reference",
    )
    cascade: Literal["off", "on"] = Field(
        default="off",
        description="on: where a cluster has not earned a cheaper tier, that tier answers first, "
        "and its answer is kept where a self-check is above a threshold that a claim has earned",
    )
    cascade_check: Literal["auto", "samples"] = Field(
        default="auto",
        description="auto: the tokens' log-probabilities where the provider gives them, else how "
        "far two answers agree. samples: always two answers",
    )
    cascade_streams: bool = Field(
        default=False,
        description="also for streams, whose first token then waits for the whole cheaper answer",
    )
    cascade_wait_s: float = Field(
        default=20.0,
        gt=0.0,
        le=600.0,
        description="for the cheaper answer and its check; then the reference is asked",
    )
    clusters_file: SettingFile | None = Field(
        default=None,
        description="written by `narrowgate tiers fit`; the shipped clusters if absent",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.audit_floor > self.audit_high:
            raise ValueError(f"audit_floor ({self.audit_floor}) is above audit_high")
        return self

    def start(self, rule: Tier) -> Tier:
        """Return the tier of a request whose cluster has earned none. rule: that of the rules."""
        return rule if self.reference == "rule" else self.reference
