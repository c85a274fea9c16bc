"""Settings of the books and of who may ask: storage, prices, budgets' calendar, API keys."""

from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from serving.contracts.frontier_settings import FrontierModelName


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LedgerSettings(_Frozen):
    """What every request cost.

    commit_wait_s: how long at most an answer waits for its own row; the row is written in any case.
    call_wait_s: how long a paid call waits to be written down and checked before it is refused.
    """

    url: SecretStr | None = Field(
        default=None,
        description="postgresql://USER:PASSWORD@HOST/DATABASE; STATE/ledger/ledger.db where absent",
    )
    prices_file: Path | None = Field(
        default=None, description="YAML with prices that beat those of genai-prices"
    )
    reference_model: FrontierModelName = Field(
        default="anthropic/claude-sonnet-5-5",
        description="what every request is compared with: the model it would have gone to",
    )
    time_zone: str = Field(
        default="UTC", description="IANA name; budgets' days and months begin at its midnight"
    )
    commit_wait_s: float = Field(default=0.05, ge=0.0, le=10.0)
    call_wait_s: float = Field(default=2.0, gt=0.0, le=60.0)

    @field_validator("time_zone")
    @classmethod
    def _known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError(f"{name!r} is no IANA time zone") from error
        return name


class AuthSettings(_Frozen):
    """Who may ask.

    mode: `keys` asks every request for an API key; `off` asks for none and listens on loopback
    alone. refresh_s: how soon a new or revoked key counts. max_stale_s: how long known keys hold
    while the database is away.
    """

    mode: Literal["keys", "off"] = "keys"
    refresh_s: float = Field(default=5.0, gt=0.0, le=300.0)
    max_stale_s: float = Field(default=3600.0, gt=0.0)
