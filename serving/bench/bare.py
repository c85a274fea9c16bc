"""Bare vLLM for comparison: the offline engine in a process of its own, driven over pipes.

The parent (`BareEngine`) sends one pickled command, the child answers with seconds.
"""

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

from serving.contracts.engine import EngineWork, GenerateWork, ScoreWork


@dataclass(frozen=True, slots=True)
class BareRun:
    """Works to run, and how many of them the engine has at any time."""

    works: Sequence[EngineWork]
    in_flight: int
    # Generate one of these under a grammar instead of scoring them; for the comparison of both.
    choices: tuple[str, ...] | None = None


class BareEngine:
    """The parent's side."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    @classmethod
    def start(cls, engine_kwargs: dict[str, Any], environment: dict[str, str]) -> Self:
        """Start the child and wait until the model is loaded. Blocking, up to minutes."""
        process = subprocess.Popen(  # our own module
            [sys.executable, "-m", "serving.bench.bare"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **environment},
        )
        engine = cls(process)
        engine._send(engine_kwargs)
        engine._receive()
        return engine

    def run(self, run: BareRun) -> list[float]:
        """Return seconds: one a work with one in flight, else one for the whole."""
        self._send(run)
        seconds: list[float] = self._receive()
        return seconds

    def stop(self) -> None:
        """End the child; it shuts its engine down cleanly when its input closes."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _send(self, item: object) -> None:
        assert self._process.stdin is not None
        pickle.dump(item, self._process.stdin)
        self._process.stdin.flush()

    def _receive(self) -> Any:
        assert self._process.stdout is not None
        return pickle.load(self._process.stdout)  # noqa: S301  # from our own child


def _child() -> None:
    # The engine writes to standard output as it likes; answers go out on a copy.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    commands = sys.stdin.buffer
    kwargs = pickle.load(commands)  # noqa: S301  # from our own parent

    from vllm import LLM

    engine = LLM(**kwargs)
    pickle.dump(None, answers)
    answers.flush()
    while True:
        try:
            run: BareRun = pickle.load(commands)  # noqa: S301  # from our own parent
        except EOFError:
            break
        pickle.dump(_timed(engine, run), answers)
        answers.flush()
    engine.llm_engine.engine_core.shutdown()


def _timed(engine: Any, run: BareRun) -> list[float]:
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

    from serving.local.sampling import generation_params, scoring_params

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


if __name__ == "__main__":
    _child()
