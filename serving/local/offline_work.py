"""Runs a task's works on the offline engine, in whole batches.

Module-level functions that take the vllm.LLM first, for `OfflineEngine.call`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from serving.contracts.engine import EngineOutput, EngineWork, GenerateWork, ScoreOutput, ScoreWork
from serving.host.processor import processor_name
from serving.local.engine_work import (
    generate_output,
    generation_params,
    score_output,
    scoring_params,
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Outputs in the works' order, and the seconds that the engine took for all of them."""

    outputs: list[EngineOutput]
    seconds: float


def run_works(llm: Any, works: Sequence[EngineWork]) -> Batch:
    """Run works together. Blocking."""
    from vllm.inputs import TokensPrompt

    prompts, params = [], []
    for work in works:
        if isinstance(work, GenerateWork):
            prompts.append(TokensPrompt(prompt_token_ids=list(work.prompt_token_ids)))
            params.append(generation_params(work))
            continue
        for point in work.points:
            ids = [*work.prompt_token_ids, *point.suffix]
            prompts.append(TokensPrompt(prompt_token_ids=ids))
            params.append(scoring_params(point))
    started = time.perf_counter()
    done = iter(llm.generate(prompts, params, use_tqdm=False))
    seconds = time.perf_counter() - started
    return Batch([_output(work, done) for work in works], seconds)


def run_scoring(llm: Any, works: Sequence[ScoreWork]) -> list[ScoreOutput]:
    """Run scoring works together. Blocking."""
    outputs = run_works(llm, works).outputs
    return [output for output in outputs if isinstance(output, ScoreOutput)]


def _output(work: EngineWork, done: Any) -> EngineOutput:
    if isinstance(work, ScoreWork):
        return score_output(work, [next(done) for _ in work.points])
    return generate_output(next(done))


def engine_version(llm: Any) -> str:
    """Return vLLM's version in the engine's process."""
    import vllm

    return str(vllm.__version__)


def kernels(llm: Any) -> dict[str, str]:
    """Return the class that computes each kind of layer of the engine's model."""
    found: dict[str, str] = llm.collective_rpc("narrowgate_kernels")[0]
    return found


def device_name(llm: Any) -> str:
    """Return the name of the GPU that the engine runs on, or of the processor."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return processor_name()


def peak_memory(llm: Any) -> int:
    """Return the most memory that the engine has held, bytes: the GPU's where it uses one."""
    import resource

    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    # Linux counts in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
