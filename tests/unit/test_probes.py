"""Probes: an engine whose results differ from the gate's is refused."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from serving.artifacts.checkpoint import Checkpoint
from serving.artifacts.load_check import LoadCheck, RunningEngine
from serving.artifacts.probes import (
    PROBE_TEXTS,
    SMALLEST_TOLERANCE,
    measure_probes,
    probe_works,
    refuse_other_answers,
)
from serving.artifacts.signing_key import KeyPair
from serving.contracts.attestation import Engine, TaskProbes
from serving.contracts.engine import (
    EngineOutput,
    EngineWork,
    GenerateOutput,
    ScoreOutput,
    ScoreWork,
    TokenCounts,
)
from serving.contracts.errors import AttestationRefused, EngineFailure
from serving.contracts.settings import AttestationSettings, CpuAccelerator, ModelSettings, Settings
from serving.contracts.task_spec import TaskSpec

from .attested import ARGUMENTS, attest, predicate, write_model
from .character_tokenizer import CharacterTokenizer

WINDOW = 100_000
COUNTS = TokenCounts(uncached_input=1, cache_read=0, output=0)


class Model:
    """A stand-in for a model: log-probabilities are a function of only the ids, plus noise.

    noise: largest error, nats; it alternates with the number of works in a call.
    """

    def __init__(self, seed: int = 0, noise: float = 0.0) -> None:
        self.seed, self.noise = seed, noise

    def run(self, works: Sequence[EngineWork]) -> list[EngineOutput]:
        shift = self.noise if len(works) > 1 else 0.0
        return [self._answer(work, shift) for work in works]

    def _answer(self, work: EngineWork, shift: float) -> EngineOutput:
        if not isinstance(work, ScoreWork):
            return GenerateOutput("alpha beta gamma", (-0.1,), "stop", COUNTS)
        rows = []
        for point in work.points:
            context = sum(work.prompt_token_ids) + sum(point.suffix) + self.seed
            rows.append(
                tuple(-1.0 - (context * 31 + c) % 97 / 10 + shift for c in point.candidates)
            )
        return ScoreOutput(tuple(rows), COUNTS)


def measured(specs: dict[str, TaskSpec], model: Model) -> dict[str, TaskProbes]:
    return measure_probes(list(specs.values()), CharacterTokenizer(), WINDOW, model.run)


def scored(outputs: Sequence[EngineOutput]) -> list[ScoreOutput]:
    return [output for output in outputs if isinstance(output, ScoreOutput)]


def test_the_engine_that_was_measured_passes(specs: dict[str, TaskSpec]) -> None:
    probes = measured(specs, Model())
    assert sorted(probes) == sorted(specs)
    works = probe_works(probes, CharacterTokenizer(), WINDOW)
    assert len(works) == len(PROBE_TEXTS) * len(specs)
    refuse_other_answers(probes, scored(Model().run(works)))


def test_another_model_is_refused_with_expected_and_found(specs: dict[str, TaskSpec]) -> None:
    probes = measured({"topic": specs["topic"]}, Model())
    works = probe_works(probes, CharacterTokenizer(), WINDOW)
    with pytest.raises(AttestationRefused) as caught:
        refuse_other_answers(probes, scored(Model(seed=7).run(works)))
    message = caught.value.message
    first = probes["topic"].probes[0].logprobs[0][0]
    assert f"probe 0 of task 'topic': expected log-probabilities [{first:.2f}" in message
    assert "found [" in message
    assert f"tolerance {SMALLEST_TOLERANCE:.3f}" in message


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_tolerance_is_measured_by_repetition(specs: dict[str, TaskSpec], noise: float) -> None:
    probes = measured({"topic": specs["topic"]}, Model(noise=noise))
    assert probes["topic"].tolerance == pytest.approx(max(SMALLEST_TOLERANCE, 4 * noise))
    works = probe_works(probes, CharacterTokenizer(), WINDOW)

    def shifted(by: float) -> list[ScoreOutput]:
        outputs = scored(Model(noise=noise).run(works))
        return [
            replace(o, logprobs=tuple(tuple(v + by for v in row) for row in o.logprobs))
            for o in outputs
        ]

    refuse_other_answers(probes, shifted(probes["topic"].tolerance * 0.99))
    for wrong in (probes["topic"].tolerance * 1.01, -probes["topic"].tolerance * 1.01, math.nan):
        with pytest.raises(AttestationRefused):
            refuse_other_answers(probes, shifted(wrong))


def test_a_probe_that_is_not_answered_is_a_failure(specs: dict[str, TaskSpec]) -> None:
    probes = measured({"topic": specs["topic"]}, Model())
    with pytest.raises(EngineFailure, match="probe 0 of task 'topic' was not answered"):
        refuse_other_answers(probes, [EngineFailure("broken")] * len(PROBE_TEXTS))
    works = probe_works(probes, CharacterTokenizer(), WINDOW)
    short = [replace(o, logprobs=((-1.0,),)) for o in scored(Model().run(works))]
    with pytest.raises(AttestationRefused):
        refuse_other_answers(probes, short)


def test_another_chat_template_or_tokenizer_is_refused(specs: dict[str, TaskSpec]) -> None:
    probes = measured({"topic": specs["topic"]}, Model())

    class OtherTemplate(CharacterTokenizer):
        def render(self, turns: Sequence[object]) -> str:
            return "Answer: " + super().render(turns)  # type: ignore[arg-type]

    with pytest.raises(AttestationRefused, match="another prompt than the gate's"):
        probe_works(probes, OtherTemplate(), WINDOW)


@pytest.fixture
def check(tmp_path: Path, key: KeyPair, specs: dict[str, TaskSpec]) -> Callable[..., LoadCheck]:
    folder = write_model(tmp_path / "model")
    engine = Engine(
        name="vllm", version="0.29.0", max_model_len=2048, hardware="a CPU", arguments=ARGUMENTS,
        environment={}, kernels={"attention": "CPUAttention"},
    )  # fmt: skip
    probes = measured({"topic": specs["topic"]}, Model())
    attest(folder, key, predicate(folder, {}, engine=engine, probes=probes))

    def build(*, development: bool = False) -> LoadCheck:
        model = ModelSettings(id="m", source=str(folder), accelerator=CpuAccelerator(kind="cpu"))
        rules = AttestationSettings(trusted_keys=(key.public,), development=development)
        settings = Settings(state=tmp_path / "state", models=(model,), attestation=rules)
        return LoadCheck.of(settings, model, Checkpoint(str(folder), None))

    return build


def test_a_loaded_engine_is_accepted_by_kernels_and_answers(
    check: Callable[..., LoadCheck],
) -> None:
    running = RunningEngine("vllm", "0.29.0", ARGUMENTS, {})
    found = check().verify(running)
    assert found is not None
    works = probe_works(found.attestation.predicate.probes, CharacterTokenizer(), WINDOW)
    right, wrong = scored(Model().run(works)), scored(Model(seed=1).run(works))
    kernels = {"attention": "CPUAttention"}
    assert check().accept(found, kernels, right) == found.attestation.digest
    with pytest.raises(AttestationRefused, match="computes attention with FlashAttention, and the"):
        check().accept(found, {"attention": "FlashAttention"}, right)
    with pytest.raises(AttestationRefused, match="computes LinearMethod with Marlin"):
        check().accept(found, {**kernels, "LinearMethod": "Marlin"}, right)
    with pytest.raises(AttestationRefused, match="expected log-probabilities"):
        check().accept(found, kernels, wrong)
    assert check(development=True).accept(found, kernels, wrong) is None
