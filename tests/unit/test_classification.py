"""Classification: labels by name, probabilities of all, confidence of the chosen one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contracts.answer import TaskRequest
from serving.contracts.engine import ScoreOutput, ScoreWork, TokenCounts
from serving.contracts.task_spec import ClassificationSpec, parse_task_spec
from serving.tasks.classification import ClassificationTask
from serving.tasks.confidence import sequence_confidence

from .character_tokenizer import CharacterTokenizer


def spec(labels: list[object]) -> ClassificationSpec:
    parsed = parse_task_spec(
        {
            "name": "t", "kind": "classification", "instruction": "Choose.", "labels": labels,
            "floor": 0.1, "target_error": 0.1,
        },
        "t",
    )  # fmt: skip
    assert isinstance(parsed, ClassificationSpec)
    return parsed


def test_the_likeliest_label_wins_and_is_named_not_verbalized() -> None:
    task = ClassificationTask(
        spec(
            [{"name": "negative", "verbalizer": "bad"}, {"name": "positive", "verbalizer": "good"}]
        ),
        CharacterTokenizer(),
        4096,
    )
    work = task.plan(TaskRequest("t", "fine"))
    assert isinstance(work, ScoreWork)
    assert work.points[0].candidates == (ord("b"), ord("g"))
    output = ScoreOutput(((math.log(0.1), math.log(0.3)),), TokenCounts(5, 3, 0))
    answer = task.read(TaskRequest("t", "fine"), output)
    assert answer.value == "positive"
    assert answer.label_probabilities == pytest.approx({"negative": 0.25, "positive": 0.75})
    assert answer.confidence == pytest.approx(0.75)


def test_a_tie_goes_to_the_first_label_of_the_spec() -> None:
    task = ClassificationTask(spec(["b", "a"]), CharacterTokenizer(), 4096)
    output = ScoreOutput(((-1.0, -1.0),), TokenCounts(5, 0, 0))
    assert task.read(TaskRequest("t", "x"), output).value == "b"


@given(st.lists(st.floats(-100, 0), max_size=20))
def test_the_confidence_of_a_sequence_lies_between_its_tokens(logprobs: list[float]) -> None:
    confidence = sequence_confidence(logprobs)
    assert 0.0 <= confidence <= 1.0
    if logprobs:
        assert math.exp(min(logprobs)) * 0.999999 <= confidence
        assert confidence <= math.exp(max(logprobs)) * 1.000001
    else:
        assert confidence == 0.0
