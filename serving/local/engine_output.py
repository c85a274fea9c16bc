"""What vLLM hands back, as our outputs: one place for the replica's engine and the offline one.

A request is vLLM's RequestOutput, finished and with at least one token.
"""

from collections.abc import Sequence
from typing import Any

from serving.contracts.engine import GenerateOutput, ScoreOutput, ScoreWork, TokenCounts


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
