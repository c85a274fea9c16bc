"""How far a file of inputs is from a suite: files that differ in one respect, and ones that do not.

Files are made of the built-in suites: half of a suite is the suite, the other half the file.
"""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from evals.population import read_inputs
from evals.population_comparison import compared, language_detector
from evals.population_shift import Traits, differences, traits
from evals.suite import Suite, built_in_suites
from serving.contracts.answer import TaskRequest
from serving.contracts.attestation import Difference
from serving.contracts.task_spec import TaskSpec
from serving.embedding.encoder import Encoder
from serving.embedding.model_file import ensure_model

from .made_encoder import place_encoder

RESAMPLED = 3
RESAMPLED_SLOW = 200
MeasureTraits = Callable[[Suite], Traits]


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("state")
    place_encoder(found)
    return found


@pytest.fixture(scope="module")
def measure(state: Path) -> MeasureTraits:
    encoder, detect = Encoder(ensure_model(state)), language_detector()
    known: dict[str, np.ndarray[tuple[int], np.dtype[np.float32]]] = {}

    def encode(texts: Sequence[str]) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
        new = [text for text in dict.fromkeys(texts) if text not in known]
        known.update(zip(new, encoder.encode(new), strict=True))
        return np.stack([known[text] for text in texts])

    return lambda suite: traits(suite, encode, detect)


@pytest.fixture(scope="module")
def suites(specs: dict[str, TaskSpec]) -> dict[str, Suite]:
    # A part of each: encoding is most of the time of these tests.
    limits = {"topic": 240, "sentiment": 240, "ner": 60, "translation": 40}
    return {suite.name: suite.first(limits[suite.name]) for suite in built_in_suites(specs)}


@pytest.fixture(scope="module")
def topic(suites: dict[str, Suite], measure: MeasureTraits) -> Traits:
    return measure(suites["topic"])


