"""Two models in turns, and lm-eval over their answers: scripted engines, the real harness."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from evals.answers import Answered, answer
from evals.assessment import Rules, assess, certain_to_fail
from evals.gate import Request, refuse_unfit_request, stopping_rule
from evals.harness import General
from evals.pair import Block, Pair
from evals.signing import GateRun, Loaded
from evals.subject import Subject
from evals.suite import Suite, built_in_suites
from serving.artifacts.manifest import Manifest
from serving.contracts.attestation import Pair as Figures
from serving.contracts.engine import (
    EngineOutput,
    EngineWork,
    GenerateOutput,
    ScoreOutput,
    ScoreWork,
    TokenCounts,
)
from serving.contracts.errors import UnsuitableModel
from serving.contracts.settings import Settings
from serving.contracts.task_spec import TaskSpec
from serving.local.offline_work import Batch
from serving.tasks.task import Task, bind

from .character_tokenizer import CharacterTokenizer

WINDOW = 8192
TOKENS = TokenCounts(1, 0, 1)


class Scripted:
    """A subject whose engine answers by a rule on the prompt's text."""

    def __init__(self, name: str, diary: list[str], *, always: int | None = None) -> None:
        self.name = name
        self.folder = Path("/nonexistent")
        self.settings = Settings().models[0]
        self._diary = diary
        self._always = always
        self._tasks: dict[str, Task] = {}

    def task(self, spec: TaskSpec, label_offsets: dict[str, float] | None = None) -> Task:
        return bind(spec, CharacterTokenizer(), WINDOW, label_offsets)

    def run(self, works: Sequence[EngineWork]) -> Batch:
        self._diary.append(f"{self.name} {len(works)}")
        return Batch([self._output(work) for work in works], 0.5)

    def _output(self, work: EngineWork) -> EngineOutput:
        if not isinstance(work, ScoreWork):
            return GenerateOutput("[]" if work.json_schema else "Hallo", (-0.1,), "stop", TOKENS)
        best = sum(work.prompt_token_ids) if self._always is None else self._always
        points = [
            tuple(0.0 if i == best % len(p.candidates) else -3.0 for i in range(len(p.candidates)))
            for p in work.points
        ]
        return ScoreOutput(tuple(points), TOKENS)

    def begin_load(self) -> None:
        self._diary.append(f"{self.name} loading")

    def load(self) -> None:
        self._diary.append(f"{self.name} loaded")

    def unload(self) -> None:
        self._diary.append(f"{self.name} unloaded")

    def close(self, *, broken_off: bool = False) -> None:
        self._diary.append(f"{self.name} closed{' at once' if broken_off else ''}")


class Silent:
    def step(
        self, name: str, done: float = 0, total: float = 0, details: Mapping[str, Any] | None = None
    ) -> None:
        assert done <= total


@pytest.fixture
def suites(specs: dict[str, TaskSpec]) -> dict[str, Suite]:
    return {suite.name: suite.first(12) for suite in built_in_suites(specs)}


