"""Work for an engine and its outputs, in token ids.

These cross a process border for every request: plain tuples and numbers, cheap to pickle.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ScoringPoint:
    """A position at which the answer has several possible continuations.

    suffix: token ids to append to the prompt. candidates: distinct token ids to score there.
    """

    suffix: tuple[int, ...]
    candidates: tuple[int, ...]

    def __post_init__(self) -> None:
        """Assert that there are at least two candidates."""
        assert len(set(self.candidates)) == len(self.candidates) > 0


@dataclass(frozen=True, slots=True)
class ScoreWork:
    """One forward pass over the prompt at each scoring point; nothing is generated."""

    prompt_token_ids: tuple[int, ...]
    points: tuple[ScoringPoint, ...]


@dataclass(frozen=True, slots=True)
class GenerateWork:
    """Greedy generation from a prompt.

    stop: strings that end the output and are not part of it.
    json_schema: a schema that the output must satisfy, or None.
    """

    prompt_token_ids: tuple[int, ...]
    max_tokens: int
    stop: tuple[str, ...] = ()
    json_schema: dict[str, Any] | None = None


EngineWork = ScoreWork | GenerateWork


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """Exclusive token classes: cached prompt tokens are not counted as uncached ones."""

    uncached_input: int
    cache_read: int
    output: int


@dataclass(frozen=True, slots=True)
class ScoreOutput:
    """Log-probabilities (natural log, of the raw distribution over the whole vocabulary).

    logprobs: for each scoring point, one value for each of its candidates, in their order.
    """

    logprobs: tuple[tuple[float, ...], ...]
    tokens: TokenCounts


@dataclass(frozen=True, slots=True)
class GenerateOutput:
    """Generated text.

    token_logprobs: for each generated token its log-probability before any grammar mask.
    finish_reason: `stop` (ended by itself or by a stop string) or `length` (cut at max_tokens).
    """

    text: str
    token_logprobs: tuple[float, ...]
    finish_reason: str
    tokens: TokenCounts


EngineOutput = ScoreOutput | GenerateOutput


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """The description that a running engine returns.

    attestation: digest of the envelope it verified.
    """

    model_id: str
    engine: str
    engine_version: str
    max_model_len: int
    quantization: str | None
    dtype: str
    attestation: str | None = None
