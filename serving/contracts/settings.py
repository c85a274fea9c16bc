"""The one settings model of a process: built at the entry point, frozen, passed down.

settings_sources.py reads it from the command line, the environment and a file.
"""

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from serving.contracts.batch_settings import BatchSettings
from serving.contracts.cache_settings import CacheSettings
from serving.contracts.context_settings import ContextSettings
from serving.contracts.evidence_settings import EvidenceSettings
from serving.contracts.frontier_settings import FrontierSettings
from serving.contracts.ledger_settings import AuthSettings, LedgerSettings
from serving.contracts.routing_settings import RoutingSettings
from serving.contracts.setting_types import (
    ListenAddress,
    SettingFile,
    SettingPath,
    SettingText,
    UsdAmount,
)
from serving.contracts.task_spec import Name
from serving.contracts.tiers_settings import TiersSettings

BUNDLED_MODEL = "bundled:smollm2-135m-instruct"
"""In 16 bits. With @RECIPE it is quantized, gated and signed at the first start."""

ModelId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,127}$")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


AcceleratorType = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class CpuAccelerator(_Frozen):
    """The engine on the processor, through the CPU build of vLLM."""

    kind: Literal["cpu"]
    cores: float = Field(
        default=1, gt=0, le=1024, description="CPU resources a replica reserves in Ray"
    )
    kv_cache_gib: int = Field(
        default=1, ge=1, le=512, description="memory for the KV cache, GiB (VLLM_CPU_KVCACHE_SPACE)"
    )


class GpuAccelerator(_Frozen):
    """The engine on NVIDIA GPUs."""

    kind: Literal["gpu"]
    type: AcceleratorType | None = Field(
        default="A10G",
        description="Ray accelerator type: A10G, L4, A100, H100, ...; null takes any GPU",
    )
    count: int = Field(default=1, ge=1, le=16, description="GPUs a replica (tensor parallel)")
    memory_utilization: float = Field(
        default=0.90, gt=0.1, le=0.98, description="share of GPU memory for weights and KV cache"
    )


class Replicas(_Frozen):
    """The number of replicas and their autoscaling.

    min == max keeps the number fixed. target_ongoing_requests: calls in progress per replica that
    autoscaling aims at; a call carries up to `max_batch_size` inputs.
    """

    min: int = Field(default=1, ge=1, le=1000)
    max: int = Field(default=1, ge=1, le=1000)
    target_ongoing_requests: float = Field(default=32.0, gt=0.0, le=100_000.0)
    max_ongoing_requests: int = Field(default=128, ge=1, le=1_000_000_000)
    max_surge_percent: int = Field(
        default=100, ge=0, le=100, description="extra replicas during a rolling update, percent"
    )
    drain_timeout_s: float | None = Field(
        default=None,
        ge=0.0,
        le=3600.0,
        description="for calls in progress when a replica stops; the gateway's if absent",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min ({self.min}) is above max ({self.max})")
        return self


class ModelSettings(_Frozen):
    """One served model; each is a deployment of its own."""

    id: ModelId = Field(description="name that clients use")
    source: SettingText = Field(
        description="local folder, hub id, or bundled:smollm2-135m-instruct[@RECIPE] (made, and "
        "with a recipe gated, at the first start)"
    )
    revision: str | None = Field(
        default=None, pattern=r"^[0-9a-f]{40}$", description="commit of a hub id, 40 hex digits"
    )
    prefer: Literal["speed", "memory"] = Field(
        default="speed",
        description="of bundled:...@RECIPE: speed serves the quantized model where its attestation "
        "shows it to be faster, else the 16-bit one; memory the quantized one wherever it passed",
    )
    attestation: SettingFile | None = Field(
        default=None, description="DSSE envelope; attestation.json in the model's folder if absent"
    )
    accelerator: Annotated[CpuAccelerator | GpuAccelerator, Field(discriminator="kind")]
    replicas: Replicas = Replicas()
    replica_hour_usd: UsdAmount | None = Field(
        default=None,
        description="cost of one replica per hour, US dollars; 0 where it costs nothing; required",
    )
    max_model_len: int = Field(default=2048, ge=256, le=16_777_216, description="window, tokens")
    max_num_seqs: int = Field(
        default=64, ge=1, le=65_536, description="sequences in one engine step"
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto",
        description="auto: the checkpoint's, but float32 on a processor without fast bfloat16",
    )
    max_batch_size: int = Field(
        default=32, ge=1, le=256, description="inputs in one call of the engine"
    )
    concurrent_batches: int = Field(
        default=4, ge=1, le=64, description="scoring calls in progress, per gateway replica"
    )
    engine_args: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="further vLLM engine arguments; only those that docs/settings.md lists",
    )


Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^/\s]+)$")]