@pytest.fixture(autouse=True)
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both engines fit, whatever else runs on this machine."""
    memory = psutil.virtual_memory()._replace(available=2**40)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def pair_of(suites: Sequence[Suite], diary: list[str], **options: Any) -> Pair:
    subjects: Any = {side: Scripted(side, diary) for side in ("baseline", "candidate")}
    return Pair(subjects, suites, Silent(), **options)


def test_the_models_take_turns_on_the_same_examples(suites: dict[str, Suite]) -> None:
    diary: list[str] = []
    pair = pair_of([suites["topic"]], diary)
    with pair.running():
        first, second = (pair.answered(side, "topic") for side in ("baseline", "candidate"))
    assert first == second
    assert len(first.predictions) == 12
    warm = [entry for entry in diary if entry.endswith(" 8")]
    assert warm == ["baseline 8", "candidate 8"]
    turns = [entry.split()[0] for entry in diary if entry.endswith(" 3")]
    assert turns == ["baseline", "candidate", "candidate", "baseline"] * 2
    assert [block.examples for block in pair.blocks["topic"]] == [3, 3, 3, 3]
    assert all(block.ratio == 1.0 for block in pair.blocks["topic"])
    assert diary[:2] == ["baseline loading", "candidate loading"]
    assert diary[-2:] == ["baseline closed", "candidate closed"]


def test_engines_are_ended_at_once_when_a_run_breaks_off(suites: dict[str, Suite]) -> None:
    diary: list[str] = []
    with pytest.raises(KeyboardInterrupt), pair_of([suites["topic"]], diary).running():
        raise KeyboardInterrupt
    assert diary == ["baseline closed at once", "candidate closed at once"]


def test_a_hopeless_task_is_stopped_and_cut(suites: dict[str, Suite]) -> None:
    diary: list[str] = []

    def futile(seen: Suite, *answered_and_blocks: Any) -> bool:
        baseline, candidate, blocks = answered_and_blocks
        assert len(baseline.predictions) == len(candidate.predictions)
        assert len(seen.examples) == len(candidate.predictions)
        assert len(seen.examples) == sum(block.examples for block in blocks)
        return seen.name == "ner" and len(seen.examples) >= 3

    pair = pair_of([suites["topic"], suites["ner"]], diary, futile=futile)
    pair.run()
    assert {name: len(suite.examples) for name, suite in pair.suites.items()} == {
        "topic": 12, "ner": 3,
    }  # fmt: skip
    assert len(pair.answered("candidate", "ner").predictions) == 3
    assert [block.examples for block in pair.blocks["ner"]] == [1, 2]
    assert [block.examples for block in pair.blocks["topic"]] == [1, 2, 3, 6]


def test_each_answer_is_that_of_its_example(suites: dict[str, Suite]) -> None:
    topic = suites["topic"]
    together = pair_of([topic], []).answered("candidate", "topic").predictions
    subject: Any = Scripted("candidate", [])
    assert together == answer(subject, topic).predictions


def test_the_first_look_has_no_text_twice(specs: dict[str, TaskSpec]) -> None:
    (suite,) = (suite for suite in built_in_suites(specs) if suite.name == "translation")
    seen: list[Suite] = []

    def futile(looked_at: Suite, *_: Any) -> bool:
        seen.append(looked_at)
        return len(seen) == 2

    pair_of([suite], [], futile=futile).run()
    assert len(seen[0].examples) == 8
    assert len({example.group for example in seen[1].examples}) == len(seen[1].examples) == 24
    slices = Counter(example.slice for example in seen[1].examples)
    assert len(slices) >= 10
    assert max(slices.values()) <= 5


def test_only_what_is_clearly_below_the_floor_is_hopeless(specs: dict[str, TaskSpec]) -> None:
    (topic,) = (suite for suite in built_in_suites(specs) if suite.name == "topic")
    rules = Rules(margin=0.03, required_speed=0.0, resamples=300)
    diary: list[str] = []
    subjects: Any = {
        "baseline": Scripted("baseline", diary),
        "candidate": Scripted("candidate", diary, always=0),
    }
    pair = Pair(subjects, [topic], Silent())
    constant = pair.answered("candidate", "topic")
    assert certain_to_fail(topic, constant, [], rules)
    found = assess(topic, pair.answered("baseline", "topic"), constant, [], rules)
    assert found.result.verdict.value == "fail"
    expected = [example.expected for example in topic.examples]
    right = Answered(
        tuple(
            p.model_copy(update={"value": value})
            for p, value in zip(constant.predictions, expected, strict=True)
        ),
        None,
    )
    assert not certain_to_fail(topic, right, [], rules)
    demanding = Rules(margin=0.03, required_speed=0.8, resamples=300)
    slow, noisy = Block(8, 1.0, 2.0), Block(8, 1.0, 1.5)
    assert certain_to_fail(topic, right, [slow, slow], demanding)
    assert not certain_to_fail(topic, right, [slow, slow], rules)
    # One block may be slow because of another program, and a ratio of 0.67 because of noise.
    assert not certain_to_fail(topic, right, [slow], demanding)
    assert not certain_to_fail(topic, right, [slow, noisy, slow], demanding)


def test_own_inputs_are_answered_only_by_the_candidate_with_the_suites_offsets(
    suites: dict[str, Suite],
) -> None:
    diary: list[str] = []
    topic = suites["topic"]
    inputs = topic.first(5)
    pair = pair_of([topic], diary, own_inputs={"topic": inputs})
    pair.run()
    own = pair.own_answered("topic")
    assert own is not None
    assert diary[-1] == "candidate 5"
    assert "baseline 5" not in diary
    answered = pair.answered("candidate", "topic")
    assert own.label_offsets == answered.label_offsets
    assert own.predictions == answered.predictions[:5]


def test_own_inputs_of_a_stopped_task_are_not_answered(suites: dict[str, Suite]) -> None:
    diary: list[str] = []
    pair = pair_of(
        [suites["ner"]], diary, futile=lambda *_: True, own_inputs={"ner": suites["ner"].first(5)}
    )
    pair.run()
    assert pair.own_answered("ner") is None
    assert "candidate 5" not in diary


def test_a_task_is_stopped_only_where_no_attested_model_can_pass_it(
    specs: dict[str, TaskSpec], tmp_path: Path
) -> None:
    """Where the candidate's answers end the baseline's test, the baseline's bounds do not hold."""
    (topic,) = (suite for suite in built_in_suites(specs) if suite.name == "topic")
    for folder in ("baseline", "candidate"):
        (tmp_path / folder).mkdir()
    request = Request(
        tmp_path / "baseline", tmp_path / "candidate", [topic], Settings().models[0], {},
        General((), None, 0.02), required_speed=0.0, stop_early=True,
    )  # fmt: skip
    subject: Any = Scripted("candidate", [], always=0)
    constant = answer(subject, topic)
    pairs = zip(constant.predictions, topic.examples, strict=True)
    right = Answered(
        tuple(p.model_copy(update={"value": example.expected}) for p, example in pairs), None
    )
    alone = stopping_rule(request)
    assert alone is not None
    assert alone(topic, right, constant, [])
    both = stopping_rule(replace(request, attest_baseline=True))
    assert both is not None
    assert not both(topic, right, constant, [])
    assert not both(topic, constant, right, [])
    assert both(topic, constant, constant, [])
    assert stopping_rule(replace(request, stop_early=False)) is None


