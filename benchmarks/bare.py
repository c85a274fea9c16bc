"""Runs bare vLLM in the offline engine's process, for comparison."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from serving.contracts.engine import EngineWork, GenerateWork, ScoreWork


@dataclass(frozen=True, slots=True)
class BareRun:
    """Works to run, and how many of them the engine has at any time."""

    works: Sequence[EngineWork]
    in_flight: int
    # Generate one of these under a grammar instead of scoring them; for the comparison of both.
    choices: tuple[str, ...] | None = None


def timed(engine: Any, run: BareRun) -> list[float]:
    """Return seconds: one a work with one in flight, else one for the whole. Runs in the child."""
    requests = [_requests(work, run.choices) for work in run.works]
    if run.in_flight == 1:
        return [_closed_loop(engine.llm_engine, [request], 1) for request in requests]
    return [_closed_loop(engine.llm_engine, requests, run.in_flight)]


def _closed_loop(
    engine: Any, requests: Sequence[Sequence[tuple[Any, Any]]], in_flight: int
) -> float:
    """Return the seconds for all requests with at most `in_flight` works in the engine at once.

    As the clients do: the next work enters when one is done. A work with several scoring points
    is several engine requests, done when all of them are.
    """
    started = time.perf_counter()
    waiting = iter(enumerate(requests))
    left: dict[str, int] = {}

    def enter() -> None:
        for number, parts in islice(waiting, in_flight - len(left)):
            left[str(number)] = len(parts)
            for part, (prompt, params) in enumerate(parts):
                engine.add_request(f"{number}/{part}", prompt, params)

    enter()
    while left:
        for output in engine.step():
            if output.finished:
                number = output.request_id.partition("/")[0]
                left[number] -= 1
                if left[number] == 0:
                    del left[number]
        enter()
    return time.perf_counter() - started


def _requests(work: EngineWork, choices: tuple[str, ...] | None) -> list[tuple[Any, Any]]:
    """Return prompts and the very parameters that the stack's engine uses for the work."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.sampling_params import StructuredOutputsParams

    from serving.local.engine_work import generation_params, scoring_params

    def prompt(ids: Sequence[int]) -> Any:
        return TokensPrompt(prompt_token_ids=list(ids))

    match work:
        case ScoreWork(prompt_token_ids=ids) if choices is not None:
            constraint = StructuredOutputsParams(choice=list(choices))
            params = SamplingParams(max_tokens=32, temperature=0.0, structured_outputs=constraint)
            return [(prompt(ids), params)]
        case ScoreWork(prompt_token_ids=ids, points=points):
            return [(prompt((*ids, *point.suffix)), scoring_params(point)) for point in points]
        case GenerateWork(prompt_token_ids=ids):
            return [(prompt(ids), generation_params(work))]