class GatewaySettings(_Frozen):
    """The HTTP server."""

    replicas: int = Field(default=1, ge=1, le=100)
    num_cpus: float = Field(
        default=0.0, ge=0.0, le=1024.0, description="CPU resources reserved in Ray"
    )
    max_replicas_per_node: int | None = Field(
        default=None, ge=1, le=100, description="gateway replicas on one Ray node; any if absent"
    )
    max_body_bytes: int = Field(default=4 * 2**20, ge=1024, le=2**30)
    max_inputs: int = Field(
        default=256,
        ge=1,
        le=4096,
        description="inputs in one request: texts of a task, prompts, choices",
    )
    max_concurrent_inputs: int = Field(
        default=256, ge=1, le=1_000_000, description="inputs being processed, per gateway replica"
    )
    max_queued_inputs: int = Field(
        default=1024, ge=0, le=10_000_000, description="inputs that wait beyond those; more get 429"
    )
    health_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="port for /healthz, /readyz and /metrics only, with its own connections; "
        "the next free one above `port` if absent",
    )
    max_connections: int = Field(
        default=4096, ge=16, le=500_000, description="open connections of all clients"
    )
    max_connections_per_address: int = Field(
        default=1024, ge=1, le=500_000, description="open connections of one client address"
    )
    header_timeout_s: float = Field(
        default=10.0, gt=0.0, le=600.0, description="for the request line and headers"
    )
    body_timeout_s: float = Field(
        default=30.0, gt=0.0, le=3600.0, description="for the whole body of a request; then 408"
    )
    idle_timeout_s: float = Field(
        default=60.0,
        gt=0.0,
        le=3600.0,
        description="longest silence of a connection between two requests",
    )
    request_timeout_s: float = Field(default=120.0, gt=0.0, le=3600.0)
    drain_timeout_s: float = Field(
        default=10.0, ge=0.0, le=600.0, description="time for requests in progress at shutdown"
    )
    cors_origins: tuple[Origin, ...] = Field(
        default=(),
        description="origins whose pages may call the API from a browser, such as "
        "https://app.example.com; * allows all; none by default",
    )


class AttestationSettings(_Frozen):
    """Which attestations are accepted."""

    trusted_keys: tuple[SettingFile, ...] = Field(
        default=(), description="Ed25519 public keys (PEM); a signature of one of them suffices"
    )
    max_age_days: float | None = Field(
        default=None,
        gt=0.0,
        le=36_500.0,
        description="refuse older attestations at load; none: any age",
    )
    allow_older: bool = Field(
        default=False,
        description="accept an attestation older than the newest one accepted before",
    )
    strict: bool = Field(
        default=False, description="read every byte at every load, without cached digests"
    )
    development: bool = Field(
        default=False,
        description="serve without valid attestations; the log and every response state it",
    )


