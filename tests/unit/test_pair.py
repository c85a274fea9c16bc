"""Two models in turns, and lm-eval over their answers: scripted engines, the real harness."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from evals.answers import Answered, answer
from evals.assessment import Rules, assess, certain_to_fail
from evals.pair import Block, Pair
from evals.suite import Suite, built_in_suites
from serving.contracts.engine import (
    EngineOutput,
    EngineWork,
    GenerateOutput,
    ScoreOutput,
    ScoreWork,
    TokenCounts,
)
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
