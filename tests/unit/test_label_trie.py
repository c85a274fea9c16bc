"""Label probabilities: exact for any tokens the labels share."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.contracts.errors import InvalidTaskSpec
from serving.tasks.label_trie import LabelTrie

END = 99
# A small alphabet makes shared beginnings and labels inside labels common.
LABELS = st.lists(
    st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple),
    min_size=2,
    max_size=12,
    unique=True,
)


def toy_logprob(prefix: Sequence[int], token: int) -> float:
    """A fixed next-token model: any function of the prefix and the token will do."""
    return -((hash((*prefix, token)) % 1000) / 100)


def scored(trie: LabelTrie) -> list[list[float]]:
    return [
        [toy_logprob(point.suffix, token) for token in point.candidates] for point in trie.points
    ]


@given(LABELS)
def test_probabilities_sum_to_one(labels: list[tuple[int, ...]]) -> None:
    trie = LabelTrie.build(labels, END)
    probabilities = trie.probabilities(scored(trie))
    assert len(probabilities) == len(labels)
    assert all(0.0 <= probability <= 1.0 for probability in probabilities)
    assert math.isclose(sum(probabilities), 1.0, rel_tol=1e-9)


@given(LABELS)
def test_they_are_those_of_decoding_constrained_to_the_labels(
    labels: list[tuple[int, ...]],
) -> None:
    trie = LabelTrie.build(labels, END)
    probabilities = trie.probabilities(scored(trie))
    ended = [(*label, END) for label in labels]
    for label, probability in zip(ended, probabilities, strict=True):
        expected = 1.0
        for depth, token in enumerate(label):
            allowed = {other[depth] for other in ended if other[:depth] == label[:depth]}
            weights = {t: math.exp(toy_logprob(label[:depth], t)) for t in allowed}
            expected *= weights[token] / sum(weights.values())
        assert math.isclose(probability, expected, rel_tol=1e-9)


@given(LABELS, st.floats(-50, 50))
def test_a_constant_added_at_a_point_changes_nothing(
    labels: list[tuple[int, ...]], constant: float
) -> None:
    trie = LabelTrie.build(labels, END)
    values = scored(trie)
    moved = [[value + constant for value in point] for point in values]
    assert trie.probabilities(moved) == pytest.approx(trie.probabilities(values))


def test_distinct_first_tokens_take_one_point() -> None:
    trie = LabelTrie.build([(1,), (2, 5), (3, 5, 6)], END)
    assert [(point.suffix, point.candidates) for point in trie.points] == [((), (1, 2, 3))]


def test_shared_first_tokens_take_a_point_more_each() -> None:
    trie = LabelTrie.build([(1, 2, 3), (1, 2, 4), (5,)], END)
    assert [(point.suffix, point.candidates) for point in trie.points] == [
        ((), (1, 5)),
        ((1, 2), (3, 4)),
    ]


def test_a_label_that_begins_another_is_told_apart_by_the_end_of_turn() -> None:
    trie = LabelTrie.build([(1,), (1, 2)], END)
    assert [(point.suffix, point.candidates) for point in trie.points] == [((1,), (END, 2))]


def test_150_labels_that_share_their_beginnings() -> None:
    labels = [(number // 50, number // 10, number) for number in range(150)]
    trie = LabelTrie.build(labels, END)
    assert sum(trie.probabilities(scored(trie))) == pytest.approx(1.0)
    assert sum(len(point.candidates) - 1 for point in trie.points) == 149


@pytest.mark.parametrize("labels", [[(1, 2), (1, 2)], [(1,), ()]])
def test_labels_that_the_tokenizer_cannot_tell_apart_are_refused(
    labels: list[tuple[int, ...]],
) -> None:
    with pytest.raises(InvalidTaskSpec, match="gives two labels the same tokens"):
        LabelTrie.build(labels, END)