class Settings(_Frozen):
    """All settings of a serving process."""

    host: ListenAddress = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=1, le=65535)
    metrics_port: int | None = Field(
        default=None,
        ge=1,
        le=65535,
        description="port on which each replica, gateway or engine, answers its own /metrics; for "
        "one replica a pod; off if absent",
    )
    state: SettingPath = Field(
        default=Path(".narrowgate"), description="folder for everything written"
    )
    tasks_dir: SettingPath | None = Field(
        default=None, description="folder with your own task files"
    )
    models: tuple[ModelSettings, ...] = Field(
        default=(
            ModelSettings(
                id="smollm2-135m-instruct",
                source=f"{BUNDLED_MODEL}@int8-w8a8",
                accelerator=CpuAccelerator(kind="cpu"),
                # About the cloud price of two cores.
                replica_hour_usd=Decimal("0.10"),
                engine_args={"enforce_eager": True},
            ),
        ),
        description="each with an engine of its own; []: frontier models answer alone, and heads "
        "once their claims are held",
    )
    task_models: dict[Name, ModelId] = Field(
        default_factory=dict, description="model of a task; the first model where unnamed"
    )
    gateway: GatewaySettings = GatewaySettings()
    attestation: AttestationSettings = AttestationSettings()
    frontier: FrontierSettings = FrontierSettings()
    routing: RoutingSettings = RoutingSettings()
    ledger: LedgerSettings = LedgerSettings()
    auth: AuthSettings = AuthSettings()
    evidence: EvidenceSettings = EvidenceSettings()
    context: ContextSettings = ContextSettings()
    cache: CacheSettings = CacheSettings()
    tiers: TiersSettings = TiersSettings()
    batch: BatchSettings = BatchSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ids = [model.id for model in self.models]
        if len(set(ids)) != len(ids):
            raise ValueError(f"models: ids must be distinct, found {ids}")
        for task, model in self.task_models.items():
            if model not in ids:
                raise ValueError(f"task_models.{task}: {model!r} is not one of the models {ids}")
        self._check_evidence(ids)
        return self

    def _check_evidence(self, ids: list[str]) -> None:
        """Raise ValueError where evidence names a model or provider that is not configured."""
        evidence = self.evidence
        if evidence.baseline is not None and evidence.baseline not in ids:
            raise ValueError(
                f"evidence.baseline: {evidence.baseline!r} is not one of the models {ids}"
            )
        providers = sorted(self.frontier.providers)
        claimed = {
            "frontier.bounds.judge": self.frontier.bounds.judge,
            "context.judge": self.context.judge,
        }
        for name, judge in {"tiers.judge": self.tiers.judge, **claimed}.items():
            if judge is not None and judge.split("/")[0] not in providers:
                raise ValueError(f"{name}: {judge!r} names no provider of {providers}")
        for name, judge in claimed.items():
            if judge is not None and not evidence.enabled:
                raise ValueError(f"{name}: {judge!r} needs claims: set evidence.enabled: true")
        if self.context.judge is not None:
            self._check_total_error()
        reference = [evidence.reference.split("/")[0]] if evidence.reference else []
        for provider in (*(evidence.providers or ()), *reference):
            if provider not in providers:
                raise ValueError(f"evidence: provider {provider!r} is not one of {providers}")
        if evidence.enabled and evidence.audit.mode == "batch":
            self._check_batch_audits()

    def _check_total_error(self) -> None:
        """Raise ValueError where a pruned context could take an answer beyond the largest error.

        One answer may also be brief and of a cheaper tier: its error is at most the sum.
        """
        targets = {"context.target_error": self.context.target_error}
        if self.tiers.mode == "on":
            targets["tiers.target_error"] = self.tiers.target_error
        if self.frontier.bounds.judge is not None:
            targets["frontier.bounds.target_error"] = self.frontier.bounds.target_error
        total, most = sum(targets.values()), self.evidence.max_total_error
        if total > most + 1e-9:
            named = " + ".join(f"{name} ({value:g})" for name, value in targets.items())
            raise ValueError(
                f"{named} is {total:g}, above evidence.max_total_error ({most:g}): lower a target, "
                "or leave context.judge out"
            )

    def _check_batch_audits(self) -> None:
        """Raise ValueError where audits are to go into batches that cannot be made."""
        if not self.batch.enabled:
            raise ValueError(
                "evidence.audit.mode is 'batch', and batch.enabled is false: set batch.enabled: "
                "true, or evidence.audit.mode: now"
            )
        named = self.evidence.reference
        targets = self.frontier.tiers[self.routing.task_tier] if named is None else (named,)
        for target in targets:
            provider = self.frontier.providers.get(target.split("/")[0])
            if provider is not None and not provider.has_batches:
                raise ValueError(
                    f"evidence.audit.mode is 'batch', and the provider of {target!r}, which may be "
                    f"the reference, has no batch API: set frontier.providers."
                    f"{target.split('/')[0]}.batch: true where it has one, name another "
                    "evidence.reference, or set evidence.audit.mode: now"
                )

    def model_for(self, task: str) -> str | None:
        """Return the id of the model that answers a task; None without any local model."""
        first = self.models[0].id if self.models else None
        return self.task_models.get(task, first)


def bundled_recipe(source: str) -> str | None:
    """Return the recipe in a bundled model's source, None for any other source."""
    name, _, recipe = source.partition("@")
    return recipe if name == BUNDLED_MODEL and recipe else None
