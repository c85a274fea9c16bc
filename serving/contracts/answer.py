"""Requests to a task and the answers to them."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from serving.contracts.evidence import NO_GUARANTEE, Guarantee
from serving.contracts.plain_number import Dollars


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """One input to one task.

    source_language, target_language: ISO 639-1 codes, for translations only.
    """

    task: str
    text: str
    source_language: str | None = None
    target_language: str | None = None


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Entity(_Frozen):
    """A span of the input: `input[start:end] == text`, in Unicode code points."""

    text: str
    type: str
    start: int = Field(ge=0)
    end: int = Field(gt=0)


class Translation(_Frozen):
    """A translated text and the direction it was translated in."""

    text: str
    source_language: str
    target_language: str
    source_detected: bool = Field(description="the source language was detected, not given")


Value = str | tuple[Entity, ...] | Translation


class Usage(_Frozen):
    """Tokens by exclusive class: no token is counted in two of them.

    cache_write_5m_tokens, cache_write_1h_tokens: input written to a provider's prompt cache, by
    time to live. output_tokens: without reasoning_tokens, which are output that is not shown.
    """

    uncached_input_tokens: int = Field(ge=0)
    cache_read_tokens: int = Field(default=0, ge=0)
    cache_write_5m_tokens: int = Field(default=0, ge=0)
    cache_write_1h_tokens: int = Field(default=0, ge=0)
    output_tokens: int = Field(ge=0)
    reasoning_tokens: int = Field(default=0, ge=0)


class Prediction(_Frozen):
    """A task's reading of an engine's output.

    confidence: in [0, 1], raw; docs/tasks.md has the formula for each kind of task.
    valid: the output could be read as an answer in full.
    notes: what had to be left out of the answer and why, for people.
    """

    value: Value
    label_probabilities: dict[str, float] | None = None
    confidence: float = Field(ge=0.0, le=1.0)
    valid: bool = True
    notes: tuple[str, ...] = ()


Route = Literal["local", "cache", "frontier"]


CacheKind = Literal["exact", "semantic", "alias"]
"""exact: of an equal request. semantic: of a question with the same meaning. alias: of a wording
that was found by its meaning before, and then accepted by an audit."""


class CacheHit(_Frozen):
    """The cached answer that was served. age_s: since it was made. similarity: cosine."""

    entry: str
    age_s: float = Field(ge=0.0)
    kind: CacheKind
    similarity: float = Field(ge=-1.0, le=1.0)


class Answer(_Frozen):
    """The answer to one input, from a local or a frontier model."""

    task: str
    value: Value
    label_probabilities: dict[str, float] | None
    confidence: float | None = Field(
        ge=0.0, le=1.0, description="raw confidence; null for a frontier model, which reports none"
    )
    calibrated_confidence: float | None = Field(
        default=None, ge=0.0, le=1.0, description="probability of being right, where attested"
    )
    below_threshold: bool | None = Field(
        default=None,
        description="not covered by a claim in force, or by the attested bound where that decides; "
        "null where there is no bound",
    )
    valid: bool
    notes: tuple[str, ...]
    route: Route
    reason: str = Field(description="why it took this route: docs/routing.md lists the reasons")
    model: str
    usage: Usage
    cost_usd: Dollars | None = Field(default=None, description="null where no price is configured")
    request_id: str
    guarantee: Guarantee = Field(
        default=NO_GUARANTEE, description="the bound on this local answer's error and its evidence"
    )
    cache: CacheHit | None = Field(
        default=None, description="the cached answer that this is; null where a model answered"
    )
