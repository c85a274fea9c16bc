"""Metrics and what counts as right, against other implementations of them."""

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from evals.metrics import is_right, metric_of
from serving.contracts.answer import Entity, Prediction, Translation
from serving.contracts.task_spec import ClassificationSpec, TaskSpec, TranslationSpec

LABELS = ["negative", "neutral", "positive"]
PAIRS = [
    ("Der Hund schläft.", "Der Hund schläft im Haus."),
    ("Wo ist der Bahnhof?", "Wo ist der Bahnhof?"),
    ("", "Wir sehen uns morgen."),
]


def label(value: str) -> Prediction:
    return Prediction(value=value, confidence=0.5)


def entities(*found: tuple[str, str]) -> Prediction:
    items = tuple(Entity(text=t, type=k, start=0, end=len(t)) for t, k in found)
    return Prediction(value=items, confidence=0.5)


def translation(text: str, *, valid: bool = True) -> Prediction:
    value = Translation(
        text=text, source_language="en", target_language="de", source_detected=False
    )
    return Prediction(value=value, confidence=0.5, valid=valid)


@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from(LABELS)), min_size=1))
def test_macro_f1_is_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    spec = ClassificationSpec(
        name="s", kind="classification", instruction="?", labels=LABELS, floor=0.1,
        target_error=0.1,
    )  # fmt: skip
    metric = metric_of(spec)
    answered, wanted = zip(*pairs, strict=True)
    rows = metric.rows([label(name) for name in answered], wanted)
    ours = metric.value(rows.sum(axis=0))
    assert ours == pytest.approx(f1_score(wanted, answered, average="macro", zero_division=0.0))
    accuracy = metric_of(spec.model_copy(update={"metric": "accuracy"}))
    share = np.mean([one == other for one, other in pairs])
    rows = accuracy.rows([label(name) for name in answered], wanted)
    assert accuracy.value(rows.sum(axis=0)) == pytest.approx(share)


def test_entities_count_with_their_type_and_their_number(specs: dict[str, TaskSpec]) -> None:
    metric = metric_of(specs["ner"])
    wanted = (("Oslo", "location"), ("Oslo", "location"), ("Ann", "person"))
    found = entities(("Oslo", "location"), ("Ann", "location"))
    assert metric.row(found, wanted) == (1.0, 2.0, 3.0)
    assert metric.value(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 * 1 / 5)
    assert metric.value(np.zeros(3)) == 1.0
    assert is_right(specs["ner"], entities(("B", "person"), ("A", "person")),
                    (("A", "person"), ("B", "person")))  # fmt: skip
    assert not is_right(specs["ner"], found, wanted)


@pytest.mark.parametrize("name", ["chrf", "bleu"])
def test_translation_metrics_are_sacrebleus(name: str, specs: dict[str, TaskSpec]) -> None:
    spec = specs["translation"].model_copy(update={"metric": name})
    metric = metric_of(spec)
    rows = metric.rows(
        [translation(answered) for answered, _ in PAIRS], [want for _, want in PAIRS]
    )
    answered, wanted = zip(*PAIRS, strict=True)
    theirs = (
        sacrebleu.corpus_chrf(list(answered), [list(wanted)], word_order=2)
        if name == "chrf"
        else sacrebleu.corpus_bleu(list(answered), [list(wanted)])
    )
    assert metric.value(rows.sum(axis=0)) == pytest.approx(theirs.score / 100)


def test_a_translation_is_right_from_the_acceptable_score_on(specs: dict[str, TaskSpec]) -> None:
    spec = specs["translation"]
    assert isinstance(spec, TranslationSpec)
    exact = translation("Wo ist der Bahnhof?")
    assert is_right(spec, exact, "Wo ist der Bahnhof?")
    assert not is_right(
        spec, translation("Wo ist der Bahnhof?", valid=False), "Wo ist der Bahnhof?"
    )
    assert not is_right(spec, translation("Nirgends."), "Wo ist der Bahnhof?")
    strict = spec.model_copy(update={"acceptable": 1.0})
    assert not is_right(strict, translation("Wo ist der Bahnhof"), "Wo ist der Bahnhof?")
