"""Measurements that run in the engine's process; each takes the vllm.LLM first.

Tokens are random numbers of the vocabulary, so that any checkpoint can be measured.
"""

import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

from serving.contracts.engine import ScoreWork, ScoringPoint
from serving.local.offline_work import run_works

PREFIX = 250
REST = 50
_LABELS = 4
_DECODED = 128
_SEED = 1


def scoring_rate(llm: Any, concurrent: int, repeats: int, *, shared: bool) -> dict[str, float]:
    """Score prompts of PREFIX + REST tokens, `concurrent` at once.

    shared: whether all begin with the same PREFIX tokens. Returns the median prompts a second and
    the mean of the tokens of a prompt that came from the prefix cache.
    """
    rng = random.Random(f"{_SEED} {concurrent} {shared}")  # noqa: S311  # not a secret
    prefix = _tokens(llm, rng, PREFIX)
    point = (ScoringPoint((), tuple(_distinct(llm, rng, _LABELS))),)

    def works() -> list[ScoreWork]:
        return [
            ScoreWork(
                (*(prefix if shared else _tokens(llm, rng, PREFIX)), *_tokens(llm, rng, REST)),
                point,
            )
            for _ in range(concurrent)
        ]

    run_works(llm, works())
    batches = [run_works(llm, works()) for _ in range(repeats)]
    cached = [output.tokens.cache_read for batch in batches for output in batch.outputs]
    return {
        "prompts_per_s": concurrent / statistics.median(batch.seconds for batch in batches),
        "cached_tokens": statistics.fmean(cached),
    }


def decode_rate(llm: Any, concurrent: int, repeats: int) -> float:
    """Return the median of the decoded tokens a second, `concurrent` sequences at once."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    rng = random.Random(f"{_SEED} {concurrent}")  # noqa: S311  # not a secret
    params = SamplingParams(max_tokens=_DECODED, temperature=0, ignore_eos=True, detokenize=False)
    rates = []
    for _ in range(repeats + 1):
        prompts = [
            TokensPrompt(prompt_token_ids=_tokens(llm, rng, REST)) for _ in range(concurrent)
        ]
        started = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        rates.append(concurrent * _DECODED / (time.perf_counter() - started))
    # The first warms up.
    return statistics.median(rates[1:])


def cache_tokens(llm: Any) -> int:
    """Return how many tokens the KV cache holds."""
    cache = llm.llm_engine.vllm_config.cache_config
    return int(cache.num_gpu_blocks * cache.block_size)


def _tokens(llm: Any, rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(_vocabulary(llm)) for _ in range(count)]


def _distinct(llm: Any, rng: random.Random, count: int) -> Sequence[int]:
    return rng.sample(range(_vocabulary(llm)), count)


def _vocabulary(llm: Any) -> int:
    return int(llm.llm_engine.vllm_config.model_config.get_vocab_size())