def test_only_a_16_bit_baseline_is_attested(specs: dict[str, TaskSpec], tmp_path: Path) -> None:
    for folder in ("baseline", "candidate"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text("{}", encoding="utf-8")
    suites = [suite.first(2) for suite in built_in_suites(specs)]
    request = Request(
        tmp_path / "baseline", tmp_path / "candidate", suites, Settings().models[0], {},
        General((), None, 0.02), required_speed=0.0, attest_baseline=True,
    )  # fmt: skip
    refuse_unfit_request(request)
    quantized = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    (tmp_path / "baseline" / "config.json").write_text(json.dumps(quantized), encoding="utf-8")
    with pytest.raises(UnsuitableModel, match="only a 16-bit baseline"):
        refuse_unfit_request(request)
    refuse_unfit_request(replace(request, attest_baseline=False))


def test_the_statement_about_a_baseline_has_its_own_figures(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    model = Subject("baseline", folder, Settings().models[0], version="0.29.0")
    run = GateRun(
        datetime.now(UTC), "a" * 64, 2048, 0,
        weight_bytes=Figures(baseline=4.0, candidate=2.0),
        memory_bytes=Figures(baseline=8.0, candidate=6.0),
    )  # fmt: skip
    loaded = Loaded("a CPU", {}, {})
    own = run.predicate(model, Manifest("a" * 64, {"config.json": "b" * 64}), {}, loaded)
    assert own.artifact.precision == "16-bit"
    assert own.artifact.weight_bytes == Figures(baseline=4.0, candidate=4.0)
    assert own.artifact.memory_bytes == Figures(baseline=8.0, candidate=8.0)
    other = run.predicate(model, Manifest("c" * 64, {"config.json": "b" * 64}), {}, loaded)
    assert other.artifact.weight_bytes == Figures(baseline=4.0, candidate=2.0)
    model.close()
