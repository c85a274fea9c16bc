"""Settings of learned heads: when they are fitted, and within which bounds."""

from pydantic import BaseModel, ConfigDict, Field


class HeadSettings(BaseModel):
    """When and how heads are fitted.

    A fit is a process with one thread and a low priority. A gateway replica runs one at a time.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first_fit: int = Field(default=100, ge=20, le=100_000, description="labels of the first fit")
    growth: float = Field(
        default=2.0, ge=1.1, le=10.0, description="factor of labels from one fit to the next"
    )
    max_rows: int = Field(
        default=20_000, ge=100, le=200_000, description="newest examples that one fit uses"
    )
    max_fit_s: int = Field(
        default=600, ge=1, le=86_400, description="seconds of one fit; then it is ended"
    )
    max_fit_mib: int = Field(
        default=4096, ge=512, le=65_536, description="memory of one fit, MiB; then it is ended"
    )
    check_s: float = Field(
        default=5.0, gt=0.0, le=3600.0, description="seconds between two looks for a due fit"
    )
    keep_versions: int = Field(
        default=3, ge=1, le=100, description="newest versions kept, beside those under a claim"
    )
    erase_within_h: float = Field(
        default=72.0,
        gt=0.0,
        le=720.0,
        description="hours until a head is deleted whose examples were erased",
    )
