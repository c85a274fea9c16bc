"""Measurements in the engine's process: module-level functions that take the vllm.LLM first."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantize.compare.divergence import Divergence, summarize

# Tokens of a prompt that is there to be continued.
_SHORT = 16


@dataclass(frozen=True, slots=True)
class Throughput:
    """Prompts read a second, and tokens generated a second (short prompts' reading included)."""

    prompts_per_s: float
    decoded_tokens_per_s: float


def diverge(
    llm: Any, prompts: Sequence[Sequence[int]], reference: str, *, write: bool
) -> Divergence:
    """Return the figures over all prompts, one prompt at a time.

    reference: file that the baseline writes (write) and the candidates read.
    """
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    llm.collective_rpc("recorder_begin", args=(reference,), kwargs={"write": write})
    for ids in prompts:
        llm.collective_rpc("recorder_expect", args=(list(ids),))
        llm.generate([TokensPrompt(prompt_token_ids=list(ids))], params, use_tqdm=False)
    series = llm.collective_rpc("recorder_end")[0]
    return summarize(
        np.array(series["kl"]), np.array(series["agrees"], dtype=bool), np.array(series["nll"])
    )


def kernels(llm: Any) -> dict[str, int]:
    """Return the number of layers by the kernel that the engine chose."""
    found: dict[str, int] = llm.collective_rpc("chosen_kernels")[0]
    return found


def throughput(
    llm: Any, prompts: Sequence[Sequence[int]], decode_tokens: int, concurrency: int
) -> Throughput:
    """Return the speed of one round.

    prompts: all different, so that the prefix cache helps none. decode_tokens: generated for each
    of `concurrency` short prompts, all in the engine at once.
    """
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    def seconds(batch: Sequence[Sequence[int]], tokens: int) -> float:
        params = SamplingParams(
            max_tokens=tokens, ignore_eos=True, temperature=0.0, detokenize=False
        )
        items = [TokensPrompt(prompt_token_ids=list(ids)) for ids in batch]
        started = time.perf_counter()
        llm.generate(items, params, use_tqdm=False)
        return time.perf_counter() - started

    read_s = seconds(prompts, 1)
    short = [list(ids)[:_SHORT] for ids in prompts[:concurrency]]
    decode_s = seconds(short, decode_tokens)
    return Throughput(len(prompts) / read_s, len(short) * decode_tokens / decode_s)
