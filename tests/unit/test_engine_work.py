"""vLLM's outputs become scores, texts and exclusive token counts."""

from types import SimpleNamespace
from typing import Any

from serving.contracts.engine import (
    GenerateOutput,
    ScoreOutput,
    ScoreWork,
    ScoringPoint,
    TokenCounts,
)
from serving.local.engine_work import generate_output, score_output


def request(read: int, cached: int | None, steps: list[dict[int, float]], **done: Any) -> Any:
    """Return an object with the attributes of a RequestOutput whose first tokens were sampled."""
    logprobs = [{t: SimpleNamespace(logprob=value) for t, value in step.items()} for step in steps]
    tokens = [next(iter(step)) for step in steps]
    output = SimpleNamespace(token_ids=tokens, logprobs=logprobs, **done)
    return SimpleNamespace(prompt_token_ids=[0] * read, num_cached_tokens=cached, outputs=[output])


def test_scores_are_in_the_candidates_order_and_nothing_counts_as_output() -> None:
    work = ScoreWork((0, 0), (ScoringPoint((), (7, 8)), ScoringPoint((7,), (5, 4))))
    requests = [
        request(2, None, [{8: -0.2, 7: -1.5}]),
        request(3, 2, [{3: -0.1, 4: -3.0, 5: -2.0}]),
    ]
    assert score_output(work, requests) == ScoreOutput(
        ((-1.5, -0.2), (-2.0, -3.0)), TokenCounts(uncached_input=3, cache_read=2, output=0)
    )


def test_a_generation_has_only_the_sampled_tokens() -> None:
    found = request(5, 4, [{9: -0.5, 1: -0.4}, {2: -0.25}], text="a b", finish_reason="length")
    assert generate_output(found) == GenerateOutput(
        "a b", (-0.5, -0.25), "length", TokenCounts(uncached_input=1, cache_read=4, output=2)
    )
