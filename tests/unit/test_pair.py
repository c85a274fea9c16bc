"""Two models in turns, and lm-eval over their answers: scripted engines, the real harness."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from evals.answers import Answered, answer
from evals.assessment import Rules, assess, cannot_pass
from evals.gate import Request, refuse_unfit_request, stopping_rule
from evals.harness import General
from evals.pair import Block, Pair, Side, StoppingRule
from evals.signing import GateRun, Loaded
from evals.subject import Subject
from evals.suite import Suite, built_in_suites, calibration_half
from evals.verdict import Judgement
from serving.artifacts.manifest import Manifest
from serving.contracts.answer import Entity, Prediction
from serving.contracts.attestation import Pair as Figures
from serving.contracts.attestation import Verdict
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


HOPELESS = Judgement(Verdict.FAIL, ("hopeless",))


def stopping_at(**ends: int | None) -> StoppingRule:
    """Stop a model at the first look at which it has answered so many examples; None: never."""

    def reason(side: Side, seen: Suite) -> Judgement | None:
        end = ends[side]
        return HOPELESS if end is not None and len(seen.examples) >= end else None

    def candidate(seen: Suite, answered: Answered, blocks: Sequence[Block]) -> Judgement | None:
        assert len(seen.examples) == len(answered.predictions)
        assert len(seen.examples) == sum(block.examples for block in blocks)
        return reason("candidate", seen)

    def baseline(seen: Suite, answered: Answered) -> Judgement | None:
        assert len(seen.examples) == len(answered.predictions)
        return reason("baseline", seen)

    return StoppingRule(candidate, baseline if "baseline" in ends else None)


def answered_by(diary: list[str], side: str) -> list[int]:
    """Return the sizes of a model's batches without the warm-up's, which is of 8 examples."""
    return [int(size) for name, size in map(str.split, diary) if name == side and size.isdigit()][
        1:
    ]


@pytest.mark.parametrize(
    ("ends", "judged_on", "batches"),
    [
        # The looks of 12 labels are after 1, 3 and 6.
        ({"candidate": None, "baseline": None}, (12, 12), ([1, 2, 3, 6], [1, 2, 3, 6])),
        ({"candidate": 3, "baseline": None}, (12, 3), ([1, 2, 3, 6], [1, 2])),
        # The candidate's loss and speed need the baseline's answers to all of its examples.
        ({"candidate": None, "baseline": 3}, (3, 12), ([1, 2, 3, 6], [1, 2, 3, 6])),
        ({"candidate": 3, "baseline": 3}, (3, 3), ([1, 2], [1, 2])),
        ({"candidate": 6, "baseline": 1}, (1, 6), ([1, 2, 3], [1, 2, 3])),
        ({"candidate": 1, "baseline": 6}, (6, 1), ([1, 2, 3], [1])),
        ({"candidate": 3}, (3, 3), ([1, 2], [1, 2])),
    ],
    ids=["none", "candidate", "baseline", "both", "baseline first", "candidate first", "unjudged"],
)
def test_each_model_is_stopped_by_its_own_answers(
    suites: dict[str, Suite],
    ends: dict[str, int | None],
    judged_on: tuple[int, int],
    batches: tuple[list[int], list[int]],
) -> None:
    diary: list[str] = []
    pair = pair_of([suites["topic"]], diary, stopping=stopping_at(**ends))
    pair.run()
    assert (answered_by(diary, "baseline"), answered_by(diary, "candidate")) == batches
    for side, count in zip(("baseline", "candidate"), judged_on, strict=True):
        assert len(pair.suite(side, "topic").examples) == count
        assert len(pair.answered(side, "topic").predictions) == count
        assert pair.stopped(side, "topic") == (HOPELESS if count < 12 else None)
    # What is paired is of the candidate's examples.
    assert len(pair.compared("topic").predictions) == judged_on[1]
    assert sum(block.examples for block in pair.blocks["topic"]) == judged_on[1]


def test_a_stopped_task_does_not_end_the_others(suites: dict[str, Suite]) -> None:
    diary: list[str] = []

    def candidate(seen: Suite, *_: Any) -> Judgement | None:
        return HOPELESS if seen.name == "ner" and len(seen.examples) >= 3 else None

    pair = pair_of([suites["topic"], suites["ner"]], diary, stopping=StoppingRule(candidate))
    pair.run()
    assert [block.examples for block in pair.blocks["ner"]] == [3]
    assert [block.examples for block in pair.blocks["topic"]] == [1, 2, 3, 6]


def test_the_baseline_answers_the_same_batches_whenever_the_candidate_ends(
    suites: dict[str, Suite],
) -> None:
    """A batch's size may change an answer's last digits, and the baseline's are attested."""

    class Noting(Scripted):
        def run(self, works: Sequence[EngineWork]) -> Batch:
            asked[-1].append(list(works))
            return super().run(works)

    asked: list[list[list[EngineWork]]] = []
    for end in (None, 1, 6):
        asked.append([])
        subjects: Any = {"baseline": Noting("baseline", []), "candidate": Scripted("candidate", [])}
        rule = stopping_at(candidate=end, baseline=None)
        Pair(subjects, [suites["topic"]], Silent(), rule).run()
    assert asked[0] == asked[1] == asked[2]


