"""Settings of the batch lane."""

from pydantic import BaseModel, ConfigDict, Field


class BatchSettings(BaseModel):
    """Files of requests that can wait, and how fast they are run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(default=True, description="serve /v1/files and /v1/batches")
    max_file_bytes: int = Field(
        default=209_715_200, ge=1024, le=10_737_418_240, description="of one uploaded file"
    )
    max_lines: int = Field(default=50_000, ge=1, le=1_000_000, description="requests of one batch")
    tenant_file_bytes: int = Field(
        default=2_147_483_648,
        ge=1024,
        le=1_099_511_627_776,
        description="files of one tenant together, results included",
    )
    tenant_lines: int = Field(
        default=200_000,
        ge=1,
        le=100_000_000,
        description="requests in unfinished batches of one tenant together",
    )
    upload_timeout_s: float = Field(
        default=600.0, gt=0.0, le=86_400.0, description="for the whole body of an upload; then 408"
    )
    file_ttl_s: float = Field(
        default=2_592_000.0,
        ge=3600.0,
        le=31_536_000.0,
        description="age at which a file is deleted, where its upload names none",
    )
    validation_wait_s: float = Field(
        default=20.0,
        ge=0.0,
        le=60.0,
        description="how long POST /v1/batches waits for the file to be checked",
    )
    line_timeout_s: float = Field(
        default=600.0, gt=0.0, le=3600.0, description="for one request of a batch"
    )
    max_concurrent_lines: int = Field(
        default=64, ge=1, le=4096, description="requests in progress while no client waits"
    )
    busy_concurrent_lines: int = Field(
        default=2,
        ge=0,
        le=4096,
        description="most requests in progress while clients wait for interactive ones",
    )
    max_queue_delay_s: float = Field(
        default=0.005,
        ge=0.0,
        le=10.0,
        description="an interactive request that waited longer for its turn halves the lane",
    )
    quiet_s: float = Field(
        default=5.0,
        ge=0.0,
        le=600.0,
        description="time without an interactive request after which the lane runs at full speed",
    )
    max_attempts: int = Field(
        default=6, ge=1, le=100, description="of one request whose error allows a retry"
    )
    provider_poll_s: float = Field(
        default=30.0,
        gt=0.0,
        le=3600.0,
        description="time between two questions for the state of a provider's batch",
    )
    lease_s: float = Field(
        default=15.0,
        ge=1.0,
        le=300.0,
        description="after this silence of the replica that runs batches another one takes over",
    )
