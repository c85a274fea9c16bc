"""Settings of the cache: what is kept, for how long, how much, and for whom."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serving.contracts.setting_types import SettingFile, SettingText

TenantName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Seconds = Annotated[float, Field(ge=1.0, le=31_536_000.0)]


class CacheSettings(BaseModel):
    """The cache of answers to equal requests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enabled: bool = Field(default=True, description="false: nothing is looked up or stored")
    sampled: Literal["exact_only", "off"] = Field(
        default="exact_only",
        description="chats whose temperature is above 0 or unset. exact_only: an equal chat gets "
        "the same answer again. off: they are not cached",
    )
    semantic: Literal["off", "shadow", "on"] = Field(
        default="shadow",
        description="chats that are answered with the answer to a question of the same meaning. "
        "shadow: under a claim of its own; until it is earned the model answers, and the cached "
        "answer is compared; off where evidence has no reference. on: the same, and without a "
        "reference they are answered without a guarantee",
    )
    semantic_threshold: Literal["loose", "default", "strict"] = Field(
        default="default",
        description="least cosine of two questions: 0.85, 0.90 or 0.95; 0.05 more where one of "
        "them has a word more",
    )
    refinement_window_s: float = Field(
        default=120.0,
        ge=0.0,
        le=3600.0,
        description="time in which a follow-up that repeats or corrects a question counts against "
        "its answer; 0 looks for none",
    )
    ttl_s: Seconds = Field(default=86_400.0, description="age at which an entry ends, seconds")
    namespace_ttl_s: dict[TenantName, Seconds] = Field(
        default_factory=dict, description="ttl_s of single namespaces, by name"
    )
    max_entry_bytes: int = Field(
        default=262_144, ge=1024, le=16_777_216, description="larger answers are not stored"
    )
    max_entries: int = Field(
        default=100_000,
        ge=1,
        le=10_000_000,
        description="entries of one namespace; beyond it the least recently used are deleted",
    )
    max_bytes: int = Field(
        default=268_435_456,
        ge=1024,
        le=1_099_511_627_776,
        description="size of one namespace's answers; beyond it as max_entries",
    )
    encryption_key_file: SettingFile | None = Field(
        default=None,
        description="file with 32 bytes (base64) that encrypt answers in the database; answers "
        "are not encrypted if absent",
    )
    shared: dict[TenantName, tuple[TenantName, ...]] = Field(
        default_factory=dict,
        description="tenants that get one another's answers, by the shared namespace's name",
    )
    excluded_tenants: tuple[TenantName, ...] = Field(
        default=(), description="tenants of whose requests nothing is looked up or stored"
    )
    excluded_keys: tuple[SettingText, ...] = Field(
        default=(), description="ids of API keys with whose requests nothing is looked up or stored"
    )
    excluded_tasks: tuple[SettingText, ...] = Field(
        default=(), description="tasks whose answers are not looked up or stored, by name"
    )
    lookup_timeout_s: float = Field(
        default=0.5, gt=0.0, le=10.0, description="longest wait for the database; then a miss"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        seen: dict[str, str] = {}
        for name, tenants in self.shared.items():
            for tenant in tenants:
                if seen.setdefault(tenant, name) != name:
                    raise ValueError(
                        f"shared: tenant {tenant!r} is in {seen[tenant]!r} and {name!r}"
                    )
        return self

    def namespace_of(self, tenant: str) -> str:
        """Return the namespace of a tenant: its own, or the shared one that lists it.

        The prefix keeps a tenant from sharing a namespace that has its name.
        """
        for name, tenants in self.shared.items():
            if tenant in tenants:
                return f"shared/{name}"
        return f"tenant/{tenant}"

    def excludes(self, tenant: str, key_id: str | None, task: str | None = None) -> bool:
        """Return whether nothing is kept for a tenant, a key or a task. task: None for a chat."""
        return (
            tenant in self.excluded_tenants
            or key_id in self.excluded_keys
            or task in self.excluded_tasks
        )

    def ttl_of(self, namespace: str) -> float:
        """Return the time to live of a namespace's entries, seconds."""
        return self.namespace_ttl_s.get(namespace.partition("/")[2], self.ttl_s)