def test_each_answer_is_that_of_its_example(suites: dict[str, Suite]) -> None:
    topic = suites["topic"]
    together = pair_of([topic], []).answered("candidate", "topic").predictions
    subject: Any = Scripted("candidate", [])
    assert together == answer(subject, topic).predictions


def test_the_first_look_has_no_text_twice(specs: dict[str, TaskSpec]) -> None:
    (suite,) = (suite for suite in built_in_suites(specs) if suite.name == "translation")
    seen: list[Suite] = []

    def second_look(looked_at: Suite, *_: Any) -> Judgement | None:
        seen.append(looked_at)
        return HOPELESS if len(seen) == 2 else None

    pair_of([suite], [], stopping=StoppingRule(second_look)).run()
    assert len(seen[0].examples) == 48
    assert len({example.group for example in seen[1].examples}) == len(seen[1].examples) == 144
    slices = Counter(example.slice for example in seen[0].examples)
    assert len(slices) >= 10
    assert max(slices.values()) <= 10


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
    assert cannot_pass(topic, topic, constant, [], rules)
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
    assert not cannot_pass(topic, topic, right, [], rules)
    demanding = Rules(margin=0.03, required_speed=0.8, resamples=300)
    slow, noisy = Block(8, 1.0, 2.0), Block(8, 1.0, 1.5)
    assert cannot_pass(topic, topic, right, [slow, slow], demanding)
    assert not cannot_pass(topic, topic, right, [slow, slow], rules)
    # One block may be slow because of another program, and a ratio of 0.67 because of noise.
    assert not cannot_pass(topic, topic, right, [slow], demanding)
    assert not cannot_pass(topic, topic, right, [slow, noisy, slow], demanding)


def answers_right_on(suite: Suite, right: Callable[[int], bool]) -> Answered:
    """Return answers to an extraction suite: the expected ones, or none. right: by index."""
    found = []
    for index, example in enumerate(suite.examples):
        assert isinstance(example.expected, tuple)
        expected = [Entity(text=t, type=k, start=0, end=1) for t, k in example.expected]
        value = tuple(expected) if right(index) else (*expected, *expected[:1], WRONG)
        found.append(Prediction(value=value, confidence=0.5))
    return Answered(tuple(found), None)


WRONG = Entity(text="nothing", type="person", start=0, end=1)


