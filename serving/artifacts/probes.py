"""Probes: inputs whose log-probabilities a gate recorded, scored again by every engine that loads.

They detect what file digests cannot: random weights, a wrong kernel or number format, another chat
template or tokenizer in the engine's process, broken hardware.
"""

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence

from serving.contracts.answer import TaskRequest
from serving.contracts.attestation import Probe, TaskProbes
from serving.contracts.engine import (
    EngineOutput,
    EngineWork,
    GenerateOutput,
    ScoreOutput,
    ScoreWork,
    ScoringPoint,
)
from serving.contracts.errors import AttestationRefused, EngineFailure, NarrowgateError
from serving.contracts.task_spec import TaskSpec, TranslationSpec
from serving.tasks.prompt import PromptTokenizer
from serving.tasks.task import Task, bind

PROBE_TEXTS = (
    "The council of Bergen voted on Monday to reopen the old harbour railway.",
    "I waited forty minutes for a cold soup, and nobody said sorry.",
    "Marta Olsen scored twice before half-time, and Porto won by three goals.",
    "The new chip halves the power that a phone needs to record video.",
)
"""Written for this purpose: no text of a suite or of a client enters an attestation."""

# In 16-bit numbers neighbouring logits of usual size lie 0.06 to 0.12 apart, so that another order
# of the same sums moves a log-probability by about as much.
SMALLEST_TOLERANCE = 0.15
_SAFETY_FACTOR = 4.0
_CONTINUATION_TOKENS = 4

Run = Callable[[Sequence[EngineWork]], Sequence[EngineOutput]]


def measure_probes(
    specs: Sequence[TaskSpec], tokenizer: PromptTokenizer, max_model_len: int, run: Run
) -> dict[str, TaskProbes]:
    """Return probes for each task, with the answers of an engine that is under test.

    run: answers works, together in one call. Blocking. The tolerance is four times the largest
    difference between repetitions: one work at a time, all together, and all in reverse order.
    """
    found = {}
    for spec in specs:
        task = bind(spec, tokenizer, max_model_len)
        requests = _requests(spec)
        continuations = _continuations(task, requests, tokenizer, run)
        pairs = zip(requests, continuations, strict=True)
        works = [_scoring(task, request, continuation) for request, continuation in pairs]
        repetitions = _repetitions(works, run)
        found[spec.name] = TaskProbes(
            spec=spec,
            tolerance=max(SMALLEST_TOLERANCE, _SAFETY_FACTOR * _spread(repetitions)),
            probes=tuple(
                Probe(
                    text=request.text,
                    source_language=request.source_language,
                    target_language=request.target_language,
                    prompt=_prompt_digest(work),
                    continuation=continuation,
                    logprobs=output.logprobs,
                )
                for request, continuation, work, output in zip(
                    requests, continuations, works, repetitions[0], strict=True
                )
            ),
        )
    return found


def probe_works(
    probes: Mapping[str, TaskProbes], tokenizer: PromptTokenizer, max_model_len: int
) -> list[ScoreWork]:
    """Return the works of all probes, in the order of the attestation.

    Raises AttestationRefused where tokenizer or chat template render another prompt for a probe.
    """
    works = []
    for name, expected in probes.items():
        task = bind(expected.spec, tokenizer, max_model_len)
        for number, probe in enumerate(expected.probes):
            work = _scoring(task, _request(name, probe), probe.continuation)
            if _prompt_digest(work) != probe.prompt:
                raise AttestationRefused(
                    f"probe {number} of task {name!r}: tokenizer and chat template render "
                    f"another prompt than the gate's: {len(work.prompt_token_ids)} tokens with "
                    f"digest {_prompt_digest(work)[:16]}, expected {probe.prompt[:16]}",
                    fix="restore tokenizer and chat template, or run the gate again",
                )
            works.append(work)
    return works