def halves(n: int, seed: int) -> tuple[list[int], list[int]]:
    order = random.Random(seed).sample(range(n), n)  # noqa: S311  # a repeatable choice
    return sorted(order[: n // 2]), sorted(order[n // 2 :])


def rows(indices: Sequence[int]) -> "np.ndarray[tuple[int], np.dtype[np.intp]]":
    return np.array(indices, dtype=np.intp)


def visible(found: Sequence[Difference]) -> set[str]:
    return {difference.respect for difference in found if difference.is_visible}


def with_texts(suite: Suite, texts: Sequence[str]) -> Suite:
    return suite.holding(
        [
            replace(example, request=TaskRequest(suite.name, text))
            for example, text in zip(suite.examples, texts, strict=True)
        ]
    )


def count_false_warnings(suite: Traits, times: int) -> int:
    found = 0
    for seed in range(times):
        one, other = halves(len(suite.words), seed)
        found += len(visible(differences(suite.among(rows(one)), suite.among(rows(other)), seed)))
    return found


def test_a_file_like_the_suite_gives_no_warning(topic: Traits) -> None:
    one, other = halves(len(topic.words), 1)
    found = differences(topic.among(rows(one)), topic.among(rows(other)))
    assert [difference.respect for difference in found] == [
        "labels", "language", "length", "embedding",
    ]  # fmt: skip
    assert visible(found) == set()
    assert all(difference.distance >= 0.0 for difference in found)
    assert count_false_warnings(topic, RESAMPLED) == 0


@pytest.mark.slow
def test_false_warnings_are_rare(topic: Traits) -> None:
    false = count_false_warnings(topic, RESAMPLED_SLOW)
    print(f"{false} false warnings in {4 * RESAMPLED_SLOW} comparisons")
    # Chance alone exceeds 1,000 divisions once in 1,001: more than 4 of 800 times has a
    # probability below 0.2 %.
    assert false <= 4


def test_longer_inputs_differ_only_in_length(
    topic: Traits, suites: dict[str, Suite], measure: MeasureTraits
) -> None:
    one, other = halves(len(topic.words), 2)
    file = suites["topic"].among(other)
    longer = with_texts(file, [f"{e.request.text} {e.request.text}" for e in file.examples])
    found = differences(topic.among(rows(one)), measure(longer))
    assert visible(found) == {"length"}
    (length,) = (difference for difference in found if difference.is_visible)
    assert length.finding.startswith("a median of 5")
    assert ", in the suite 2" in length.finding


def test_inputs_in_another_language_differ_only_in_language(
    topic: Traits, suites: dict[str, Suite], measure: MeasureTraits
) -> None:
    entry = resources.files("evals") / "suites" / "translation" / "test.jsonl"
    german = [json.loads(line)["de"] for line in entry.read_text("utf-8").splitlines()]
    one, other = halves(len(topic.words), 3)
    file = suites["topic"].among(other)
    mixed = [
        german[index] if index % 3 == 0 else example.request.text
        for index, example in enumerate(file.examples)
    ]
    found = differences(topic.among(rows(one)), measure(with_texts(file, mixed)))
    assert visible(found) == {"language"}
    (language,) = (difference for difference in found if difference.is_visible)
    assert language.distance == pytest.approx(1 / 3, abs=0.1)
    # Nothing is said of the meaning of texts that the encoder does not know.
    texts = german[: len(file.examples)]
    foreign = differences(topic.among(rows(one)), measure(with_texts(file, texts)))
    assert {difference.respect for difference in foreign} == {"labels", "language"}
    assert "de " in next(d.finding for d in foreign if d.respect == "language")


def test_other_label_shares_differ_only_in_labels(topic: Traits) -> None:
    one, other = halves(len(topic.words), 4)
    sports = [row for row in other if topic.labels[row] == {"Sports"}]
    rest = [row for row in other if topic.labels[row] != {"Sports"}]
    file = topic.among(rows([*sports, *rest[: len(sports) // 3]]))
    found = differences(topic.among(rows(one)), file)
    assert visible(found) == {"labels"}
    labels = found[0]
    assert labels.finding == "Sports 76% of the inputs, in the suite 25%"


def test_inputs_about_other_subjects_differ_only_in_embedding(
    specs: dict[str, TaskSpec], measure: MeasureTraits
) -> None:
    (suite,) = built_in_suites({"sentiment": specs["sentiment"]}, extended=True)
    folder = resources.files("evals") / "suites" / "sentiment"
    texts = [(folder / name).read_text("utf-8") for name in ("test.jsonl", "test_hard.jsonl")]
    lines = [json.loads(line) for text in texts for line in text.splitlines()]
    domain = {row["id"]: row["domain"] for row in lines}
    chosen = [i for i, example in enumerate(suite.examples) if domain[example.id] == "software"]
    others = [i for i, example in enumerate(suite.examples) if domain[example.id] != "software"]
    found = differences(measure(suite.among(others[:200])), measure(suite.among(chosen)))
    assert visible(found) == {"embedding"}


def test_a_few_inputs_are_compared_with_wider_limits(topic: Traits) -> None:
    few = topic.among(rows(range(0, 24)))
    found = {d.respect: d.limit for d in differences(topic, few)}
    many = {d.respect: d.limit for d in differences(topic, topic)}
    assert found["labels"] > many["labels"]
    assert found["length"] > many["length"]
    # Fewer than 20 say nothing about length and meaning.
    assert {d.respect for d in differences(topic, topic.among(rows(range(19))))} == {"labels"}


def test_entities_and_directions_have_shares_as_well(
    suites: dict[str, Suite], measure: MeasureTraits
) -> None:
    ner = suites["ner"]
    people = [i for i, e in enumerate(ner.examples) if ("person" in {k for _, k in e.expected})]
    found = differences(measure(ner), measure(ner.among(people)))
    assert "labels" in visible(found)
    assert found[0].finding.startswith("person 100% of the inputs, in the suite ")
    translation = suites["translation"]
    one_way = [i for i, e in enumerate(translation.examples) if e.slice == "en-de"]
    found = differences(measure(translation), measure(translation.among(one_way)))
    assert visible(found) == {"labels"}
    assert found[0].finding.startswith("en-de 100% of the inputs, in the suite ")
    assert "language" not in {difference.respect for difference in found}


def test_a_file_is_compared_as_a_gate_does(
    tmp_path: Path, state: Path, suites: dict[str, Suite]
) -> None:
    texts = [
        f"Invoice {n} is due on the {n}th and the bank will charge interest." for n in range(40)
    ]
    lines = [json.dumps({"text": text, "label": "Business"}) for text in texts]
    path = tmp_path / "invoices.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    own = compared(read_inputs(path, suites["topic"]), suites["topic"].first(100), state, seed=0)
    assert {"labels", "length", "embedding"} == visible(own.differences)
    warnings = own.population.warnings
    assert len(warnings) == 3
    assert all(text.startswith("invoices.jsonl differs from the suite in ") for text in warnings)


def test_a_comparison_is_the_same_in_every_run(topic: Traits) -> None:
    one, other = (topic.among(rows(half)) for half in halves(len(topic.words), 5))
    assert differences(one, other) == differences(one, other)


def test_other_label_shares_make_no_difference_in_length_or_meaning() -> None:
    def side(long: int, short: int) -> Traits:
        words = rows([40] * long + [8] * short).astype(np.int64)
        labels = [frozenset({"long"})] * long + [frozenset({"short"})] * short
        vectors = np.eye(2, dtype=np.float32)[[0] * long + [1] * short]
        return Traits(words, ("en",) * len(words), tuple(labels), vectors, label_is_single=True)

    found = differences(side(150, 150), side(270, 30))
    assert visible(found) == {"labels"}
    distances = {difference.respect: difference.distance for difference in found}
    assert distances["length"] == pytest.approx(0.0, abs=1e-9)
    assert distances["embedding"] == pytest.approx(0.0, abs=1e-9)