def test_a_model_with_too_few_right_answers_for_any_error_bound_is_stopped(
    specs: dict[str, TaskSpec],
) -> None:
    """Of 99 answers that certify, an error of 10 % needs 29 right ones."""
    (ner,) = (suite for suite in built_in_suites(specs) if suite.name == "ner")
    rules = Rules(margin=0.03, required_speed=0.8, resamples=300)
    half = [index for index, e in enumerate(ner.examples) if not calibration_half(e.group)]
    assert len(half) == 99
    seen = ner.among(half[:40])

    def reason(right: int) -> Judgement | None:
        # Entities are found, so that the floor is reached, but with others.
        return cannot_pass(ner, seen, answers_right_on(seen, lambda i: i < right), [], rules)

    stopped = reason(2)
    assert stopped is not None
    assert stopped.verdict is Verdict.INCONCLUSIVE
    assert "2 of 40 answers of the certification half are right" in stopped.reasons[0]
    assert "needs 29 of its 99" in stopped.reasons[0]
    assert stopped.more_examples > 0
    # With calibrated confidences the wrong answers may be shown to be confident ones.
    both_halves = ner.first(100)
    failed = cannot_pass(
        ner, both_halves, answers_right_on(both_halves, lambda _: False), [], rules
    )
    assert failed is not None
    assert failed.verdict is Verdict.FAIL
    assert "of its most confident answers are wrong, at 99.5% confidence" in failed.reasons[0]
    assert failed.more_examples == 0
    # 29 of 99 right would be 12 of 40: chance explains 8, but not 2.
    assert reason(8) is None
    # Own inputs certify, or the suite is too small for any bound: nothing is concluded.
    elsewhere = replace(rules, certified_elsewhere=True)
    assert cannot_pass(ner, seen, answers_right_on(seen, lambda _: False), [], elsewhere) is None
    small = ner.among(half[:28])
    assert cannot_pass(small, small, answers_right_on(small, lambda _: False), [], rules) is None


def test_a_model_that_could_be_certified_is_rarely_stopped(specs: dict[str, TaskSpec]) -> None:
    """With just as many right answers as a bound needs, one look stops at most 0.5 %."""
    (ner,) = (suite for suite in built_in_suites(specs) if suite.name == "ner")
    rules = Rules(margin=0.03, required_speed=0.0, resamples=2)
    half = [index for index, e in enumerate(ner.examples) if not calibration_half(e.group)]
    stopped = 0
    generator = np.random.default_rng(0)
    for _ in range(400):
        right = set(generator.choice(half, 29, replace=False).tolist())
        chosen = sorted(generator.choice(half, 40, replace=False).tolist())
        seen = ner.among(chosen)
        answered = answers_right_on(seen, lambda index: chosen[index] in right)  # noqa: B023
        stopped += cannot_pass(ner, seen, answered, [], rules) is not None
    assert stopped <= 6


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
        [suites["ner"]], diary, stopping=stopping_at(candidate=1, baseline=None),
        own_inputs={"ner": suites["ner"].first(5)},
    )  # fmt: skip
    pair.run()
    assert pair.own_answered("ner") is None
    assert "candidate 5" not in diary


def test_a_model_is_stopped_by_its_own_floor_and_the_candidate_by_its_speed_too(
    specs: dict[str, TaskSpec], tmp_path: Path
) -> None:
    """Where one model's answers ended the other's test, the other's bounds would not hold."""
    (topic,) = (suite for suite in built_in_suites(specs) if suite.name == "topic")
    for folder in ("baseline", "candidate"):
        (tmp_path / folder).mkdir()
    request = Request(
        tmp_path / "baseline", tmp_path / "candidate", [topic], Settings().models[0], {},
        General((), None, 0.02), required_speed=0.8, stop_early=True, attest_baseline=True,
    )  # fmt: skip
    subject: Any = Scripted("candidate", [], always=0)
    constant = answer(subject, topic)
    pairs = zip(constant.predictions, topic.examples, strict=True)
    right = Answered(
        tuple(p.model_copy(update={"value": example.expected}) for p, example in pairs), None
    )
    rule = stopping_rule(request)
    assert rule is not None
    assert rule.baseline is not None
    assert rule.candidate(topic, right, []) is None
    assert rule.baseline(topic, right) is None
    for reason in (rule.candidate(topic, constant, []), rule.baseline(topic, constant)):
        assert reason is not None
        assert reason.verdict is Verdict.FAIL
        assert "stopped after 312 examples: its own metric is at most 0." in reason.reasons[0]
    slow = Block(8, 1.0, 2.0)
    too_slow = rule.candidate(topic, right, [slow, slow])
    assert too_slow is not None
    assert "at most 0.50 of the baseline's in each block" in too_slow.reasons[0]
    alone = stopping_rule(replace(request, attest_baseline=False))
    assert alone is not None
    assert alone.baseline is None
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
