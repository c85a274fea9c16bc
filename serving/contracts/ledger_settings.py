"""Settings of the ledger and of authentication: storage, prices, calendar, API keys."""

from typing import Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from serving.contracts.frontier_settings import FrontierModelName
from serving.contracts.setting_types import SettingFile

_NO_ZONES = frozenset({"localtime", "posixrules", "Factory"})


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LedgerSettings(_Frozen):
    """The ledger.

    commit_wait_s: longest wait of an answer until its row is written; a slower row is still
    written. call_wait_s: longest wait of a paid call to be recorded and checked; then it is
    refused.
    """

    url: SecretStr | None = Field(
        default=None,
        description="postgresql://USER:PASSWORD@HOST/DATABASE; STATE/ledger/ledger.db where absent",
    )
    url_file: SettingFile | None = Field(
        default=None,
        description="file that holds the URL, such as a mounted Secret; instead of url",
    )
    prices_file: SettingFile | None = Field(
        default=None, description="YAML with prices that take precedence over those of genai-prices"
    )
    reference_model: FrontierModelName = Field(
        default="anthropic/claude-sonnet-5-5",
        description="model with which every request's cost is compared",
    )
    time_zone: str = Field(
        default="UTC", description="IANA name; days and months of budgets begin at its midnight"
    )
    commit_wait_s: float = Field(default=0.05, ge=0.0, le=10.0)
    call_wait_s: float = Field(default=2.0, gt=0.0, le=60.0)

    @field_validator("time_zone")
    @classmethod
    def _known(cls, name: str) -> str:
        # Files beside the zones: of this machine, of another clock, of zones under other names.
        is_other = name in _NO_ZONES or name.startswith(("right/", "posix/"))
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            raise ValueError(f"{name!r:.60} is not an IANA time zone") from error
        if is_other:
            raise ValueError(f"{name!r:.60} is not an IANA time zone")
        return name

    @model_validator(mode="after")
    def _one_url(self) -> Self:
        if self.url is not None and self.url_file is not None:
            raise ValueError("url and url_file are both set; remove one of them")
        return self


class AuthSettings(_Frozen):
    """Authentication.

    mode: `keys` requires an API key of every request; `off` requires none and listens on loopback
    only. refresh_s: delay after which a new or revoked key takes effect. max_stale_s: how long
    known keys stay valid while the database is unreachable.
    """

    mode: Literal["keys", "off"] = "keys"
    refresh_s: float = Field(default=5.0, gt=0.0, le=300.0)
    max_stale_s: float = Field(default=3600.0, gt=0.0, le=31_536_000.0)
