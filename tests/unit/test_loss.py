"""The loss of an answer: one function for the gate and for evidence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics.chrf import CHRF

from serving.contracts.answer import Entity, Translation
from serving.contracts.task_spec import TaskSpec
from serving.tasks.loss import entity_f1, loss_of, sentence_chrf

SENTENCES = st.text(st.sampled_from("abcde .,!?-'"), max_size=40)


@given(SENTENCES, SENTENCES)
def test_chrf_is_sacrebleus(hypothesis: str, reference: str) -> None:
    expected = CHRF(word_order=2).sentence_score(hypothesis, [reference]).score / 100
    assert sentence_chrf(hypothesis, reference) == pytest.approx(expected, abs=1e-12)


def test_a_label_is_right_or_wrong(specs: dict[str, TaskSpec]) -> None:
    assert loss_of(specs["topic"], "World", "World") == 0.0
    assert loss_of(specs["topic"], "World", "Sports") == 1.0
    assert loss_of(specs["topic"], "World", "World", valid=False) == 1.0


def test_entities_are_compared_as_the_spec_says(specs: dict[str, TaskSpec]) -> None:
    found = (
        Entity(text="Ann", type="person", start=0, end=3),
        Entity(text="Rome", type="location", start=7, end=11),
    )
    wanted = (("Ann", "person"),)
    exact = specs["ner"].model_copy(update={"loss": "exact"})
    shared = specs["ner"].model_copy(update={"loss": "one_minus_f1"})
    assert loss_of(exact, found, wanted) == 1.0
    assert loss_of(shared, found, wanted) == pytest.approx(1 / 3)
    assert loss_of(shared, (), ()) == loss_of(exact, found, found[::-1]) == 0.0
    assert entity_f1([("a", "x"), ("a", "x")], [("a", "x")]) == pytest.approx(2 / 3)


def test_a_translation_is_wrong_below_the_acceptable_score(specs: dict[str, TaskSpec]) -> None:
    value = Translation(
        text="Wo ist der Bahnhof?", source_language="en", target_language="de",
        source_detected=False,
    )  # fmt: skip
    assert loss_of(specs["translation"], value, "Wo ist der Bahnhof?") == 0.0
    assert loss_of(specs["translation"], value, "Nirgends.") == 1.0
