"""vLLM's sampling parameters for each kind of work: one place for the engine and the benchmark."""

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from serving.contracts.engine import GenerateWork, ScoringPoint


def scoring_params(point: ScoringPoint) -> SamplingParams:
    """Return the parameters that score a point's candidates in one pass."""
    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        logprob_token_ids=list(point.candidates),
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def generation_params(work: GenerateWork) -> SamplingParams:
    """Return the parameters of a greedy generation with the sampled tokens' log-probabilities."""
    structured = None
    if work.json_schema is not None:
        # Free white space lets a small model fill its bound with line breaks.
        structured = StructuredOutputsParams(json=work.json_schema, disable_any_whitespace=True)
    return SamplingParams(
        max_tokens=work.max_tokens,
        temperature=0.0,
        stop=list(work.stop),
        # The sampled token's own log-probability and nothing else.
        logprobs=0,
        structured_outputs=structured,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