def refuse_other_answers(
    probes: Mapping[str, TaskProbes], outputs: Sequence[ScoreOutput | NarrowgateError]
) -> None:
    """Raise AttestationRefused where an answer differs from the gate's by more than the tolerance.

    outputs: of `probe_works`, in its order. Raises EngineFailure where one could not be answered.
    """
    answers = iter(outputs)
    for name, expected in probes.items():
        for number, probe in enumerate(expected.probes):
            answer = next(answers)
            if isinstance(answer, NarrowgateError):
                raise EngineFailure(
                    f"probe {number} of task {name!r} was not answered: {answer.message}"
                )
            _refuse_difference(f"probe {number} of task {name!r}", expected, probe, answer)


def _refuse_difference(what: str, expected: TaskProbes, probe: Probe, answer: ScoreOutput) -> None:
    wanted = [value for row in probe.logprobs for value in row]
    found = [value for row in answer.logprobs for value in row]
    # Written so that a value that is not a number is refused.
    if len(wanted) == len(found) and all(
        abs(old - new) <= expected.tolerance for old, new in zip(wanted, found, strict=True)
    ):
        return
    raise AttestationRefused(
        f"{what}: expected log-probabilities {_shown(wanted)}, found {_shown(found)}, tolerance "
        f"{expected.tolerance:.3f}: this engine does not compute what the gate measured",
        fix="check the weights, the GPU, its driver and the engine's arguments, or run the gate "
        "on this machine",
    )


def _shown(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:.2f}" for value in values) + "]"


def _requests(spec: TaskSpec) -> list[TaskRequest]:
    if not isinstance(spec, TranslationSpec):
        return [TaskRequest(spec.name, text) for text in PROBE_TEXTS]
    languages = sorted(spec.languages)
    return [
        # Every language is a target of one probe, as far as there are probes.
        TaskRequest(spec.name, text, languages[i % len(languages)],
                    languages[(i + 1) % len(languages)])
        for i, text in enumerate(PROBE_TEXTS)
    ]  # fmt: skip


def _request(name: str, probe: Probe) -> TaskRequest:
    return TaskRequest(name, probe.text, probe.source_language, probe.target_language)


def _continuations(
    task: Task, requests: Sequence[TaskRequest], tokenizer: PromptTokenizer, run: Run
) -> list[tuple[int, ...]]:
    """Return the first tokens of the answer to each prompt of a generating task."""
    plans = [task.plan(request) for request in requests]
    if any(isinstance(plan, ScoreWork) for plan in plans):
        return [()] * len(plans)
    found = []
    for request, output in zip(requests, run(plans), strict=True):
        assert isinstance(output, GenerateOutput)
        ids = tokenizer.encode(output.text) or tokenizer.encode(request.text)
        found.append(tuple(ids[:_CONTINUATION_TOKENS]))
    return found


def _scoring(task: Task, request: TaskRequest, continuation: Sequence[int]) -> ScoreWork:
    plan = task.plan(request)
    if isinstance(plan, ScoreWork):
        return plan
    points = tuple(
        ScoringPoint(tuple(continuation[:i]), (continuation[i],)) for i in range(len(continuation))
    )
    return ScoreWork(plan.prompt_token_ids, points)


def _repetitions(works: Sequence[ScoreWork], run: Run) -> list[list[ScoreOutput]]:
    together = list(run(works))
    alone = [output for work in works for output in run([work])]
    reverse = list(run(works[::-1]))[::-1]
    found = []
    for outputs in (together, alone, reverse):
        scored = [output for output in outputs if isinstance(output, ScoreOutput)]
        assert len(scored) == len(works)
        found.append(scored)
    return found


def _spread(repetitions: Sequence[Sequence[ScoreOutput]]) -> float:
    rows = [
        [value for output in outputs for row in output.logprobs for value in row]
        for outputs in repetitions
    ]
    return max((max(values) - min(values) for values in zip(*rows, strict=True)), default=0.0)


def _prompt_digest(work: ScoreWork) -> str:
    ids = work.prompt_token_ids
    return hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).hexdigest()
