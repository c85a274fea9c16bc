"""Settings of evidence: claims, audits, their budget, references, and what may be kept."""

from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.contracts.frontier_settings import FrontierModelName, ProviderName
from serving.contracts.head_settings import HeadSettings
from serving.contracts.setting_types import SettingFile, UsdAmount

WINDOW_H = 25.0
"""Longest time from the sending of a provider's batch to its results: the 24 hours that providers
promise, and an hour to cancel what is late and to read the results."""

TenantName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]


class AuditSettings(BaseModel):
    """When the reference is asked about accepted answers of tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["now", "batch"] = Field(
        default="now",
        description="now: each audit at once. batch: by the reference's batch API, at its batch "
        "price, within about a day",
    )
    collect_s: float = Field(
        default=3600.0,
        ge=1.0,
        le=43_200.0,
        description="time for which audits are collected before they are sent as one batch",
    )

    @property
    def longest_h(self) -> float:
        """Return the hours within which an audit that is collected has its verdict."""
        return WINDOW_H + self.collect_s / 3600.0


class EvidenceSettings(BaseModel):
    """How shortcuts are earned and watched."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(
        default=True,
        description="false: only attested thresholds decide, and no answer is audited",
    )
    start: Literal["strict", "optimistic"] = Field(
        default="strict",
        description="of a claim with a suite's evidence only, where there is a reference. strict: "
        "the reference answers until the claim is earned. optimistic: the local model answers, "
        "audited at high_rate from the first input",
    )
    reference: FrontierModelName | None = Field(
        default=None,
        description="provider/model whose answers count as right; the first configured model of "
        "routing.task_tier if absent",
    )
    baseline: str | None = Field(
        default=None,
        description="id of a local model in 16 bits with which quantized answers are compared",
    )
    external: bool = Field(
        default=True, description="false: no input is sent to a provider for evidence"
    )
    providers: tuple[ProviderName, ...] | None = Field(
        default=None,
        description="providers that may receive audits, where a tenant has no list of its own; "
        "the reference's if absent, to which `auto` requests escalate anyway",
    )
    pools: dict[TenantName, tuple[TenantName, ...]] = Field(
        default_factory=dict, description="tenants that pool their evidence, by the pool's name"
    )

    group_window_s: float = Field(
        default=10.0,
        ge=0.0,
        le=86_400.0,
        description="requests of one client within it are one group of evidence",
    )
    min_groups: int = Field(default=50, ge=1, le=100_000, description="groups needed for a claim")
    min_span_h: float = Field(
        default=1.0, ge=0.0, le=168.0, description="hours of traffic needed for a claim"
    )
    max_span_h: float = Field(
        default=168.0, ge=0.0, le=720.0, description="min_span_h doubles to it with suspensions"
    )
    alarm: float = Field(
        default=10_000.0,
        ge=100.0,
        le=1e9,
        description="value of the watch's e-detector that suspends a claim: about the number of "
        "audits between false alarms at the target error",
    )
    max_missing: float = Field(
        default=0.05, gt=0.0, le=1.0, description="share of missing verdicts that suspends"
    )

    high_rate: float = Field(
        default=0.2, gt=0.0, le=1.0, description="share audited after earning and after a signal"
    )
    high_rate_inputs: int = Field(
        default=500, ge=0, le=1_000_000, description="accepted inputs for which high_rate lasts"
    )
    floor_rate: float = Field(
        default=0.02, gt=0.0, le=1.0, description="share of inputs audited for as long as held"
    )
    min_audits_a_day: int = Field(default=20, ge=0, le=100_000)
    max_share_of_avoided_cost: float = Field(
        default=0.02, ge=0.0, le=1.0, description="audits' cost as share of reference cost avoided"
    )
    max_usd_a_day: UsdAmount = Field(
        default=Decimal(5), description="audits of accepted answers, US dollars a day"
    )
    shadow_max_usd: UsdAmount = Field(
        default=Decimal(25),
        description="reference answers of one claim's shadow, US dollars",
    )
    shadow_judge_max_usd_a_day: UsdAmount = Field(
        default=Decimal(5),
        description="judge's calls that compare cached answers in shadow, and brief answers and "
        "answers from pruned contexts with their judge's calls, US dollars a day, besides "
        "max_usd_a_day",
    )
    payback_days: float = Field(
        default=30.0,
        gt=0.0,
        le=365.0,
        description="brief answers, pruned contexts and hits by meaning are compared where they "
        "are expected to save the cost within them; judged by the comparisons of as many days",
    )
    shadow_max_labels: int = Field(
        default=5000,
        ge=100,
        le=1_000_000,
        description="labels after which a claim without a candidate on course is not_earnable",
    )
    judged_max_labels: int = Field(
        default=1500,
        ge=100,
        le=1_000_000,
        description="as shadow_max_labels, of claims whose answers a judge compares",
    )
    badly_worse: float = Field(
        default=0.05,
        gt=0.0,
        lt=1.0,
        description="largest share of answers that a judge may find badly worse",
    )
    sample_rate: float = Field(
        default=0.02, ge=0.0, le=1.0, description="share sampled while a claim is not_earnable"
    )
    max_total_error: float = Field(
        default=0.25,
        gt=0.0,
        le=1.0,
        description="largest sum of the target errors of shortcuts that one request takes",
    )

    max_silence_h: float = Field(
        default=6.0,
        gt=0.0,
        le=720.0,
        description="hours that a held claim lasts without any audit it was due",
    )
    when_reference_fails: Literal["refuse", "local"] = Field(
        default="refuse",
        description="where the reference cannot answer and no claim is held: 503, or the local "
        "answer without a guarantee",
    )
    refresh_s: float = Field(
        default=1.0, gt=0.0, le=2.0, description="seconds between two readings of the claims"
    )
    max_snapshot_age_s: float = Field(
        default=30.0, gt=0.0, le=600.0, description="older claims are not in force"
    )
    lease_s: float = Field(
        default=5.0, gt=0.0, le=60.0, description="time after which another replica folds audits"
    )
    queue: int = Field(
        default=256, ge=1, le=100_000, description="audits waiting; more are dropped and counted"
    )
    concurrency: int = Field(default=4, ge=1, le=256, description="audits in progress")
    deadline_s: float = Field(
        default=30.0, gt=0.0, le=600.0, description="for one audit; then its verdict is missing"
    )
    audit: AuditSettings = Field(
        default_factory=AuditSettings, description="when accepted answers are audited"
    )

    heads: bool = Field(
        default=True, description="learn heads for classification tasks from reference labels"
    )
    head: HeadSettings = Field(
        default_factory=HeadSettings, description="when heads are fitted, and within which bounds"
    )
    keep_texts: int | None = Field(
        default=None,
        ge=1,
        le=365,
        description="days for which a sample of input texts is kept for people to label; "
        "none are kept if absent",
    )
    keep_vectors: int = Field(
        default=90, ge=1, le=730, description="days for which vectors and labels are kept"
    )
    vector_key_file: SettingFile | None = Field(
        default=None,
        description="file with 32 bytes (base64) that encrypt vectors and texts; made in the "
        "state folder if absent",
    )
    signing_key: SettingFile | None = Field(
        default=None, description="Ed25519 private key (PEM) that signs exported claims and heads"
    )
    trusted_keys: tuple[SettingFile, ...] = Field(
        default=(),
        description="Ed25519 public keys (PEM) of evidence; none may be a key that attests models",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.floor_rate > self.high_rate:
            raise ValueError(f"floor_rate ({self.floor_rate}) is above high_rate")
        if self.min_span_h > self.max_span_h:
            raise ValueError(f"min_span_h ({self.min_span_h}) is above max_span_h")
        if self.refresh_s > self.max_snapshot_age_s:
            raise ValueError(f"refresh_s ({self.refresh_s}) is above max_snapshot_age_s")
        least_h = self.audit.longest_h
        if self.audit.mode == "batch" and self.max_silence_h <= least_h:
            raise ValueError(
                f"max_silence_h is {self.max_silence_h:g}, and with audit.mode: batch an audit may "
                f"take {least_h:g} hours: set evidence.max_silence_h above that, such as "
                f"{2 * least_h:.0f}, or evidence.audit.mode: now"
            )
        seen: dict[str, str] = {}
        for pool, tenants in self.pools.items():
            for tenant in tenants:
                if seen.setdefault(tenant, pool) != pool:
                    raise ValueError(
                        f"pools: tenant {tenant!r} is in {seen[tenant]!r} and {pool!r}"
                    )
        return self

    def pool_of(self, tenant: str) -> str | None:
        """Return the name of the pool that a tenant belongs to; None where it has its own scope."""
        return next((pool for pool, members in self.pools.items() if tenant in members), None)
