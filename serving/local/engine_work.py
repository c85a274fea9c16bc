"""Translates works to vLLM's requests, and vLLM's outputs to EngineOutputs.

Used by the replica's engine, the offline engine and the benchmarks. An output is vLLM's
RequestOutput, finished and with at least one token. vLLM is imported when parameters are made: its
import takes seconds, and reading outputs does not need it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from serving.contracts.engine import (
    GenerateOutput,
    GenerateWork,
    ScoreOutput,
    ScoreWork,
    ScoringPoint,
    TokenCounts,
)

if TYPE_CHECKING:
    from vllm import SamplingParams


def scoring_params(point: ScoringPoint) -> "SamplingParams":
    """Return the parameters that score a point's candidates in one pass."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        logprob_token_ids=list(point.candidates),
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def generation_params(work: GenerateWork) -> "SamplingParams":
    """Return the parameters of a greedy generation with the sampled tokens' log-probabilities."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    structured = None
    if work.json_schema is not None:
        # Free white space lets a small model fill its bound with line breaks.
        structured = StructuredOutputsParams(json=work.json_schema, disable_any_whitespace=True)
    return SamplingParams(
        max_tokens=work.max_tokens,
        temperature=0.0,
        stop=list(work.stop),
        # Only the log-probability of the sampled token.
        logprobs=0,
        structured_outputs=structured,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def score_output(work: ScoreWork, requests: Sequence[Any]) -> ScoreOutput:
    """Return the candidates' log-probabilities. requests: one a point, in the points' order."""
    rows = []
    for point, request in zip(work.points, requests, strict=True):
        step = request.outputs[0].logprobs[0]
        rows.append(tuple(step[candidate].logprob for candidate in point.candidates))
    # The token that vLLM samples at each point is discarded, not an output.
    return ScoreOutput(tuple(rows), _tokens(requests, output=0))


def generate_output(request: Any) -> GenerateOutput:
    """Return the text and its tokens' log-probabilities."""
    done = request.outputs[0]
    return GenerateOutput(
        text=done.text,
        token_logprobs=tuple(
            step[token].logprob for step, token in zip(done.logprobs, done.token_ids, strict=True)
        ),
        finish_reason=done.finish_reason,
        tokens=_tokens([request], output=len(done.token_ids)),
    )


def _tokens(requests: Sequence[Any], *, output: int) -> TokenCounts:
    cached = sum(request.num_cached_tokens or 0 for request in requests)
    read = sum(len(request.prompt_token_ids) for request in requests)
    return TokenCounts(uncached_input=read - cached, cache_read=cached, output=output)
