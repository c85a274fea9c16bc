"""Settings of frontier providers: addresses, bounds, failover, prompt caching."""

import re
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_serializer,
    field_validator,
    model_validator,
)

from serving.contracts.routing import TIERS, Tier
from serving.contracts.setting_types import SettingFile, SettingText

ProviderName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,63}$")]
FrontierModelName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,63}/\S{1,200}$")]
"""`provider/model`, with the provider's name of the model."""
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")]
FieldPath = Annotated[str, Field(pattern=r"^[^.\s]{1,60}(\.[^.\s]{1,60}){0,9}$")]
"""A field's path in a request, without the places in lists: `top_a`, `messages.prefix`."""
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?$")]
HeaderValue = Annotated[str, Field(pattern=r"^[!-~](?:[ -~]{0,1022}[!-~])?$")]

_SECRET_WORDS = frozenset(
    {"auth", "authorization", "cookie", "credential", "key", "password", "secret", "token"}
)
_CLIENT_HEADERS = frozenset(
    {"accept", "accept-encoding", "connection", "content-encoding", "content-length",
     "content-type", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding",
     "upgrade"}
)  # fmt: skip
"""Headers that describe the message or its connection: another value would break the call."""

_MASK = "**********"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BreakerSettings(_Frozen):
    """When calls to a failing provider stop.

    failures: consecutive failures that open the breaker. open_s: seconds until one call probes.
    """

    failures: int = Field(default=5, ge=1, le=1000)
    open_s: float = Field(default=30.0, gt=0.0, le=3600.0)


class ProviderSettings(_Frozen):
    """One provider. Its key is read from a file or an environment variable, never from settings.

    With neither named, `openai` reads OPENAI_API_KEY, `anthropic` ANTHROPIC_API_KEY, another NAME
    reads NAME_API_KEY.
    """

    api: Literal["openai", "anthropic"] = Field(description="wire format")
    base_url: str | None = Field(
        default=None, pattern=r"^https?://", description="the vendor's own address where absent"
    )
    api_key_env: VariableName | None = Field(
        default=None, description="environment variable with the key"
    )
    api_key_file: SettingFile | None = Field(
        default=None, description="file with the key, read at start"
    )
    keyless: bool = Field(default=False, description="the server requires no key")
    key_header: HeaderName | None = Field(
        default=None,
        description="header that carries the key alone, instead of the wire format's own: "
        "`Authorization: Bearer KEY` of openai, `x-api-key: KEY` of anthropic",
    )
    headers: dict[HeaderName, HeaderValue] = Field(
        default={},
        description="sent with each request to the provider; printed with the settings, so no "
        "secrets",
    )
    connect_timeout_s: float = Field(default=5.0, gt=0.0, le=120.0)
    first_byte_timeout_s: float = Field(
        default=60.0,
        gt=0.0,
        le=3600.0,
        description="longest wait for the first part of an answer; each comment of a stream "
        "begins it anew",
    )
    idle_timeout_s: float = Field(
        default=30.0,
        gt=0.0,
        le=3600.0,
        description="longest wait for the next part of a stream; its comments begin it anew",
    )
    max_retries: int = Field(
        default=2, ge=0, le=10, description="of a call that failed and cannot have been billed"
    )
    max_concurrent: int = Field(
        default=64, ge=1, le=100_000, description="calls in progress per gateway replica"
    )
    extra_fields: tuple[FieldPath, ...] = Field(
        default=(),
        description="request fields passed on beyond the list in docs/frontier.md, inside others "
        "by their path; their cost is not part of the worst case",
    )
    drain_s: float = Field(
        default=5.0,
        ge=0.0,
        le=60.0,
        description="longest reading of a stream whose client disconnected, seconds, to learn its "
        "usage; 0 closes the connection at once",
    )
    drain_tokens: int = Field(
        default=512,
        ge=0,
        le=10_000_000,
        description="most output tokens that may be left for such a reading",
    )
    breaker: BreakerSettings = BreakerSettings()
    batch: bool | None = Field(
        default=None,
        description="whether it has a batch API; where absent, the vendor's own address has one",
    )

    @property
    def has_batches(self) -> bool:
        """Return whether requests that can wait may go into the provider's batches."""
        return self.base_url is None if self.batch is None else self.batch

    @field_validator("base_url")
    @classmethod
    def _has_host(cls, url: str | None) -> str | None:
        if url is None:
            return None
        try:
            parts = urlsplit(url)
            is_usable = bool(parts.hostname) and parts.port != 0 and not parts.fragment
        except ValueError:
            is_usable = False
        if not is_usable or any(char.isspace() for char in url):
            # Not the value: it may hold a password.
            raise ValueError("not the address of a server, such as https://host:8443/v1")
        return url

    @field_validator("headers")
    @classmethod
    def _may_be_set(cls, headers: dict[str, str]) -> dict[str, str]:
        names = [name.lower() for name in headers]
        for name in names:
            if _SECRET_WORDS.intersection(name.split("-")):
                raise ValueError(
                    f"{name!r} would carry a secret, and settings are printed: put the key into "
                    "api_key_file; key_header names the header that carries it"
                )
            if name in _CLIENT_HEADERS:
                raise ValueError(f"{name!r} is set by the HTTP client: leave it out")
            if names.count(name) > 1:
                raise ValueError(f"{name!r} is named twice: header names have no case")
        return headers

    @model_validator(mode="after")
    def _has_one_key(self) -> Self:
        if self.key_header is None:
            return self
        name = self.key_header.lower()
        if self.keyless:
            raise ValueError("keyless: true sends no key: leave out key_header")
        if name in _CLIENT_HEADERS or name in {other.lower() for other in self.headers}:
            raise ValueError(f"key_header: {self.key_header!r} is the header of something else")
        return self

    @field_serializer("base_url", when_used="json")
    def _masked(self, url: str | None) -> str | None:
        """Return a URL without its user name, password and query values, for printing."""
        if url is None:
            return None
        parts = urlsplit(url)
        _, at, host = parts.netloc.rpartition("@")
        query = re.sub(r"(?<==)[^&]+", _MASK, parts.query)
        return parts._replace(netloc=(_MASK + at if at else "") + host, query=query).geturl()


class PromptCacheSettings(_Frozen):
    """Prompt caching at providers.

    automatic: cache tools, system prompts and conversations without markers. marker: ends the
    static prefix, on a line of its own or inline; never sent. expected_reuses: requests that share
    a prefix within its time to live, until observed. tracked_prefixes: kept in memory.
    """

    enabled: bool = True
    automatic: bool = True
    marker: SettingText = Field(default="---CACHE_BREAK---", min_length=4, max_length=100)
    expected_reuses: float = Field(default=1.0, ge=0.0, le=1_000_000.0)
    tracked_prefixes: int = Field(default=256, ge=1, le=100_000)


class BoundSettings(_Frozen):
    """Bounds of answers to free-form requests, by tier. Tasks bound their own answers.

    learned: limits and directives follow the lengths of earlier answers; a limit is never under
    max_tokens, and an answer that it cuts is continued before the client sees its end.
    """

    max_tokens: dict[Tier, Annotated[int, Field(le=10_000_000)]] = Field(
        default={"economy": 512, "standard": 1024, "frontier": 4096},
        description="tokens, including reasoning where the provider counts it as output",
    )
    stop: tuple[SettingText, ...] = ()
    directive: SettingText | None = Field(
        default="Answer briefly: at most {words} words unless asked for more.",
        description="added to the system prompt; {words} is computed from max_tokens",
    )

    learned: bool = Field(
        default=False, description="learn limits and directives; continue answers that they cut"
    )
    holdout: float = Field(
        default=0.05,
        ge=0.01,
        le=0.5,
        description="share of requests without a directive, to measure what the others save",
    )
    judge: FrontierModelName | None = Field(
        default=None,
        description="provider/model that compares answers with and without the directive; then "
        "learned bounds add the directive only under a claim. If absent they add it unjudged",
    )
    target_error: float = Field(
        default=0.05,
        gt=0.0,
        lt=0.5,
        description="of that claim: largest share of answers judged worse less the share judged "
        "better",
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for tier in TIERS:
            if self.max_tokens.get(tier, 0) < 1:
                raise ValueError(f"max_tokens.{tier} must be at least 1")
        if self.judge is not None and not (self.learned and self.directive):
            raise ValueError(
                f"judge ({self.judge!r}) compares answers with and without the directive of "
                "learned bounds: set learned: true and a directive, or leave out judge"
            )
        return self


class FrontierSettings(_Frozen):
    """Frontier APIs.

    providers: by name. tiers: each a list of provider/model, tried in this order.
    hedge_after_s: send the same request to the next target when the first sends nothing for this
    time, and pay both; off where None.
    """

    providers: dict[ProviderName, ProviderSettings] = Field(
        default={
            "anthropic": ProviderSettings(api="anthropic"),
            "openai": ProviderSettings(api="openai"),
        }
    )
    tiers: dict[Tier, tuple[FrontierModelName, ...]] = Field(
        default={
            "economy": ("anthropic/claude-haiku-5-5", "openai/gpt-6-luna"),
            "standard": ("anthropic/claude-sonnet-5-5", "openai/gpt-6.1-sol"),
            "frontier": ("anthropic/claude-opus-5-5", "openai/gpt-6-astra"),
        }
    )
    bounds: BoundSettings = BoundSettings()
    prompt_cache: PromptCacheSettings = PromptCacheSettings()
    hedge_after_s: float | None = Field(default=None, gt=0.0, le=3600.0)
    fall_back_after_timeout: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for tier in TIERS:
            targets = self.tiers.get(tier, ())
            if not targets:
                raise ValueError(f"tiers.{tier} names no model")
            for target in targets:
                if target.partition("/")[0] not in self.providers:
                    raise ValueError(
                        f"tiers.{tier}: {target!r} names no configured provider; configured are "
                        f"{', '.join(sorted(self.providers))}"
                    )
        return self

    def may_give_logprobs(self, model: str) -> bool:
        """Return whether a `provider/model` may give the log-probabilities of its tokens.

        OpenAI's format has them; not every model behind it gives them.
        """
        provider = self.providers.get(model.partition("/")[0])
        return provider is not None and provider.api == "openai"
